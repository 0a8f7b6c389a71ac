// C[m, n] = epilogue(A[m, k] * B[k, n]) in f32 by one level of Strassen's algorithm: 7 products of half the size
// instead of 8.
//
// A, B and C are cut in halves along each axis. The left factors (sums of A's quarters) are made by each task for its
// rows, the right factors when weights are packed. The axis k may be cut into blocks besides, so that the left factors
// of a task stay in a cache. Every element is summed in an order that neither the rows of a task nor its panels change.
//
// For few rows four of the seven right factors give the plain product, so one packing serves both:
//   A1 B11 + A2 B21 = (A1 + A2) B11 + A2 (B21 - B11),  A1 B12 + A2 B22 = A1 (B12 - B22) + (A1 + A2) B22.
#pragma once

#include "kernels/gemm/packed.h"

namespace opcel {

struct StrassenArgs {
  const float* a;  // rows contiguous along k; a_row elements from one row to the next
  std::int64_t a_row;
  const float* b;  // [pair of panels][k / 2 in blocks][7][the block's depth][NR], NR = NV * W
  float* c;        // rows contiguous along n
  std::int64_t c_row;
  std::int64_t m, n, k;  // k is even
  std::int64_t rows_per_task;  // of the upper half, together with those of the lower half as far below
  std::int64_t parts;          // among which tasks share out the pairs of panels
  std::int64_t blocks;         // into which k / 2 is cut evenly
  std::int64_t plain;          // not 0: the plain product, whose rows all count as the upper half
};

namespace detail {

constexpr int kStrassen = 7;

// A product is added to, or taken from, one or two quarters of C.
struct StrassenPart {
  int quarter;  // 0: rows and columns of the first halves, 1: columns of the second, 2: rows of the second, 3: both
  float sign;
  bool first, last;  // of those of its quarter
};
struct StrassenProduct {
  int left;  // its left factor: 0 A11 + A22, 1 A21 + A22, 2 A11, 3 A22, 4 A11 + A12, 5 A21 - A11, 6 A12 - A22
  int count;
  StrassenPart parts[2];
};
// One for each right factor.
constexpr StrassenProduct kStrassenProducts[kStrassen] = {
    {0, 2, {{0, 1, true, false}, {3, 1, true, false}}},    // B11 + B22
    {1, 2, {{2, 1, true, false}, {3, -1, false, false}}},  // B11
    {2, 2, {{1, 1, true, false}, {3, 1, false, false}}},   // B12 - B22
    {3, 2, {{0, 1, false, false}, {2, 1, false, true}}},   // B21 - B11
    {4, 2, {{0, -1, false, false}, {1, 1, false, true}}},  // B22
    {5, 1, {{3, 1, false, true}, {}}},                     // B11 + B12
    {6, 1, {{0, 1, false, true}, {}}},                     // B21 + B22
};
// The plain product takes the second to the fifth, on the two quarters beside each other.
constexpr int kPlainFirst = 1, kPlainLast = 4;
constexpr StrassenProduct kPlainProducts[kPlainLast + 1] = {
    {},
    {0, 1, {{0, 1, true, false}, {}}},
    {1, 1, {{1, 1, true, false}, {}}},
    {2, 1, {{0, 1, false, true}, {}}},
    {0, 1, {{1, 1, false, true}, {}}},
};

// Rows of left factors are a cache line apart from a multiple of the depth, or many would fall into the same set.
OPCEL_INLINE constexpr std::int64_t strassen_row(std::int64_t depth) { return (depth + W - 1) / W * W + kLine / 4; }

template <bool Tail>
OPCEL_INLINE void strassen_factors(const float* upper, const float* lower, std::int64_t half, int lanes, float* to,
                                   std::int64_t plane) {
  const vf a11 = load_t<Tail>(upper, lanes), a12 = load_t<Tail>(upper + half, lanes);
  const vf a21 = load_t<Tail>(lower, lanes), a22 = load_t<Tail>(lower + half, lanes);
  store(to, a11 + a22);
  store(to + plane, a21 + a22);
  store(to + 2 * plane, a11);
  store(to + 3 * plane, a22);
  store(to + 4 * plane, a11 + a12);
  store(to + 5 * plane, a21 - a11);
  store(to + 6 * plane, a12 - a22);
}

template <bool Tail>
OPCEL_INLINE void plain_factors(const float* row, std::int64_t half, int lanes, float* to, std::int64_t plane) {
  const vf a1 = load_t<Tail>(row, lanes), a2 = load_t<Tail>(row + half, lanes);
  store(to, a1 + a2);
  store(to + plane, a1);
  store(to + 2 * plane, a2);
}

// R rows of a left factor times a panel, to `tile`.
template <int NV, int R>
__attribute__((noinline)) void strassen_tile(const float* a, std::int64_t a_row, const float* b, std::int64_t k,
                                             float* tile, const char* ahead) {
  vf acc[1][R][NV] = {};
  gemm_sums<NV, 1, false, R, 2>(acc, a, a_row, b, k, ahead);
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) store(tile + (r * NV + j) * W, acc[0][r][j]);
  }
}

