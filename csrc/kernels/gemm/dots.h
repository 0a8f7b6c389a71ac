// C[batch, m, n] = epilogue(A[batch, m, k] * B[batch, k, n]) with instructions that add up the products of a group of
// neighbours along k: pairs of bf16 with sums in f32, or quads of u8 and s8 with sums in s32, which are exact.
//
// A's rows hold whole groups, B is packed into column panels of groups along k, so that a register tile of R rows by NV
// vectors adds a group a lane with one instruction. The loop over panels is outside of the loop over rows. Every
// element is summed in the order of k, whichever tile computes it: results depend neither on how rows are cut into
// tiles nor on how tasks are spread over threads.
#pragma once

#include "base/groups.h"
#include "base/narrow.h"
#include "base/tiling.h"
#include "kernels/gemm/tasks.h"

namespace opcel {

// A: bf16 or uint8_t. The epilogue's `apply` takes sums, vf or vi, and gives what is stored.
template <class A, class C>
struct GemmDotArgs {
  static constexpr int group = 4 / sizeof(A);
  using B = std::conditional_t<std::is_same_v<A, bf16>, bf16, std::int8_t>;
  using Sums = std::conditional_t<std::is_same_v<A, bf16>, vf, vi>;

  const A* a;  // rows contiguous along k, in bf16 zero past k in the last group; a_row elements from row to row
  std::int64_t a_batch, a_row;
  const B* b;  // [ceil(n / NR)][ceil(k / group)][NR][group], NR = NV * W, zero past n and k; see Starts
  std::int64_t b_batch;
  C* c;  // rows contiguous along n
  std::int64_t c_batch, c_row;
  std::int64_t batch, m, n, k;
  std::int64_t rows_per_task, panels_per_task;
};

// Where sums start. Without: at zero. Others have vi start(vi head, int64_t batch, int64_t row) const, and each panel
// of B begins with a head, NR of s32: what a zero point of A makes up for, or the factor of one that is known only in a
// run.
struct NoStart {};

namespace detail {

OPCEL_INLINE vf load_sums(const float* p) { return load(p); }
OPCEL_INLINE vi load_sums(const std::int32_t* p) { return load_i(p); }
OPCEL_INLINE void store_sums(float* p, vf v) { store(p, v); }
OPCEL_INLINE void store_sums(std::int32_t* p, vi v) { store_i(p, v); }

// Rows of A by pointers three rows apart: x86 addresses p, p + s and p + 2 s from them.
template <int R, class A>
struct GroupRows {
  const A* at[(R + 2) / 3];
  std::int64_t stride;
  static constexpr int group = 4 / sizeof(A);

  OPCEL_INLINE GroupRows(const A* a, std::int64_t row) : stride(row) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) at[i] = a + 3 * i * row;
  }
  OPCEL_INLINE auto get(int r, int step) const { return set_group(at[r / 3] + (r % 3 * stride + group * step)); }
  OPCEL_INLINE void advance(int count) {
    OPCEL_UNROLL
    for (int i = 0; i < (R + 2) / 3; ++i) {
      at[i] += group * count;
      asm volatile("" : "+r"(at[i]));
    }
  }
};

template <int R, int NV, int Steps, class Sums, class A, class B>
OPCEL_INLINE void gemm_dot_steps(Sums (&acc)[R][NV], GroupRows<R, A>& a, const B*& b) {
  constexpr int group = 4 / sizeof(A);
  OPCEL_UNROLL
  for (int s = 0; s < Steps; ++s) {
    vi panel[NV];
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) panel[j] = load_groups(b + group * (s * NV + j) * W);
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      const vi x = a.get(r, s);
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) dot(acc[r][j], x, panel[j]);
    }
  }
  a.advance(Steps);
  b += group * Steps * NV * W;
}

struct GemmDotPlace {
  std::int64_t batch, row, col, cols;  // cols: columns of C from col on, at most NR are written
};

// A tile at C's right edge, from memory: the last vector may be partial and further ones absent.
template <int NV, class S, class C, class Epi>
__attribute__((noinline)) void gemm_dot_edge(const S* tile, int rows, C* c, std::int64_t c_row, const Epi& epi,
                                             const GemmDotPlace& at) {
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < NV && j * W < at.cols; ++j) {
      const int lanes = static_cast<int>(least(W, at.cols - j * W));
      const auto sums = load_sums(tile + (r * NV + j) * W);
      const vf v = epi.template apply<true>(sums, at.batch, at.row + r, at.col + j * W, lanes);
      store_t<true>(c + r * c_row + j * W, v, lanes);
    }
  }
}

