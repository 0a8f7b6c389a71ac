// C[m, n] = epilogue(A[m, k] * B[k, n]) for a few rows of A, where reading B is nearly all the work.
//
// B lies in panels of NV vectors, f32 or bf16, and a task reads one stretch of it from end to end. bf16 is widened as
// it is read: A and the sums stay f32. Every element is summed in U interleaved partial sums, in the order of k within
// each, so results don't depend on how tasks are spread over threads.
#pragma once

#include "base/bf16.h"
#include "kernels/gemm/packed.h"

namespace opcel {

template <class T>
struct VectorArgs {
  const float* a;  // rows contiguous along k; a_row elements from one row to the next
  std::int64_t a_row;
  const T* b;  // [ceil(n / NR)][k][NR], NR = NV * W, columns past n are zero
  float* c;    // rows contiguous along n
  std::int64_t c_row;
  std::int64_t n, k;
  std::int64_t panels_per_task;
};

namespace detail {

// How far ahead of its reads a panel asks for B, in bytes.
constexpr int kVectorAhead = 1024;

template <int R, int NV, int U, int Steps, class T>
OPCEL_INLINE void vector_steps(vf (&acc)[U][R][NV], const float* a, std::int64_t a_row, const T* b) {
  OPCEL_UNROLL
  for (int s = 0; s < Steps; ++s) {
    vf panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      const T* const at = b + (s * NV + j) * W;
      panel[j] = load(at);
      if ((s * NV + j) * W * sizeof(T) % 64 == 0) __builtin_prefetch(reinterpret_cast<const char*>(at) + kVectorAhead);
    }
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const vf x = set(a[r * a_row + s]);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) accumulate(acc[s % U][r][j], x, panel[j]);
    }
  }
}

template <int R, int NV, class T, class Epi>
__attribute__((noinline)) void vector_panel(const VectorArgs<T>& args, std::int64_t panel, const Epi& epi) {
  constexpr int U = partial_sums<NV, R>();
  constexpr int Steps = U > 4 ? U : 4;
  const GemmPlace at{0, 0, panel * NV * W, args.n - panel * NV * W};
  const float* a = args.a;
  const T* b = args.b + panel * args.k * NV * W;
  float* const c = args.c + at.col;
  vf acc[U][R][NV] = {}, total[U][R][NV];
  bool carried = false;
  for (std::int64_t i = args.k / Steps;;) {
    for (const std::int64_t stop = i > kChunk / Steps ? i - kChunk / Steps : 0; i > stop; --i) {
      vector_steps<R, NV, U, Steps>(acc, a, args.a_row, b);
      a += Steps;
      b += Steps * NV * W;
    }
    if (i == 0) break;
    carry(total, acc, !carried);
    carried = true;
  }
  for (std::int64_t i = args.k % Steps; i > 0; --i, ++a, b += NV * W)
    vector_steps<R, NV, U, 1>(acc, a, args.a_row, b);
  if (carried) add_total(acc, total);
  join_partial_sums(acc);
  if (at.cols >= NV * W) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j)
        store(c + r * args.c_row + j * W, epi.template apply<false>(acc[0][r][j], 0, r, at.col + j * W, W));
    }
  } else {
    float tile[R * NV * W];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store(tile + (r * NV + j) * W, acc[0][r][j]);
    }
    gemm_store_edge<NV>(tile, R, c, args.c_row, epi, at);
  }
}

}  // namespace detail

// Tasks [begin, end) of ceil(panels / panels_per_task) for the R rows of A.
template <int R, int NV, class T, class Epi>
void vector_tasks(const VectorArgs<T>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  const std::int64_t panels = detail::ceil_div(args.n, NV * W);
  const std::int64_t last = detail::least(panels, end * args.panels_per_task);
  for (std::int64_t panel = begin * args.panels_per_task; panel < last; ++panel)
    detail::vector_panel<R, NV>(args, panel, epi);
}

}  // namespace opcel
