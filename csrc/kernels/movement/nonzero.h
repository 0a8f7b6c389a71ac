// The places of the elements that are not zero.
#pragma once

#include <cstdint>

namespace opcel {

/// y[axis][i] is the index along `axis` of the i-th element of x, in row-major order, that is not zero. There are
/// `count` of them; more are left out.
template <class T>
void nonzero(const T* x, const std::int64_t* shape, int rank, std::int64_t* y, std::int64_t count) {
  std::int64_t size = 1, at[64] = {};
  for (int axis = 0; axis < rank; ++axis) size *= shape[axis];
  const std::int64_t inner = rank ? shape[rank - 1] : 1;
  std::int64_t found = 0;
  for (std::int64_t row = 0; row < size; row += inner) {
    for (std::int64_t i = 0; i < inner && found < count; ++i) {
      if (x[row + i] == T{}) continue;
      for (int axis = 0; axis < rank - 1; ++axis) y[axis * count + found] = at[axis];
      if (rank) y[(rank - 1) * count + found] = i;
      ++found;
    }
    for (int axis = rank - 2; axis >= 0 && ++at[axis] == shape[axis]; --axis) at[axis] = 0;
  }
}

}  // namespace opcel
