// Rows of x as the products of nbits.h read them: the rows of a tile side by side, each group of k padded with zeros,
// and what a group needs of x besides its elements.
#pragma once

#include <cstring>

#include "base/int8.h"
#include "base/narrow.h"
#include "base/tiling.h"

namespace opcel {
namespace detail {

constexpr int kDepth = 8;  // k is padded to a multiple of it in every group

// How k is cut into groups.
struct Groups {
  std::int64_t k, group;

  OPCEL_INLINE std::int64_t count() const { return ceil_div(k, group); }
  OPCEL_INLINE std::int64_t size(std::int64_t g) const { return least(group, k - g * group); }
  OPCEL_INLINE std::int64_t depth(std::int64_t g) const { return ceil_div(size(g), kDepth) * kDepth; }
  // Of all groups, and of those before group g.
  OPCEL_INLINE std::int64_t depth() const { return k == 0 ? 0 : before(count() - 1) + depth(count() - 1); }
  OPCEL_INLINE std::int64_t before(std::int64_t g) const { return g * ceil_div(group, kDepth) * kDepth; }
};

// x of a row and group is scale * q for the s8 that a tile reads, |q| <= 127; `sum` adds up the q. Where x stays as it
// is the scale is 1 and `sum` adds up x.
struct RoundedRows {
  using Element = std::uint8_t;  // [depth / 4][rows of the tile][4], s8
  using Sum = std::int32_t;

  static OPCEL_INLINE void fill(Element* to, std::int64_t rows, float& scale, Sum& sum, const float* x, std::int64_t n,
                                std::int64_t depth) {
    vf top{};
    vi nan{};
    for (std::int64_t i = 0; i < n; i += W) {
      const vf v = i + W <= n ? load(x + i) : load_n(x + i, static_cast<int>(n - i));
      top = max(top, abs(v));
      nan |= v != v;
    }
    // Numbers so small that the step between them is no normal one count as zero.
    const float largest = hmax(select(nan, as_float(set_i(0x7fc00000)), top));
    const bool some = !(largest < 1e-35f);
    const vf inverse = set(some ? 127 / largest : 0);
    scale = some ? largest / 127 : 0;
    vi total{};
    for (std::int64_t i = 0; i < depth; i += W) {
      const vf v = i + W <= n ? load(x + i) : load_n(x + i, static_cast<int>(n > i ? n - i : 0));
      const vi q = to_int(round_even(v * inverse));
      total += q;
      if (rows == 1 && i + W <= depth) {
        store_low(to + i, q);
        continue;
      }
      std::uint8_t bytes[W];
      store_low(bytes, q);
      for (int j = 0; j < W && i + j < depth; j += 4) std::memcpy(to + (i + j) * rows, bytes + j, 4);
    }
    sum = 0;
    for (int i = 0; i < W; ++i) sum += total[i];
  }
};

struct PlainRows {
  using Element = float;  // [depth][rows of the tile]
  using Sum = float;

  static OPCEL_INLINE void fill(Element* to, std::int64_t rows, float& scale, Sum& sum, const float* x, std::int64_t n,
                                std::int64_t depth) {
    vf total{};
    for (std::int64_t i = 0; i < n; i += W) {
      const vf v = i + W <= n ? load(x + i) : load_n(x + i, static_cast<int>(n - i));
      total += v;
    }
    for (std::int64_t i = 0; i < depth; ++i) to[i * rows] = i < n ? x[i] : 0.0f;
    scale = 1;
    sum = hsum(total);
  }
};

// The rows of a task: tile after tile, of each its elements, scales [group][row] and sums [group][row].
template <class Rows>
struct Tiles {
  typename Rows::Element* elements;
  float* scales;
  typename Rows::Sum* sums;
  std::int64_t depth, groups;

  static std::int64_t bytes(const Groups& cut, std::int64_t rows) {
    const std::int64_t row = cut.depth() * static_cast<std::int64_t>(sizeof(typename Rows::Element)) + cut.count() * 8;
    return rows * row + 64;
  }
  Tiles(void* memory, const Groups& cut, std::int64_t rows) : depth(cut.depth()), groups(cut.count()) {
    char* at = static_cast<char*>(memory);
    scales = reinterpret_cast<float*>(at);
    sums = reinterpret_cast<typename Rows::Sum*>(at + rows * groups * 4);
    elements = reinterpret_cast<typename Rows::Element*>(at + rows * groups * 8);
  }
  // The `rows` rows from `first` on become a tile.
  void fill(const Groups& cut, std::int64_t first, std::int64_t rows, const float* x, std::int64_t x_row) const {
    constexpr std::int64_t quad = sizeof(typename Rows::Element) == 1 ? 4 : 1;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t at = (first * groups + g * rows) + r;
        Rows::fill(elements + first * depth + cut.before(g) * rows + r * quad, rows, scales[at], sums[at],
                   x + r * x_row + g * cut.group, cut.size(g), cut.depth(g));
      }
    }
  }
};

}  // namespace detail
}  // namespace opcel
