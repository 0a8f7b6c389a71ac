// Matrix product of any arithmetic type and any strides: the last resort.
#pragma once

#include <cstdint>
#include <type_traits>

namespace opcel {

namespace detail {
template <class T>
T multiply_add(T a, T b, T c) {
  if constexpr (std::is_integral_v<T>)  // signed overflow is undefined
    return static_cast<T>(static_cast<std::uint64_t>(a) * static_cast<std::uint64_t>(b) + static_cast<std::uint64_t>(c));
  else
    return a * b + c;
}
}  // namespace detail

// C[batch][m][n] = A[batch][m][k] * B[batch][k][n]. Strides are in elements; a batch stride of 0 broadcasts.
template <class T>
struct MatmulReferenceArgs {
  const T* a;
  std::int64_t a_row, a_col;
  const T* b;
  std::int64_t b_row, b_col;
  T* c;  // dense
  std::int64_t m, n, k;
  int batch_rank;
  std::int64_t batch[6], a_batch[6], b_batch[6];
};

// Number of tasks: batches in row-major order, then rows; the last varies fastest.
template <class T>
std::int64_t matmul_reference_task_count(const MatmulReferenceArgs<T>& args) {
  std::int64_t tasks = args.m;
  for (int axis = 0; axis < args.batch_rank; ++axis) tasks *= args.batch[axis];
  return tasks;
}

// Tasks [begin, end), one row of C each. Integers wrap around.
template <class T>
void matmul_reference_tasks(const MatmulReferenceArgs<T>& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    const T* a = args.a + task % args.m * args.a_row;
    const T* b = args.b;
    std::int64_t rest = task / args.m;
    for (int axis = args.batch_rank - 1; axis >= 0; --axis) {
      a += rest % args.batch[axis] * args.a_batch[axis];
      b += rest % args.batch[axis] * args.b_batch[axis];
      rest /= args.batch[axis];
    }
    T* c = args.c + task * args.n;
    for (std::int64_t j = 0; j < args.n; ++j) c[j] = T(0);
    for (std::int64_t k = 0; k < args.k; ++k) {
      const T x = a[k * args.a_col];
      for (std::int64_t j = 0; j < args.n; ++j) c[j] = detail::multiply_add(x, b[k * args.b_row + j * args.b_col], c[j]);
    }
  }
}

}  // namespace opcel