// A tile of a product to the quarters of C that it is part of: in `sums` until the last part, then by the epilogue to
// C.
template <int NV, class Epi>
__attribute__((noinline)) void strassen_add(const StrassenArgs& args, const Epi& epi, const StrassenPart& part,
                                            bool first, bool last, const float* tile, int rows, float* sum,
                                            std::int64_t row, std::int64_t col) {
  constexpr int NR = NV * W;
  const vf sign = set(part.sign);
  first = first && part.first;
  if (!(last && part.last)) {
    if (first) {
      for (int i = 0; i < rows * NR; i += W) store(sum + i, sign * load(tile + i));
    } else {
      for (int i = 0; i < rows * NR; i += W) store(sum + i, fma(sign, load(tile + i), load(sum + i)));
    }
    return;
  }
  const std::int64_t cols = args.n - col;
  rows = static_cast<int>(least(rows, args.m - row));
  for (int r = 0; r < rows; ++r, tile += NR, sum += NR) {
    float* c = args.c + (row + r) * args.c_row + col;
    if (cols >= NR) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) {
        const vf v = fma(sign, load(tile + j * W), load(sum + j * W));
        store(c + j * W, epi.template apply<false>(v, 0, row + r, col + j * W, W));
      }
    } else {
      for (int j = 0; j < NV && j * W < cols; ++j) {
        const int lanes = static_cast<int>(least(W, cols - j * W));
        const vf v = fma(sign, load(tile + j * W), load(sum + j * W));
        store_n(c + j * W, epi.template apply<true>(v, 0, row + r, col + j * W, lanes), lanes);
      }
    }
  }
}

}  // namespace detail

template <int NV>
OPCEL_INLINE std::int64_t strassen_pairs(const StrassenArgs& args) {
  return detail::ceil_div(args.n, 2 * NV * W);
}

