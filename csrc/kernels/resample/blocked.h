// Images resampled along rows and columns on the blocked layout [n][channel block][h][w][W].
#pragma once

#include <cstring>

#include "base/bf16.h"
#include "base/bytes.h"
#include "kernels/resample/rows.h"

namespace opcel {

template <class T = float, class U = T>
struct ResampleBlockedArgs {
  const T* x;  // the first pixel of the image itself, inside of any halo; adjacent pixels are W elements apart
  std::int64_t x_n, x_cb, x_row;
  U* y;
  std::int64_t y_n, y_cb, y_row;
  std::int64_t n, cb;  // images and channel blocks
  std::int64_t ih, iw;
  Resampled rows, columns;
  std::int64_t rows_per_task;
};

template <class T, class U>
OPCEL_INLINE std::int64_t resample_blocked_task_count(const ResampleBlockedArgs<T, U>& args) {
  return args.n * args.cb * detail::ceil_div(args.rows.size, args.rows_per_task);
}

// Tasks [begin, end) of resample_blocked_task_count(args). Lanes past the last channel, zero in x, are zero in y.
template <class T, class U>
void resample_blocked_tasks(const ResampleBlockedArgs<T, U>& args, std::int64_t begin, std::int64_t end) {
  const Resampled &rows = args.rows, &columns = args.columns;
  const std::int64_t groups = detail::ceil_div(rows.size, args.rows_per_task);
  const std::int64_t down = rows.weights ? rows.taps : 1, across = columns.weights ? columns.taps : 1;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t cb = task / groups % args.cb, n = task / groups / args.cb;
    const T* plane = args.x + n * args.x_n + cb * args.x_cb;
    const std::int64_t first = task % groups * args.rows_per_task;
    const std::int64_t last = detail::least(rows.size, first + args.rows_per_task);
    for (std::int64_t row = first; row < last; ++row) {
      U* y = args.y + n * args.y_n + cb * args.y_cb + row * args.y_row;
      if (!rows.weights && !columns.weights) {
        const T* x = plane + (rows.at ? detail::inside(rows.at[row], args.ih) : row) * args.x_row;
        for (std::int64_t col = 0; col < columns.size; ++col) {
          const T* from = x + (columns.at ? detail::inside(columns.at[col], args.iw) : col) * W;
          if constexpr (std::is_same_v<T, U>)
            std::memcpy(static_cast<void*>(y + col * W), from, W * sizeof(T));
          else
            store(y + col * W, load(from));
        }
        continue;
      }
      for (std::int64_t col = 0; col < columns.size; ++col) {
        vf total{};
        for (std::int64_t t = 0; t < down; ++t) {
          const std::int64_t at = rows.at ? detail::inside(rows.at[t * rows.size + row], args.ih) : row;
          const T* x = plane + at * args.x_row;
          vf sum{};
          for (std::int64_t s = 0; s < across; ++s) {
            const std::int64_t i = s * columns.size + col;
            const vf v = load(x + (columns.at ? detail::inside(columns.at[i], args.iw) : col) * W);
            sum = columns.weights ? fma(v, set(columns.weights[i]), sum) : v;
          }
          total = rows.weights ? fma(sum, set(rows.weights[t * rows.size + row]), total) : sum;
        }
        store(y + col * W, total);
      }
    }
  }
}

}  // namespace opcel
