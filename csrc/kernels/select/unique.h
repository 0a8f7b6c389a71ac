// The distinct rows of a matrix.
#pragma once

#include <cstdint>

#include "kernels/select/topk.h"

namespace opcel {

/// Below 0, 0 or above as row a of x comes before row b, is equal to it, or comes after it.
template <class T, class Number>
inline int compare_rows(const T* x, std::int64_t m, std::int64_t a, std::int64_t b) {
  for (std::int64_t i = 0; i < m; ++i) {
    const Number p = static_cast<Number>(x[a * m + i]), q = static_cast<Number>(x[b * m + i]);
    if (ascends(p, q)) return -1;
    if (ascends(q, p)) return 1;
  }
  return 0;
}

/// Sorts the rows' numbers 0 … n - 1 by their rows, equal ones by number; `other` is memory of the same size.
/// Returns the one of the two that holds them.
template <class T, class Number>
std::int64_t* sort_rows(const T* x, std::int64_t n, std::int64_t m, std::int64_t* order, std::int64_t* other) {
  for (std::int64_t i = 0; i < n; ++i) order[i] = i;
  for (std::int64_t width = 1; width < n; width *= 2) {
    for (std::int64_t low = 0; low < n; low += 2 * width) {
      const std::int64_t middle = low + width < n ? low + width : n, high = middle + width < n ? middle + width : n;
      std::int64_t a = low, b = middle;
      for (std::int64_t i = low; i < high; ++i) {
        const bool left = a < middle && (b >= high || compare_rows<T, Number>(x, m, order[a], order[b]) <= 0);
        other[i] = order[left ? a++ : b++];
      }
    }
    std::int64_t* const sorted = other;
    other = order;
    order = sorted;
  }
  return order;
}

/// first[j]: the first row equal to distinct row j; which[i]: the distinct row that row i is; counts[j]: how many are
/// j. The arrays have room for n. Returns how many distinct rows there are.
template <class T, class Number>
std::int64_t unique_rows(const T* x, std::int64_t n, std::int64_t m, bool sorted, std::int64_t* first,
                         std::int64_t* which, std::int64_t* counts) {
  const std::int64_t* order = sort_rows<T, Number>(x, n, m, first, counts);
  std::int64_t found = 0;
  // Each row is told the first of its equals, as the sort keeps equal rows in order.
  std::int64_t leader = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (i == 0 || compare_rows<T, Number>(x, m, leader, order[i]) != 0) leader = order[i];
    which[order[i]] = leader;
  }
  if (sorted) {
    // Distinct rows in ascending order: the leaders, as they stand in `order`.
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t row = order[i];
      if (which[row] != row) continue;
      first[found] = row;  // found <= i
      ++found;
    }
  } else {
    for (std::int64_t row = 0; row < n; ++row)
      if (which[row] == row) first[found++] = row;
  }
  for (std::int64_t j = 0; j < found; ++j) which[first[j]] = -1 - j;
  for (std::int64_t j = 0; j < found; ++j) counts[j] = 0;
  for (std::int64_t row = 0; row < n; ++row) {
    const std::int64_t own = which[row];
    which[row] = own < 0 ? -1 - own : which[own];  // leaders come before those that are equal to them
    ++counts[which[row]];
  }
  return found;
}

}  // namespace opcel
