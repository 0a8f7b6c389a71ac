// How an axis is cut into register tiles.
#pragma once

#include <cstdint>

#include "base/vec.h"

namespace opcel {
namespace detail {

OPCEL_INLINE std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
OPCEL_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A compile-time integer as a function argument.
template <int N>
struct Int {
  static constexpr int value = N;
};

template <class F, int... I>
OPCEL_INLINE void each(const F& f, std::integer_sequence<int, I...>) {
  (f(Int<I>{}), ...);
}
// f(Int<0>) .. f(Int<N - 1>): straight-line code from the start, whatever g++ thinks of its size.
template <int N, class F>
OPCEL_INLINE void each(const F& f) {
  each(f, std::make_integer_sequence<int, N>{});
}

// An epilogue that reads another tensor may have a const member `prefetch` that takes the coordinates `apply` takes
// before `lanes`. A tile calls it for each of its vectors before it computes them, so that the reads hide behind the
// sums.
template <class Epi, class... Coordinates>
OPCEL_INLINE auto prefetch_epilogue(int, const Epi& epi, Coordinates... at) -> decltype(epi.prefetch(at...)) {
  epi.prefetch(at...);
}
template <class Epi, class... Coordinates>
OPCEL_INLINE void prefetch_epilogue(long, const Epi&, Coordinates...) {}

// Products summed in registers before the sum joins the total. One long chain of additions loses about sqrt(n)
// roundings; chunks keep n small, for less than 1 % of a tile's time.
constexpr int kChunk = 512;

// Moves the chunk sums of a register tile to its totals: total (+)= acc, acc = 0. Constant counts only.
template <class Vectors>
OPCEL_INLINE void carry(Vectors& total, Vectors& acc, bool first) {
  constexpr int count = static_cast<int>(sizeof(Vectors) / sizeof(vf));
  vf* const to = reinterpret_cast<vf*>(&total);
  vf* const from = reinterpret_cast<vf*>(&acc);
  if (first) {
    OPCEL_UNROLL
    for (int i = 0; i < count; ++i) to[i] = from[i];
  } else {
    OPCEL_UNROLL
    for (int i = 0; i < count; ++i) to[i] += from[i];
  }
  OPCEL_UNROLL
  for (int i = 0; i < count; ++i) from[i] = vf{};
}

template <class Vectors>
OPCEL_INLINE void add_total(Vectors& acc, const Vectors& total) {
  constexpr int count = static_cast<int>(sizeof(Vectors) / sizeof(vf));
  vf* const to = reinterpret_cast<vf*>(&acc);
  const vf* const from = reinterpret_cast<const vf*>(&total);
  OPCEL_UNROLL
  for (int i = 0; i < count; ++i) to[i] += from[i];
}

// An axis cut by tiles of the given sizes, descending.
template <int First, int... Rest>
struct Cut {
  static constexpr int largest = First;

  // The next tile's size for `rest` remaining elements: the fewest tiles, as even as the sizes allow; 0 if none fits.
  static OPCEL_INLINE std::int64_t next(std::int64_t rest) {
    constexpr int sizes[] = {First, Rest...};
    const std::int64_t even = ceil_div(rest, ceil_div(rest, First));
    std::int64_t best = 0;
    for (int size : sizes)
      if (size <= rest && (best == 0 || size >= even)) best = size;
    return best;
  }
};

}  // namespace detail
}  // namespace opcel
