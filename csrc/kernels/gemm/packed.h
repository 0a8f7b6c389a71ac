// C[batch, m, n] = epilogue(A[batch, m, k] * B[batch, k, n]) in f32, B packed into column panels.
//
// A register tile is R rows by NV vectors. The loop over panels is outside of the loop over rows, so each panel of B
// crosses memory once a task while the rows of A stay in cache. Every element is summed in the order of k (in U
// interleaved partial sums when the tallest tile is so small that latency would bound it), whichever tile computes it:
// results depend neither on how rows are cut into tiles nor on how tasks are spread over threads.
#pragma once

#include "base/tiling.h"
#include "base/vec.h"
#include "kernels/gemm/tasks.h"

namespace opcel {

struct GemmArgs {
  const float* a;  // rows contiguous along k; a_row elements from one row to the next
  std::int64_t a_batch, a_row;
  const float* b;  // [ceil(n / NR)][k][NR], NR = NV * W, columns past n are zero
  std::int64_t b_batch;
  float* c;  // rows contiguous along n
  std::int64_t c_batch, c_row;
  std::int64_t batch, m, n, k;
  std::int64_t rows_per_task, panels_per_task;
};

namespace detail {

// Partial sums per element: enough independent additions to hide their latency.
template <int NV, int Tallest>
constexpr int partial_sums() {
  return NV * Tallest >= 8 ? 1 : NV * Tallest >= 4 ? 2 : NV * Tallest >= 2 ? 4 : 8;
}

// acc[0] becomes the sum of all partial sums, in their order.
template <int U, int R, int NV>
OPCEL_INLINE void join_partial_sums(vf (&acc)[U][R][NV]) {
  OPCEL_UNROLL
  for (int u = 1; u < U; ++u) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) acc[0][r][j] += acc[u][r][j];
    }
  }
}

// How far ahead an instance for few rows, which is bound by memory, asks for B, in floats.
constexpr int kPrefetchAhead = 256;

constexpr int kLine = 64;  // bytes of a cache line

// Elements along k that are unrolled.
constexpr int unrolled(int U) { return U > 4 ? U : 4; }

// Rows of A by pointers three rows apart: x86 addresses p, p + s and p + 2 s from them, so 14 rows take 5 registers.
template <int R>
struct RowPointers {
  const float* at[(R + 2) / 3];
  std::int64_t stride;

  OPCEL_INLINE RowPointers(const float* a, std::int64_t row) : stride(row) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) at[i] = a + 3 * i * row;
  }
  OPCEL_INLINE float get(int r, int k) const { return at[r / 3][r % 3 * stride + k]; }
  OPCEL_INLINE void advance(int k) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) {
      at[i] += k;
      keep(at[i]);
    }
  }
};

template <int R, int NV, int U, bool Streams, int Steps>
OPCEL_INLINE void gemm_steps(vf (&acc)[U][R][NV], RowPointers<R>& a, const float*& b) {
  OPCEL_UNROLL
  for (int s = 0; s < Steps; ++s) {
    vf panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      panel[j] = load(b + (s * NV + j) * W);
      if constexpr (Streams) __builtin_prefetch(b + (s * NV + j) * W + kPrefetchAhead);
    }
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf x = set(a.get(r, s));
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) accumulate(acc[s % U][r][j], x, panel[j]);
    }
  }
  a.advance(Steps);
  b += Steps * NV * W;
}

// acc[0] = R rows of A times a panel. Ahead: where the panel that is read next begins, of which a step without Streams
// asks for `Lines` cache lines.
template <int NV, int U, bool Streams, int R, int Lines>
OPCEL_INLINE void gemm_sums(vf (&acc)[U][R][NV], const float* a_first, std::int64_t a_row, const float* b,
                            std::int64_t k, const char* ahead) {
  constexpr int Steps = unrolled(U);
  vf total[U][R][NV];
  RowPointers<R> a(a_first, a_row);
  bool carried = false;
  for (std::int64_t i = k / Steps;;) {
    for (const std::int64_t stop = i > kChunk / Steps ? i - kChunk / Steps : 0; i > stop; --i) {
      if constexpr (!Streams) {
        OPCEL_UNROLL
        for (int line = 0; line < Lines; ++line) __builtin_prefetch(ahead + line * kLine);
        ahead += Lines * kLine;
      }
      gemm_steps<R, NV, U, Streams, Steps>(acc, a, b);
    }
    if (i == 0) break;
    carry(total, acc, !carried);
    carried = true;
  }
  for (std::int64_t i = k % Steps; i > 0; --i) gemm_steps<R, NV, U, Streams, 1>(acc, a, b);
  if (carried) add_total(acc, total);
  join_partial_sums(acc);
}

struct GemmPlace {
  std::int64_t batch, row, col, cols;  // cols: columns of C from col on, at most NR are written
};

// A tile at C's right edge, from memory: the last vector may be partial and further ones absent.
template <int NV, class Epi>
__attribute__((noinline)) void gemm_store_edge(const float* tile, int rows, float* c, std::int64_t c_row,
                                               const Epi& epi, const GemmPlace& at) {
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < NV && j * W < at.cols; ++j) {
      const int lanes = static_cast<int>(least(W, at.cols - j * W));
      const vf v = load(tile + (r * NV + j) * W);
      store_n(c + r * c_row + j * W, epi.template apply<true>(v, at.batch, at.row + r, at.col + j * W, lanes), lanes);
    }
  }
}

