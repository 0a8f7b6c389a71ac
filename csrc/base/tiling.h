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

// An epilogue that reads another tensor may have a const member `prefetch` that takes the coordinates `apply` takes before
// `lanes`. A tile calls it for each of its vectors before it computes them, so that the reads hide behind the sums.
template <class Epi, class... Coordinates>
OPCEL_INLINE auto prefetch_epilogue(int, const Epi& epi, Coordinates... at) -> decltype(epi.prefetch(at...)) {
  epi.prefetch(at...);
}
template <class Epi, class... Coordinates>
OPCEL_INLINE void prefetch_epilogue(long, const Epi&, Coordinates...) {}

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
