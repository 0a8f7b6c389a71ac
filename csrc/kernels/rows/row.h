// What the row kernels share: rows of n contiguous elements, each computed whole by one task.
//
// A prologue gives the elements of a row, an epilogue what is stored in place of a result:
//   template <bool Tail> vf load(int64_t row, int64_t col, int lanes) const;
//   template <bool Tail> vf apply(vf v, int64_t row, int64_t col, int lanes) const;
// With Tail only the first `lanes` (< W) lanes count and no memory past them may be read. What a `Narrow` makes of a
// result by an `apply` of its own is written as elements of another type, in place of the f32 result or beside it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/narrow.h"
#include "base/tiling.h"

namespace opcel {

template <class T = float>
struct RowArgs {
  float* y;  // also scratch: holds intermediate values of a row until its end; may be null where there is a Narrow
  std::int64_t y_row;
  std::int64_t rows, n;
  std::int64_t rows_per_task;
  T* narrow = nullptr;  // [rows][n], written by a Narrow
};

// No second result.
struct NoNarrow {};

template <class T>
OPCEL_INLINE std::int64_t row_task_count(const RowArgs<T>& args) { return detail::ceil_div(args.rows, args.rows_per_task); }

namespace detail {

template <bool Value>
struct Bool {
  static constexpr bool value = Value;
};

// f(Bool<tail>, u, col, lanes) over a row, u = 0 .. U-1 in turn, so that f can keep U independent accumulators.
template <int U, class F>
OPCEL_INLINE void for_row(std::int64_t n, const F& f) {
  std::int64_t col = 0;
  for (; col + U * W <= n; col += U * W) {
    OPCEL_UNROLL
    for (int u = 0; u < U; ++u) f(Bool<false>{}, u, col + u * W, W);
  }
  for (; col + W <= n; col += W) f(Bool<false>{}, 0, col, W);
  if (col < n) f(Bool<true>{}, 0, col, static_cast<int>(n - col));
}

// v in the lanes that count, `other` in those past a tail.
template <bool Tail>
OPCEL_INLINE vf keep_lanes(vf v, float other, int lanes) {
  if constexpr (Tail)
    return select(first_lanes(lanes), v, set(other));
  else
    return v;
}

// The result v of a row kernel, to the row's place y in memory or in scratch, and narrowed to where that belongs.
template <bool Tail, class T, class Nar>
OPCEL_INLINE void store_row(const RowArgs<T>& args, const Nar& nar, float* y, vf v, std::int64_t row, std::int64_t col,
                            int lanes) {
  if constexpr (!std::is_same_v<Nar, NoNarrow>)
    store_t<Tail>(args.narrow + row * args.n + col, nar.template apply<Tail>(v, row, col, lanes), lanes);
  if (std::is_same_v<Nar, NoNarrow> || args.y) store_t<Tail>(y + col, v, lanes);
}

template <int U, class Op>
OPCEL_INLINE vf combine(const vf (&acc)[U], const Op& op) {
  vf v = acc[0];
  OPCEL_UNROLL
  for (int u = 1; u < U; ++u) v = op(v, acc[u]);
  return v;
}

struct Add {
  OPCEL_INLINE vf operator()(vf a, vf b) const { return a + b; }
};

struct Max {
  OPCEL_INLINE vf operator()(vf a, vf b) const { return max(a, b); }
};

}  // namespace detail
}  // namespace opcel