// Tasks [begin, end): parts of the pairs of panels, then groups of rows of both halves, the last varying fastest. Rows:
// the tile heights to instantiate, descending; every task's row count must be a sum of them that a fewest-tiles even
// split finds. Tall, Depth and Pairs: rows_per_task, the depth of a block of k / 2 and, with more than one block, the
// pairs of a part, or more. Scratch is on the stack.
template <int NV, int Tall, int Depth, int Pairs, int... Rows, class Epi>
void strassen_tasks(const StrassenArgs& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Cut = detail::Cut<Rows...>;
  constexpr int NR = NV * W;
  constexpr std::int64_t a_row = detail::strassen_row(Depth), plane = Tall * a_row;
  alignas(64) float factors[detail::kStrassen * plane];
  alignas(64) float sums[Pairs * 4 * Tall * NR];
  alignas(64) float tile[Cut::largest * NR];
  const std::int64_t upper = args.plain ? args.m : detail::ceil_div(args.m, 2), half = args.k / 2;
  const std::int64_t row_groups = detail::ceil_div(upper, args.rows_per_task), pairs = strassen_pairs<NV>(args);
  const detail::StrassenProduct* const products = args.plain ? detail::kPlainProducts : detail::kStrassenProducts;
  const int first_product = args.plain ? detail::kPlainFirst : 0;
  const int last_product = args.plain ? detail::kPlainLast : detail::kStrassen - 1;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first_row = task % row_groups * args.rows_per_task;
    const std::int64_t rows = detail::least(upper - first_row, args.rows_per_task);
    const std::int64_t part = task / row_groups;
    const std::int64_t first_pair = pairs * part / args.parts, last_pair = pairs * (part + 1) / args.parts;
    for (std::int64_t block = 0; block < args.blocks; ++block) {
      const std::int64_t from = half * block / args.blocks, depth = half * (block + 1) / args.blocks - from;
      for (std::int64_t r = 0; r < rows; ++r) {
        const float* const a = args.a + (first_row + r) * args.a_row + from;
        const float* const low = args.a + detail::least(args.m - 1, upper + first_row + r) * args.a_row + from;
        float* const to = factors + r * a_row;
        std::int64_t i = 0;
        if (args.plain) {
          for (; i + W <= depth; i += W) detail::plain_factors<false>(a + i, half, W, to + i, plane);
          if (i < depth) detail::plain_factors<true>(a + i, half, static_cast<int>(depth - i), to + i, plane);
          continue;
        }
        for (; i + W <= depth; i += W) detail::strassen_factors<false>(a + i, low + i, half, W, to + i, plane);
        if (i < depth)
          detail::strassen_factors<true>(a + i, low + i, half, static_cast<int>(depth - i), to + i, plane);
      }
      for (std::int64_t pair = first_pair; pair < last_pair; ++pair) {
        float* const sum = sums + (Pairs > 1 ? (pair - first_pair) * 4 * Tall * NR : 0);
        const float* b = args.b + ((pair * half + from) * detail::kStrassen + first_product * depth) * NR;
        for (int p = first_product; p <= last_product; ++p, b += depth * NR) {
          const detail::StrassenProduct& product = products[p];
          // The panel that is read next: of this pair, or of the next one in this block.
          const float* next = p < last_product || pair + 1 == last_pair
                                  ? b + depth * NR
                                  : b + (half * detail::kStrassen - (last_product - first_product) * depth) * NR;
          const char* ahead = reinterpret_cast<const char*>(next);
          const char* const stop = ahead + depth * NR * static_cast<int>(sizeof(float));
          for (std::int64_t row = 0; row < rows;) {
            const std::int64_t height = Cut::next(rows - row);
            if (height == 0) break;
            const char* const hint = ahead < stop ? ahead : reinterpret_cast<const char*>(b);
            for (int i = 0; i < product.count; ++i) {
              const detail::StrassenPart& part = product.parts[i];
              const float* const buffer = sum + (part.quarter * Tall + row) * NR;
              for (std::int64_t r = 0; r < height * NR; r += detail::kLine / 4) __builtin_prefetch(buffer + r, 1);
            }
            const auto multiply = [&](auto tall) __attribute__((always_inline)) {
              detail::strassen_tile<NV, decltype(tall)::value>(factors + product.left * plane + row * a_row, a_row, b, depth, tile,
                                                               hint);
            };
            ((height == Rows ? multiply(detail::Int<Rows>{}) : void()), ...);
            for (int i = 0; i < product.count; ++i) {
              const detail::StrassenPart& part = product.parts[i];
              const std::int64_t at = first_row + row + (part.quarter / 2 ? upper : 0);
              const std::int64_t panel = pair + (part.quarter % 2 ? pairs : 0);
              detail::strassen_add<NV>(args, epi, part, block == 0, block + 1 == args.blocks, tile,
                                       static_cast<int>(height), sum + (part.quarter * Tall + row) * NR, at, panel * NR);
            }
            ahead += 2 * (depth / detail::unrolled(1)) * detail::kLine;
            row += height;
          }
        }
      }
    }
  }
}

}  // namespace opcel
