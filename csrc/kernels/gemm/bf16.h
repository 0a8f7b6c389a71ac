// C[batch, m, n] = epilogue(A[batch, m, k] * B[batch, k, n]), A and B in bf16, sums in f32, C in f32 or bf16.
//
// A's rows hold an even number of elements, B is packed into column panels of pairs along k, so that a register tile of R
// rows by NV vectors adds two products a lane with one instruction. The loop over panels is outside of the loop over rows.
// Every element is summed in the order of k, whichever tile computes it: results depend neither on how rows are cut into
// tiles nor on how tasks are spread over threads.
#pragma once

#include "base/bf16.h"
#include "base/tiling.h"
#include "kernels/gemm/tasks.h"

namespace opcel {

template <class C>
struct GemmBf16Args {
  const bf16* a;  // rows contiguous along k, zero in a last odd element; a_row elements from one row to the next
  std::int64_t a_batch, a_row;
  const bf16* b;  // [ceil(n / NR)][ceil(k / 2)][NR][2], NR = NV * W, zero past n and k
  std::int64_t b_batch;
  C* c;  // rows contiguous along n
  std::int64_t c_batch, c_row;
  std::int64_t batch, m, n, k;
  std::int64_t rows_per_task, panels_per_task;
};

namespace detail {

// Rows of A by pointers three rows apart: x86 addresses p, p + s and p + 2 s from them.
template <int R>
struct PairRows {
  const bf16* at[(R + 2) / 3];
  std::int64_t stride;

  OPCEL_INLINE PairRows(const bf16* a, std::int64_t row) : stride(row) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) at[i] = a + 3 * i * row;
  }
  OPCEL_INLINE pairs get(int r, int pair) const { return set_pair(at[r / 3] + (r % 3 * stride + 2 * pair)); }
  OPCEL_INLINE void advance(int count) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) {
      at[i] += 2 * count;
      asm volatile("" : "+r"(at[i]));
    }
  }
};

template <int R, int NV, int Steps>
OPCEL_INLINE void gemm_bf16_steps(vf (&acc)[R][NV], PairRows<R>& a, const bf16*& b) {
  OPCEL_UNROLL
  for (int s = 0; s < Steps; ++s) {
    pairs panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) panel[j] = load_pairs(b + 2 * (s * NV + j) * W);
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const pairs x = a.get(r, s);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) dot(acc[r][j], x, panel[j]);
    }
  }
  a.advance(Steps);
  b += 2 * Steps * NV * W;
}

struct GemmBf16Place {
  std::int64_t batch, row, col, cols;  // cols: columns of C from col on, at most NR are written
};

// A tile at C's right edge, from memory: the last vector may be partial and further ones absent.
template <int NV, class C, class Epi>
__attribute__((noinline)) void gemm_bf16_edge(const float* tile, int rows, C* c, std::int64_t c_row, const Epi& epi,
                                              const GemmBf16Place& at) {
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < NV && j * W < at.cols; ++j) {
      const int lanes = static_cast<int>(least(W, at.cols - j * W));
      const vf v = load(tile + (r * NV + j) * W);
      store_n(c + r * c_row + j * W, epi.template apply<true>(v, at.batch, at.row + r, at.col + j * W, lanes), lanes);
    }
  }
}

template <int NV, int R, class C, class Epi>
__attribute__((noinline)) void gemm_bf16_tile(const bf16* a_first, std::int64_t a_row, const bf16* b, std::int64_t count,
                                              C* c, std::int64_t c_row, const Epi& epi, const GemmBf16Place& at) {
  constexpr int Steps = 4;
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) prefetch_epilogue(0, epi, at.batch, at.row + r, at.col + j * W);
  }
  vf acc[R][NV] = {};
  PairRows<R> a(a_first, a_row);
  for (std::int64_t i = count / Steps; i > 0; --i) gemm_bf16_steps<R, NV, Steps>(acc, a, b);
  for (std::int64_t i = count % Steps; i > 0; --i) gemm_bf16_steps<R, NV, 1>(acc, a, b);
  if (at.cols >= NV * W) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j)
        store(c + r * c_row + j * W, epi.template apply<false>(acc[r][j], at.batch, at.row + r, at.col + j * W, W));
    }
  } else {
    float tile[R * NV * W];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store(tile + (r * NV + j) * W, acc[r][j]);
    }
    gemm_bf16_edge<NV>(tile, R, c, c_row, epi, at);
  }
}

}  // namespace detail

// Tasks [begin, end). Rows: the tile heights to instantiate, descending. Any count of rows can be cut if the last is 1;
// otherwise every task's row count must be a sum of them that a fewest-tiles even split finds.
template <int NV, int... Rows, class C, class Epi>
void gemm_bf16_tasks(const GemmBf16Args<C>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Cut = detail::Cut<Rows...>;
  constexpr int NR = NV * W;
  const std::int64_t count = detail::ceil_div(args.k, 2);
  for (std::int64_t task = begin; task < end; ++task) {
    const auto [batch, first_row, last_row, first_panel, last_panel, is_last_group] = detail::gemm_task<NV>(args, task);
    const bf16* a = args.a + batch * args.a_batch;
    C* c = args.c + batch * args.c_batch;
    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
      const bf16* b = args.b + batch * args.b_batch + panel * count * NR * 2;
      const std::int64_t col = panel * NR;
      for (std::int64_t row = first_row; row < last_row;) {
        const std::int64_t height = Cut::next(last_row - row);
        if (height == 0) break;
        const detail::GemmBf16Place at{batch, row, col, args.n - col};
        ((height == Rows ? detail::gemm_bf16_tile<NV, Rows>(a + row * args.a_row, args.a_row, b, count,
                                                            c + row * args.c_row + col, args.c_row, epi, at)
                         : void()),
         ...);
        row += height;
      }
    }
  }
}

struct RoundArgs {
  const float* x;  // rows contiguous; x_row elements from one row to the next
  std::int64_t x_row;
  bf16* y;  // rows of an even number of elements end to end, zero in a last odd element
  std::int64_t rows, k;
  std::int64_t rows_per_task;
};

// Rows from f32 to bf16. A task is rows_per_task rows.
inline void round_tasks(const RoundArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t y_row = args.k + args.k % 2;
  const std::int64_t last = detail::least(args.rows, end * args.rows_per_task);
  for (std::int64_t row = begin * args.rows_per_task; row < last; ++row) {
    bf16* y = args.y + row * y_row;
    round_row(y, args.x + row * args.x_row, args.k);
    if (y_row != args.k) y[args.k].bits = 0;
  }
}

}  // namespace opcel
