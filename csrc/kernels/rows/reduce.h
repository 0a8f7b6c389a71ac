// Reductions of f32 over the last axis, x[outer][n] -> y[outer], and over a middle one, x[outer][n][inner] ->
// y[outer][inner].
//
// A NaN anywhere gives NaN, for max and min too. Empty (n = 0): the operation's identity, NaN for the mean. The order
// of summation depends on n, inner and W alone.
#pragma once

#include "kernels/rows/row.h"

namespace opcel {

enum class Reduction { sum, mean, max, min, product, sum_squares };

struct ReduceArgs {
  float* y;  // dense
  std::int64_t outer, n, inner;
  std::int64_t outputs_per_task;  // last axis: of `outer`, best a multiple of W; middle: of `inner`, best of 8 W
};

namespace detail {

template <Reduction R>
struct Reducer {
  static constexpr bool ordered = R == Reduction::max || R == Reduction::min;
  static constexpr float identity = R == Reduction::product ? 1.0f
                                    : R == Reduction::max   ? -__builtin_inff()
                                    : R == Reduction::min   ? __builtin_inff()
                                                            : 0.0f;

  vf value = set(identity);
  vi unordered = {};  // lanes that met a NaN, which max and min may drop

  OPCEL_INLINE void add(vf x) {
    if constexpr (R == Reduction::sum_squares)
      value = fma(x, x, value);
    else
      join(x);
    if constexpr (ordered) unordered |= x != x;
  }
  OPCEL_INLINE void join(vf x) {
    if constexpr (R == Reduction::max)
      value = opcel::max(value, x);
    else if constexpr (R == Reduction::min)
      value = opcel::min(value, x);
    else if constexpr (R == Reduction::product)
      value *= x;
    else
      value += x;
  }
  OPCEL_INLINE void join(const Reducer& other) {
    join(other.value);
    unordered |= other.unordered;
  }
  OPCEL_INLINE vf lanes(std::int64_t n) const {
    if constexpr (ordered) return select(unordered, set(__builtin_nanf("")), value);
    if constexpr (R == Reduction::mean) return value / static_cast<float>(n);
    return value;
  }
  OPCEL_INLINE float across(std::int64_t n) const {
    if constexpr (R == Reduction::max) return hmax(lanes(n));
    if constexpr (R == Reduction::min) return hmin(lanes(n));
    if constexpr (R == Reduction::product)
      return detail::reduce(value, [](vf a, vf b) __attribute__((always_inline)) { return a * b; });
    if constexpr (R == Reduction::mean) return hsum(value) / static_cast<float>(n);
    return hsum(value);
  }
};

}  // namespace detail

inline std::int64_t reduce_last_task_count(const ReduceArgs& args) {
  return detail::ceil_div(args.outer, args.outputs_per_task);
}

// Over the last axis (inner is not read). pro.load has the coordinates (outer index, index along n); epi.apply sees the
// results as one row: row 0, col = outer index.
template <Reduction R, class Pro, class Epi>
void reduce_last_tasks(const ReduceArgs& args, const Pro& pro, const Epi& epi, std::int64_t begin, std::int64_t end) {
  constexpr int U = 4;
  const std::int64_t last = detail::least(args.outer, end * args.outputs_per_task);
  for (std::int64_t first = begin * args.outputs_per_task; first < last; first += W) {
    const int count = static_cast<int>(detail::least(W, last - first));
    float results[W] = {};
    for (int i = 0; i < count; ++i) {
      detail::Reducer<R> acc[U];
      detail::for_row<U>(args.n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
        constexpr bool Tail = decltype(tail)::value;
        acc[u].add(detail::keep_lanes<Tail>(pro.template load<Tail>(first + i, col, lanes),
                                            detail::Reducer<R>::identity, lanes));
      });
      OPCEL_UNROLL
      for (int u = 1; u < U; ++u) acc[0].join(acc[u]);
      results[i] = acc[0].across(args.n);
    }
    if (count == W)
      store(args.y + first, epi.template apply<false>(load(results), 0, first, W));
    else
      store_n(args.y + first, epi.template apply<true>(load(results), 0, first, count), count);
  }
}

inline std::int64_t reduce_middle_task_count(const ReduceArgs& args) {
  return args.outer * detail::ceil_div(args.inner, args.outputs_per_task);
}

namespace detail {

template <Reduction R, int V, bool Tail, class Pro, class Epi>
OPCEL_INLINE void reduce_columns(const ReduceArgs& args, const Pro& pro, const Epi& epi, std::int64_t outer,
                                 std::int64_t col, int lanes) {
  Reducer<R> acc[V];
  for (std::int64_t i = 0; i < args.n; ++i) {
    OPCEL_UNROLL
    for (int v = 0; v < V; ++v) acc[v].add(pro.template load<Tail>(outer * args.n + i, col + v * W, lanes));
  }
  OPCEL_UNROLL
  for (int v = 0; v < V; ++v) {
    const std::int64_t at = col + v * W;
    store_t<Tail>(args.y + outer * args.inner + at, epi.template apply<Tail>(acc[v].lanes(args.n), outer, at, lanes),
                  lanes);
  }
}

}  // namespace detail

// Over a middle axis. pro.load has the coordinates (outer index * n + index along n, index along inner); epi.apply
// (outer index, index along inner).
template <Reduction R, class Pro, class Epi>
void reduce_middle_tasks(const ReduceArgs& args, const Pro& pro, const Epi& epi, std::int64_t begin, std::int64_t end) {
  constexpr int V = 8;
  const std::int64_t groups = detail::ceil_div(args.inner, args.outputs_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t outer = task / groups;
    std::int64_t col = task % groups * args.outputs_per_task;
    const std::int64_t last = detail::least(args.inner, col + args.outputs_per_task);
    for (; col + V * W <= last; col += V * W) detail::reduce_columns<R, V, false>(args, pro, epi, outer, col, W);
    for (; col + W <= last; col += W) detail::reduce_columns<R, 1, false>(args, pro, epi, outer, col, W);
    if (col < last) detail::reduce_columns<R, 1, true>(args, pro, epi, outer, col, static_cast<int>(last - col));
  }
}

}  // namespace opcel
