// Transposition of W x W tiles of 4-byte elements in registers, and reductions of several vectors at once.
#pragma once

#include <utility>

#include "base/vec.h"

namespace opcel {
namespace detail {

// Lanes of a and b with bit S clear / set, b's shifted against a's by S: one butterfly of a transposition.
template <int S, int... I>
OPCEL_INLINE void exchange(vf& a, vf& b, std::integer_sequence<int, I...>) {
  const vf low = __builtin_shufflevector(a, b, (I & S ? W + I - S : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? W + I : I + S)...);
  a = low;
}

template <int S>
OPCEL_INLINE void exchange_all(vf (&t)[W]) {
  if constexpr (S < W) {
    OPCEL_UNROLL
    for (int i = 0; i < W; ++i)
      if (!(i & S)) exchange<S>(t[i], t[i | S], std::make_integer_sequence<int, W>{});
    exchange_all<2 * S>(t);
  }
}

template <int R, int S, class Op>
OPCEL_INLINE void reduce_pairs(vf (&t)[R], const Op& op) {
  if constexpr (S < W) {
    OPCEL_UNROLL
    for (int i = 0; i < R; i += 2 * S) {
      if (i + S < R) {
        exchange<S>(t[i], t[i + S], std::make_integer_sequence<int, W>{});
        t[i] = op(t[i], t[i + S]);
      } else {
        t[i] = op(t[i], swap<S>(t[i]));
      }
    }
    reduce_pairs<R, 2 * S>(t, op);
  }
}

}  // namespace detail

// Lane j of t[i] becomes lane i of t[j].
OPCEL_INLINE void transpose(vf (&t)[W]) { detail::exchange_all<1>(t); }

// Lane r of the result is op over the lanes of t[r], r < R <= W; other lanes are unspecified. Changes t.
template <int R, class Op>
OPCEL_INLINE vf reduce_rows(vf (&t)[R], const Op& op) {
  static_assert(R <= W);
  detail::reduce_pairs<R, 1>(t, op);
  return t[0];
}

}  // namespace opcel
