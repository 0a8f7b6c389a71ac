// Products of recurrent weights in bf16 or bytes: with hidden states that are rounded for them.
#pragma once

#include "base/bytes.h"
#include "base/groups.h"
#include "base/tiling.h"
#include "base/vec.h"

namespace opcel::detail {

// The grid of u8 that reaches from a row's least number to its largest and holds 0: numbers are (code - zero) * scale.
struct RowGrid {
  vf scale, zero;

  RowGrid() = default;
  RowGrid(const float* row, std::int64_t n) {
    vf low{}, high{};
    std::int64_t k = 0;
    for (; k + W <= n; k += W) {
      low = min(low, load(row + k));
      high = max(high, load(row + k));
    }
    for (; k < n; ++k) {
      low = min(low, set(row[k]));
      high = max(high, set(row[k]));
    }
    const float least = hmin(low), width = hmax(high) - least;
    scale = set((width == 0.0f ? 1.0f : width) / 255.0f);
    zero = cut(round_even(set(-least) / scale));
  }

  static OPCEL_INLINE vf cut(vf v) { return min(set(255.0f), max(vf{}, v)); }

  // The codes of `n` numbers.
  OPCEL_INLINE void codes(std::uint8_t* to, const float* row, std::int64_t n) const {
    std::int64_t k = 0;
    for (; k + W <= n; k += W) store(to + k, cut(round_even(load(row + k) / scale) + zero));
    for (; k < n; ++k) to[k] = static_cast<std::uint8_t>(cut(round_even(set(row[k]) / scale) + zero)[0]);
  }
};

// Rows of the hidden state as R's elements are multiplied with: rounded once for all blocks of a call.
template <class Weight>
struct StateRows {
  static constexpr bool bytes = sizeof(Weight) == 1;
  using Code = std::conditional_t<bytes, std::uint8_t, bf16>;
  static constexpr std::int64_t group = 4 / sizeof(Code), kRows = 32, kCodes = (1 << 15) / sizeof(Code);

  std::int64_t n, first = 0;
  Code codes[kCodes];
  std::conditional_t<bytes, RowGrid, char> grids[kRows];

  explicit StateRows(std::int64_t hidden) : n(hidden) {}

  std::int64_t width() const { return ceil_div(n, group) * group; }
  // How many rows there is room for, one at least of up to kCodes units.
  std::int64_t most() const { return least(kRows, kCodes / width()); }
  const Code* row(std::int64_t i) const { return codes + (i - first) * width(); }
  const RowGrid* grid(std::int64_t i) const { return grids + (i - first); }

  // Rows [begin, end): before(i) is row i, or null for zeros, which nothing is multiplied with.
  template <class Before>
  void take(std::int64_t begin, std::int64_t end, const Before& before) {
    first = begin;
    for (std::int64_t i = begin; i < end; ++i) {
      const float* const from = before(i);
      if (!from) return;
      Code* const to = codes + (i - first) * width();
      if constexpr (bytes) {
        grids[i - first] = RowGrid(from, n);
        grids[i - first].codes(to, from, n);
      } else {
        round_row(to, from, n);
      }
      for (std::int64_t k = n; k < width(); ++k) to[k] = {};
    }
  }
};

template <>
struct StateRows<float> {
  explicit StateRows(std::int64_t) {}
  static constexpr std::int64_t most() { return INT64_MAX; }
  template <class Before>
  void take(std::int64_t, std::int64_t, const Before&) {}
};

// Adds to `sums` the products of N blocks of R in groups, `panel` elements apart, with B rows of n elements, `width`
// apart.
template <class Sum, class Code, class Weight, int N, int B, int G>
OPCEL_INLINE void add_groups(Sum (&sums)[N][B][G], const Weight* r, std::int64_t panel, const Code* rows,
                             std::int64_t width, std::int64_t n) {
  constexpr int group = 4 / sizeof(Code);
  for (std::int64_t k = 0; k < n; k += group, r += G * W * group) {
    OPCEL_UNROLL
    for (int i = 0; i < N; ++i) {
      vi weights[G];
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) weights[g] = load_groups(r + i * panel + g * W * group);
      OPCEL_UNROLL
      for (int b = 0; b < B; ++b) {
        const vi x = set_group(rows + b * width + k);
        OPCEL_UNROLL
        for (int g = 0; g < G; ++g) dot(sums[i][b][g], x, weights[g]);
      }
    }
  }
}

// The same for R in bytes, as numbers: sums of codes, exact, less what the zero points add to them; `scales` are those
// of the first block's units, n from gate to gate, of which `left` are there.
template <int N, int B, int G>
OPCEL_INLINE void product_of_bytes(vf (&acc)[N][B][G], const std::int8_t* r, std::int64_t panel,
                                   const std::uint8_t* rows, std::int64_t width, const RowGrid* grids, std::int64_t n,
                                   const float* scales, std::int64_t left) {
  vi sum[N][B][G];
  OPCEL_UNROLL
  for (int i = 0; i < N; ++i) {
    OPCEL_UNROLL
    for (int b = 0; b < B; ++b) {
      OPCEL_UNROLL
      for (int g = 0; g < G; ++g) sum[i][b][g] = load_quads(r + i * panel + g * W * 4) * -nearest(grids[b].zero);
    }
  }
  add_groups(sum, r + G * W * 4, panel, rows, width, n);
  for (int i = 0; i < N; ++i) {
    const int lanes = static_cast<int>(least(W, left - i * W));
    for (int b = 0; b < B; ++b)
      for (int g = 0; g < G; ++g)
        acc[i][b][g] = scaled(sum[i][b][g], grids[b].scale * load_t<true>(scales + g * n + i * W, lanes));
  }
}

}  // namespace opcel::detail
