// Rows on a grid of their own: a reduction of each row, a number made of it, and the row's elements as bytes by that
// number. The second pass finds the row in cache.
#pragma once

#include "kernels/rows/reduce.h"

namespace opcel {

template <class T>
struct ScaledRowsArgs {
  float* scale;  // [rows]
  T* y;          // [rows][n]
  std::int64_t rows, n;
  std::int64_t rows_per_task;
};

// A task is rows_per_task rows. Of each the prologue gives what is reduced, `mid` makes its number of that, equal in all
// lanes, and `last` gives what is stored:
//   template <bool Tail> vf load(int64_t row, int64_t col, int lanes) const;
//   template <bool Tail> vf apply(vf v, int lanes) const;
//   template <bool Tail> vf load(int64_t row, int64_t col, int lanes, vf scale) const;
template <Reduction R, class T, class Pro, class Mid, class Last>
void scaled_rows_tasks(const ScaledRowsArgs<T>& args, const Pro& pro, const Mid& mid, const Last& last,
                       std::int64_t begin, std::int64_t end) {
  constexpr int U = 4;
  const std::int64_t stop = detail::least(args.rows, end * args.rows_per_task);
  for (std::int64_t row = begin * args.rows_per_task; row < stop; ++row) {
    detail::Reducer<R> acc[U];
    detail::for_row<U>(args.n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
      constexpr bool Tail = decltype(tail)::value;
      const vf v = pro.template load<Tail>(row, col, lanes);
      acc[u].add(detail::keep_lanes<Tail>(v, detail::Reducer<R>::identity, lanes));
    });
    OPCEL_UNROLL
    for (int u = 1; u < U; ++u) acc[0].join(acc[u]);
    const vf scale = mid.template apply<false>(set(acc[0].across(args.n)), W);
    args.scale[row] = scale[0];
    T* const y = args.y + row * args.n;
    detail::for_row<U>(args.n, [&](auto tail, int, std::int64_t col, int lanes) __attribute__((always_inline)) {
      constexpr bool Tail = decltype(tail)::value;
      store_t<Tail>(y + col, last.template load<Tail>(row, col, lanes, scale), lanes);
    });
  }
}

}  // namespace opcel