template <int NV, int U, bool Streams, int R, class Epi>
__attribute__((noinline)) void gemm_tile(const float* a_first, std::int64_t a_row, const float* b, std::int64_t k,
                                         float* c, std::int64_t c_row, const Epi& epi, const GemmPlace& at,
                                         const char* ahead) {
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      __builtin_prefetch(c + r * c_row + j * W, 1);
      prefetch_epilogue(0, epi, at.batch, at.row + r, at.col + j * W);
    }
  }
  vf acc[U][R][NV] = {};
  gemm_sums<NV, U, Streams, R, 1>(acc, a_first, a_row, b, k, ahead);
  if (at.cols >= NV * W) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j)
        store(c + r * c_row + j * W, epi.template apply<false>(acc[0][r][j], at.batch, at.row + r, at.col + j * W, W));
    }
  } else {
    float tile[R * NV * W];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store(tile + (r * NV + j) * W, acc[0][r][j]);
    }
    gemm_store_edge<NV>(tile, R, c, c_row, epi, at);
  }
}

}  // namespace detail

// Tasks [begin, end). Rows: the tile heights to instantiate, descending. Any count of rows can be cut if the last is 1;
// otherwise every task's row count must be a sum of them that a fewest-tiles even split finds.
template <int NV, int... Rows, class Epi>
void gemm_tasks(const GemmArgs& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  using Cut = detail::Cut<Rows...>;
  constexpr int NR = NV * W;
  constexpr int U = detail::partial_sums<NV, Cut::largest>();
  for (std::int64_t task = begin; task < end; ++task) {
    const auto [batch, first_row, last_row, first_panel, last_panel, is_last_group] = detail::gemm_task<NV>(args, task);
    const float* a = args.a + batch * args.a_batch;
    float* c = args.c + batch * args.c_batch;
    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
      const float* b = args.b + batch * args.b_batch + panel * args.k * NR;
      const std::int64_t col = panel * NR;
      // While a panel is in use the one that this task or the next reads after it comes closer, a line for each step of
      // a tile. Into the first cache: hints for the second alone are late where a page's address must be looked up.
      const bool again = panel + 1 == last_panel && !is_last_group;
      const float* const after = again ? b - (panel - first_panel) * args.k * NR : b + args.k * NR;
      const char* ahead = reinterpret_cast<const char*>(after);
      const char* const stop = ahead + args.k * NR * static_cast<int>(sizeof(float));
      for (std::int64_t row = first_row; row < last_row;) {
        const std::int64_t height = Cut::next(last_row - row);
        if (height == 0) break;
        const detail::GemmPlace at{batch, row, col, args.n - col};
        const char* const hint = ahead < stop ? ahead : reinterpret_cast<const char*>(b);
        const auto tile = [&](auto tall) __attribute__((always_inline)) {
          constexpr int R = decltype(tall)::value;
          detail::gemm_tile<NV, U, (Cut::largest <= 4), R>(a + row * args.a_row, args.a_row, b, args.k,
                                                           c + row * args.c_row + col, args.c_row, epi, at, hint);
        };
        ((height == Rows ? tile(detail::Int<Rows>{}) : void()), ...);
        ahead += args.k / detail::unrolled(U) * detail::kLine;
        row += height;
      }
    }
  }
}

struct PackArgs {
  const float* b;  // element (k, n) of batch i at b[i * b_batch + k * b_k + n * b_n]
  std::int64_t b_batch, b_k, b_n;
  float* packed;  // [batch][ceil(n / NR)][k][NR]; packed_batch elements from one batch to the next
  std::int64_t packed_batch;
  std::int64_t batch, k, n;
};

// Number of tasks: batch, then panels.
template <int NV>
OPCEL_INLINE std::int64_t pack_b_task_count(const PackArgs& args) {
  return args.batch * detail::ceil_div(args.n, NV * W);
}

// Packs a B known only at run time into the panels that gemm_tasks<NV> reads.
template <int NV>
void pack_b_tasks(const PackArgs& args, std::int64_t begin, std::int64_t end) {
  constexpr int NR = NV * W;
  const std::int64_t panels = detail::ceil_div(args.n, NR);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t panel = task % panels, batch = task / panels;
    const std::int64_t cols = detail::least(NR, args.n - panel * NR);
    const float* from = args.b + batch * args.b_batch + panel * NR * args.b_n;
    float* to = args.packed + batch * args.packed_batch + panel * args.k * NR;
    if (args.b_n == 1) {
      for (std::int64_t k = 0; k < args.k; ++k) {
        for (int j = 0; j < NV; ++j) {
          const std::int64_t lanes = cols - j * W;
          const float* p = from + k * args.b_k + j * W;
          store(to + k * NR + j * W, lanes >= W ? load(p) : load_n(p, lanes > 0 ? static_cast<int>(lanes) : 0));
        }
      }
    } else {
      for (std::int64_t k = 0; k < args.k; ++k)
        for (std::int64_t j = 0; j < NR; ++j) to[k * NR + j] = j < cols ? from[k * args.b_k + j * args.b_n] : 0.0f;
    }
  }
}

}  // namespace opcel