template <int NV, int R, class A, class B, class C, class Epi, class Start>
__attribute__((noinline)) void gemm_dot_tile(const A* a_first, std::int64_t a_row, const B* b, std::int64_t count, C* c,
                                             std::int64_t c_row, const Epi& epi, const Start& start,
                                             const GemmDotPlace& at, const char* ahead) {
  using Sums = typename GemmDotArgs<A, C>::Sums;
  constexpr int Steps = 4, Lines = 2;
  OPCEL_UNROLL
  for (int r = 0; r < R; ++r) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) prefetch_epilogue(0, epi, at.batch, at.row + r, at.col + j * W);
  }
  Sums acc[R][NV] = {};
  if constexpr (!std::is_same_v<Start, NoStart>) {
    OPCEL_UNROLL
    for (int j = 0; j < NV; ++j) {
      const vi head = load_i(reinterpret_cast<const std::int32_t*>(b) + j * W);
      OPCEL_UNROLL
      for (int r = 0; r < R; ++r) acc[r][j] = start.start(head, at.batch, at.row + r);
    }
    b += 4 / static_cast<int>(sizeof(B)) * NV * W;
  }
  GroupRows<R, A> a(a_first, a_row);
  for (std::int64_t i = count / Steps; i > 0; --i) {
    OPCEL_UNROLL
    for (int line = 0; line < Lines; ++line) __builtin_prefetch(ahead + line * 64);
    ahead += Lines * 64;
    gemm_dot_steps<R, NV, Steps>(acc, a, b);
  }
  for (std::int64_t i = count % Steps; i > 0; --i) gemm_dot_steps<R, NV, 1>(acc, a, b);
  if (at.cols >= NV * W) {
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j)
        store(c + r * c_row + j * W, epi.template apply<false>(acc[r][j], at.batch, at.row + r, at.col + j * W, W));
    }
  } else {
    std::conditional_t<std::is_same_v<Sums, vf>, float, std::int32_t> tile[R * NV * W];
    OPCEL_UNROLL
    for (int r = 0; r < R; ++r) {
      OPCEL_UNROLL
      for (int j = 0; j < NV; ++j) store_sums(tile + (r * NV + j) * W, acc[r][j]);
    }
    gemm_dot_edge<NV>(tile, R, c, c_row, epi, at);
  }
}

}  // namespace detail

// Tasks [begin, end). Rows: the tile heights to instantiate, descending. Any count of rows can be cut if the last is 1;
// otherwise every task's row count must be a sum of them that a fewest-tiles even split finds.
template <int NV, int... Rows, class A, class C, class Epi, class Start>
void gemm_dot_tasks(const GemmDotArgs<A, C>& args, const Epi& epi, const Start& start, std::int64_t begin,
                    std::int64_t end) {
  using Args = GemmDotArgs<A, C>;
  using Cut = detail::Cut<Rows...>;
  constexpr int NR = NV * W;
  const std::int64_t count = detail::ceil_div(args.k, Args::group);
  const std::int64_t stride = (count + !std::is_same_v<Start, NoStart>)*NR * Args::group;
  for (std::int64_t task = begin; task < end; ++task) {
    const auto [batch, first_row, last_row, first_panel, last_panel, is_last_group] = detail::gemm_task<NV>(args, task);
    const A* a = args.a + batch * args.a_batch;
    C* c = args.c + batch * args.c_batch;
    for (std::int64_t panel = first_panel; panel < last_panel; ++panel) {
      const typename Args::B* b = args.b + batch * args.b_batch + panel * stride;
      const std::int64_t col = panel * NR;
      // While a panel is in use the one that is read after it comes closer, some lines for each step of a tile.
      const bool again = panel + 1 == last_panel && !is_last_group;
      const char* ahead = reinterpret_cast<const char*>(again ? b - (panel - first_panel) * stride : b + stride);
      const char* const stop = ahead + stride * static_cast<int>(sizeof(*b));
      for (std::int64_t row = first_row; row < last_row;) {
        const std::int64_t height = Cut::next(last_row - row);
        if (height == 0) break;
        const detail::GemmDotPlace at{batch, row, col, args.n - col};
        const char* const hint = ahead < stop ? ahead : reinterpret_cast<const char*>(b);
        const auto tile = [&](auto tall) __attribute__((always_inline)) {
          constexpr int R = decltype(tall)::value;
          detail::gemm_dot_tile<NV, R>(a + row * args.a_row, args.a_row, b, count, c + row * args.c_row + col,
                                       args.c_row, epi, start, at, hint);
        };
        ((height == Rows ? tile(detail::Int<Rows>{}) : void()), ...);
        ahead += count / 4 * 2 * 64;
        row += height;
      }
    }
  }
}

template <class X, class Y>
struct GroupRowsArgs {
  const X* x;  // rows contiguous; x_row elements from one row to the next
  std::int64_t x_row;
  Y* y;  // rows of whole groups end to end, zero past k in the last
  std::int64_t rows, k;
  std::int64_t rows_per_task;
};

// Rows as gemm_dot_tasks reads them: from f32 to bf16, or u8 as they are. A task is rows_per_task rows.
template <class X, class Y>
void group_rows_tasks(const GroupRowsArgs<X, Y>& args, std::int64_t begin, std::int64_t end) {
  constexpr int group = 4 / sizeof(Y);
  const std::int64_t y_row = detail::ceil_div(args.k, group) * group;
  const std::int64_t last = detail::least(args.rows, end * args.rows_per_task);
  for (std::int64_t row = begin * args.rows_per_task; row < last; ++row) {
    const X* const x = args.x + row * args.x_row;
    Y* const y = args.y + row * y_row;
    if constexpr (std::is_same_v<X, Y>)
      __builtin_memcpy(y, x, static_cast<std::size_t>(args.k) * sizeof(Y));
    else
      round_row(y, x, args.k);
    for (std::int64_t i = args.k; i < y_row; ++i) y[i] = Y(0);
  }
}

}  // namespace opcel
