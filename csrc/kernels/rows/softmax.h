// Softmax and log-softmax over rows: maximum, exponentials and their sum, then the quotient.
//
// A row with a NaN, a +inf or nothing but -inf is all NaN. Probabilities below 2^-126 are 0.
#pragma once

#include "base/vmath.h"
#include "kernels/rows/row.h"

namespace opcel {
namespace detail {

template <bool Log, class T, class Pro, class Epi, class Nar>
OPCEL_INLINE void softmax_row(const RowArgs<T>& args, float* y, std::int64_t row, const Pro& pro, const Epi& epi,
                              const Nar& nar) {
  constexpr int U = 4;
  const std::int64_t n = args.n;
  vf top[U], sum[U];
  OPCEL_UNROLL
  for (int u = 0; u < U; ++u) {
    top[u] = set(-__builtin_inff());
    sum[u] = vf{};
  }
  for_row<U>(n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
    constexpr bool Tail = decltype(tail)::value;
    const vf v = pro.template load<Tail>(row, col, lanes);
    store_t<Tail>(y + col, v, lanes);
    top[u] = max(top[u], keep_lanes<Tail>(v, -__builtin_inff(), lanes));
  });
  const vf m = set(hmax(combine(top, Max{})));
  for_row<U>(n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
    constexpr bool Tail = decltype(tail)::value;
    const vf v = load_t<Tail>(y + col, lanes) - m;
    const vf e = exp_nonpositive(v);
    store_t<Tail>(y + col, Log ? v : e, lanes);
    sum[u] += keep_lanes<Tail>(e, 0.0f, lanes);
  });
  const float total = hsum(combine(sum, Add{}));
  const vf last = set(Log ? log(total) : 1.0f / total);
  for_row<U>(n, [&](auto tail, int, std::int64_t col, int lanes) __attribute__((always_inline)) {
    constexpr bool Tail = decltype(tail)::value;
    const vf v = load_t<Tail>(y + col, lanes);
    const vf result = epi.template apply<Tail>(Log ? v - last : v * last, row, col, lanes);
    store_row<Tail>(args, nar, y, result, row, col, lanes);
  });
}

template <bool Log, class T, class Pro, class Epi, class Nar>
OPCEL_INLINE void softmax_rows(const RowArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar,
                               std::int64_t begin, std::int64_t end) {
  float* scratch = nullptr;
  if constexpr (!std::is_same_v<Nar, NoNarrow>)
    if (!args.y) scratch = static_cast<float*>(__builtin_alloca(sizeof(float) * static_cast<std::size_t>(args.n)));
  const std::int64_t last = least(args.rows, end * args.rows_per_task);
  for (std::int64_t row = begin * args.rows_per_task; row < last; ++row)
    softmax_row<Log>(args, scratch ? scratch : args.y + row * args.y_row, row, pro, epi, nar);
}

}  // namespace detail

// Tasks [begin, end) of row_task_count(args).
template <class T, class Pro, class Epi, class Nar>
void softmax_tasks(const RowArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar, std::int64_t begin,
               std::int64_t end) {
  detail::softmax_rows<false>(args, pro, epi, nar, begin, end);
}

template <class T, class Pro, class Epi, class Nar>
void log_softmax_tasks(const RowArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar, std::int64_t begin,
               std::int64_t end) {
  detail::softmax_rows<true>(args, pro, epi, nar, begin, end);
}

}  // namespace opcel
