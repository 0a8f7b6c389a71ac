// Square matrices as upper triangles of the same determinant: f32 or f64.
#pragma once

#include <cstdint>
#include <cstring>

namespace opcel {

// Tasks [begin, end), one of the matrices x [..][n][n] each, by elimination in y with the largest pivot of each column.
// Of two rows that are exchanged one changes its sign.
template <class T>
void echelon_tasks(const T* x, T* y, std::int64_t n, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    T* a = y + task * n * n;
    std::memcpy(a, x + task * n * n, static_cast<std::size_t>(n * n) * sizeof(T));
    for (std::int64_t k = 0; k < n; ++k) {
      std::int64_t pivot = k;
      const auto magnitude = [a, n, k](std::int64_t i) { return a[i * n + k] < 0 ? -a[i * n + k] : a[i * n + k]; };
      for (std::int64_t i = k + 1; i < n; ++i)
        if (magnitude(i) > magnitude(pivot)) pivot = i;
      for (std::int64_t j = 0; pivot != k && j < n; ++j) {
        const T old = a[k * n + j];
        a[k * n + j] = a[pivot * n + j];
        a[pivot * n + j] = -old;
      }
      if (a[k * n + k] == 0) continue;
      for (std::int64_t i = k + 1; i < n; ++i) {
        const T factor = a[i * n + k] / a[k * n + k];
        for (std::int64_t j = k + 1; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
        a[i * n + k] = 0;
      }
    }
  }
}

}  // namespace opcel
