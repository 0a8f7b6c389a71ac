// Layer normalization and RMS normalization over rows.
//
// Layer norm: (x - mean) / sqrt(variance + epsilon) * gamma + beta, variance of the differences from the mean (two
// passes, so that a large mean costs no accuracy). RMS norm: x / sqrt(mean of squares + epsilon) * gamma.
#pragma once

#include "base/vmath.h"
#include "kernels/rows/row.h"

namespace opcel {

template <class T = float>
struct NormArgs {
  RowArgs<T> row;
  const float* gamma;  // [n], read if the kernel has Gamma
  const float* beta;   // [n], read if the kernel has Beta
  float epsilon;
  float* mean;     // [rows] or null
  float* inv_std;  // [rows] or null
};

namespace detail {

template <bool Center, bool Gamma, bool Beta, class T, class Pro, class Epi, class Nar>
OPCEL_INLINE void normalize_rows(const NormArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar,
                                 std::int64_t begin, std::int64_t end) {
  constexpr int U = 4;
  const std::int64_t n = args.row.n, last = least(args.row.rows, end * args.row.rows_per_task);
  float* scratch = nullptr;
  if constexpr (!std::is_same_v<Nar, NoNarrow>)
    if (!args.row.y) scratch = static_cast<float*>(__builtin_alloca(sizeof(float) * static_cast<std::size_t>(n)));
  const float per_element = 1.0f / static_cast<float>(n);
  for (std::int64_t row = begin * args.row.rows_per_task; row < last; ++row) {
    float* y = scratch ? scratch : args.row.y + row * args.row.y_row;
    vf sum[U] = {}, squares[U] = {};
    for_row<U>(n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
      constexpr bool Tail = decltype(tail)::value;
      const vf v = pro.template load<Tail>(row, col, lanes);
      store_t<Tail>(y + col, v, lanes);
      const vf x = keep_lanes<Tail>(v, 0.0f, lanes);
      if constexpr (Center)
        sum[u] += x;
      else
        squares[u] = fma(x, x, squares[u]);
    });
    const float mean = Center ? hsum(combine(sum, Add{})) * per_element : 0.0f;
    if constexpr (Center) {
      for_row<U>(n, [&](auto tail, int u, std::int64_t col, int lanes) __attribute__((always_inline)) {
        constexpr bool Tail = decltype(tail)::value;
        const vf x = keep_lanes<Tail>(load_t<Tail>(y + col, lanes) - mean, 0.0f, lanes);
        squares[u] = fma(x, x, squares[u]);
      });
    }
    const float scale = rsqrt(fma(set(hsum(combine(squares, Add{}))), set(per_element), set(args.epsilon)))[0];
    if (args.mean) args.mean[row] = mean;
    if (args.inv_std) args.inv_std[row] = scale;
    for_row<U>(n, [&](auto tail, int, std::int64_t col, int lanes) __attribute__((always_inline)) {
      constexpr bool Tail = decltype(tail)::value;
      vf v = load_t<Tail>(y + col, lanes);
      if constexpr (Center) v -= mean;
      v *= scale;
      if constexpr (Gamma && Beta)
        v = fma(v, load_t<Tail>(args.gamma + col, lanes), load_t<Tail>(args.beta + col, lanes));
      else if constexpr (Gamma)
        v *= load_t<Tail>(args.gamma + col, lanes);
      else if constexpr (Beta)
        v += load_t<Tail>(args.beta + col, lanes);
      store_row<Tail>(args.row, nar, y, epi.template apply<Tail>(v, row, col, lanes), row, col, lanes);
    });
  }
}

}  // namespace detail

// Tasks [begin, end) of row_task_count(args.row).
template <bool Gamma, bool Beta, class T, class Pro, class Epi, class Nar>
void layer_norm_tasks(const NormArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar, std::int64_t begin,
               std::int64_t end) {
  detail::normalize_rows<true, Gamma, Beta>(args, pro, epi, nar, begin, end);
}

// args.mean, if not null, is set to 0.
template <bool Gamma, bool Beta, class T, class Pro, class Epi, class Nar>
void rms_norm_tasks(const NormArgs<T>& args, const Pro& pro, const Epi& epi, const Nar& nar, std::int64_t begin,
               std::int64_t end) {
  detail::normalize_rows<false, Gamma, Beta>(args, pro, epi, nar, begin, end);
}

}  // namespace opcel
