// Softmax and log-softmax over rows: maximum, exponentials and their sum, then the quotient.
//
// A row with a NaN, a +inf or nothing but -inf is all NaN. Probabilities below 2^-126 are 0.
#pragma once

#include "base/vmath.h"
#include "kernels/rows/row.h"

namespace opcel {
namespace detail {

template <bool Log, class Pro, class Epi>
OPCEL_INLINE void softmax_row(float* y, std::int64_t row, std::int64_t n, const Pro& pro, const Epi& epi) {
  constexpr int U = 4;
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
    store_t<Tail>(y + col, epi.template apply<Tail>(Log ? v - last : v * last, row, col, lanes), lanes);
  });
}

template <bool Log, class Pro, class Epi>
OPCEL_INLINE void softmax_rows(const RowArgs& args, const Pro& pro, const Epi& epi, std::int64_t begin,
                               std::int64_t end) {
  const std::int64_t last = least(args.rows, end * args.rows_per_task);
  for (std::int64_t row = begin * args.rows_per_task; row < last; ++row)
    softmax_row<Log>(args.y + row * args.y_row, row, args.n, pro, epi);
}

}  // namespace detail

// Tasks [begin, end) of row_task_count(args).
template <class Pro, class Epi>
void softmax_tasks(const RowArgs& args, const Pro& pro, const Epi& epi, std::int64_t begin, std::int64_t end) {
  detail::softmax_rows<false>(args, pro, epi, begin, end);
}

template <class Pro, class Epi>
void log_softmax_tasks(const RowArgs& args, const Pro& pro, const Epi& epi, std::int64_t begin, std::int64_t end) {
  detail::softmax_rows<true>(args, pro, epi, begin, end);
}

}  // namespace opcel
