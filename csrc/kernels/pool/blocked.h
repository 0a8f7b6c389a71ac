// Maxima, minima and averages of windows of f32, bf16 or bytes, sums in f32, on the blocked layout [n][channel
// block][h][w][W]. Windows are clipped to the image, so the input needs no halo and its halo, if any, is not read.
#pragma once

#include <limits>

#include "base/bf16.h"
#include "base/bytes.h"
#include "base/tiling.h"

namespace opcel {

template <class T = float, class U = T>
struct PoolArgs {
  const T* x;  // the first pixel of the image itself, inside of any halo; adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  U* y;
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, cb;  // images and channel blocks
  std::int64_t ih, iw, oh, ow;
  std::int64_t kh, kw, sh, sw, dh, dw;
  std::int64_t ph, pw;          // padding above and to the left
  std::int64_t ph_end, pw_end;  // below and to the right: only counted, by an average with count_include_pad
  bool count_include_pad;
  std::int64_t rows_per_task;
};

enum class Pool { mean, largest, least };

namespace detail {

// One window's taps along one axis: those inside the image, and how many an average counts.
struct PoolSpan {
  std::int64_t first, last, counted;

  OPCEL_INLINE PoolSpan(std::int64_t start, std::int64_t size, std::int64_t kernel, std::int64_t dilation, std::int64_t pad_end,
                        bool include_pad) {
    first = start < 0 ? ceil_div(-start, dilation) : 0;
    last = start < size ? least(kernel, ceil_div(size - start, dilation)) : 0;
    if (last < first) last = first;
    counted = include_pad ? least(kernel, ceil_div(size + pad_end - start, dilation)) : last - first;
  }
};

// One more element of a window; NaN if either is, but where they are added up.
template <Pool P>
OPCEL_INLINE vf pool_with(vf a, vf b) {
  if constexpr (P == Pool::mean) return a + b;
  return select(a != a, a, P == Pool::largest ? max(a, b) : min(a, b));
}

template <Pool P, class T>
OPCEL_INLINE vf pool_window(const T* x, std::int64_t rows, std::int64_t x_row, std::int64_t taps, std::int64_t x_tap) {
  vf acc[4];
  OPCEL_UNROLL
  for (int i = 0; i < 4; ++i) acc[i] = set(P == Pool::mean ? 0.0f : P == Pool::largest ? -__builtin_inff() : __builtin_inff());
  for (; rows > 0; --rows, x += x_row) {
    const T* p = x;
    std::int64_t tap = taps;
    for (; tap >= 4; tap -= 4, p += 4 * x_tap) {
      OPCEL_UNROLL
      for (int i = 0; i < 4; ++i) acc[i] = pool_with<P>(acc[i], load(p + i * x_tap));
    }
    for (; tap > 0; --tap, p += x_tap) acc[0] = pool_with<P>(acc[0], load(p));
  }
  if (taps < 4) return acc[0];
  return pool_with<P>(pool_with<P>(acc[0], acc[1]), pool_with<P>(acc[2], acc[3]));
}

template <class T>
OPCEL_INLINE void max_of_bytes(T* y, const T* x, std::int64_t rows, std::int64_t x_row, std::int64_t taps, std::int64_t x_tap) {
  typedef T lanes __attribute__((vector_size(W)));
  typedef T lanes_memory __attribute__((vector_size(W), aligned(1), may_alias));
  lanes best = lanes{} + std::numeric_limits<T>::min();
  for (; rows > 0; --rows, x += x_row) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const lanes v = *reinterpret_cast<const lanes_memory*>(x + tap * x_tap);
      best = v > best ? v : best;
    }
  }
  *reinterpret_cast<lanes_memory*>(y) = best;
}

}  // namespace detail

// Number of tasks: image, channel block, row group; the last varies fastest.
template <class T, class U>
OPCEL_INLINE std::int64_t pool_task_count(const PoolArgs<T, U>& args) {
  return args.n * args.cb * detail::ceil_div(args.oh, args.rows_per_task);
}

// Tasks [begin, end). The largest byte goes to bytes of the same type as it is, without `epi`. A NaN in a window gives
// NaN. A window without any element gives -inf or the least byte (max) or NaN (average). A global average is an average
// whose kernel is the image.
template <Pool P, class T, class U, class Epi>
void pool_tasks(const PoolArgs<T, U>& args, const Epi& epi, std::int64_t begin, std::int64_t end) {
  const std::int64_t row_groups = detail::ceil_div(args.oh, args.rows_per_task);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t cb = task / row_groups % args.cb, n = task / row_groups / args.cb;
    const std::int64_t first_row = task % row_groups * args.rows_per_task;
    const std::int64_t last_row = detail::least(args.oh, first_row + args.rows_per_task);
    for (std::int64_t row = first_row; row < last_row; ++row) {
      const std::int64_t top = row * args.sh - args.ph;
      const detail::PoolSpan high(top, args.ih, args.kh, args.dh, args.ph_end, args.count_include_pad);
      const T* x = args.x + n * args.x_n + cb * args.x_cb + (top + high.first * args.dh) * args.x_row;
      U* y = args.y + n * args.y_n + cb * args.y_cb + row * args.y_row;
      for (std::int64_t col = 0; col < args.ow; ++col) {
        const std::int64_t left = col * args.sw - args.pw;
        const detail::PoolSpan wide(left, args.iw, args.kw, args.dw, args.pw_end, args.count_include_pad);
        const T* window = x + (left + wide.first * args.dw) * W;
        const std::int64_t down = high.last - high.first, across = wide.last - wide.first;
        if constexpr (P == Pool::largest && is_byte<T> && std::is_same_v<T, U>) {
          detail::max_of_bytes(y + col * W, window, down, args.dh * args.x_row, across, args.dw * W);
        } else {
          vf v = detail::pool_window<P>(window, down, args.dh * args.x_row, across, args.dw * W);
          if constexpr (P == Pool::mean) v /= set(static_cast<float>(high.counted * wide.counted));
          store(y + col * W, epi.template apply<false>(v, n, cb, row, col, W));
        }
      }
    }
  }
}

}  // namespace opcel
