// Bins of regions of images: f32.
#pragma once

#include <cmath>

#include "base/tiling.h"

namespace opcel {

struct RoiArgs {
  const float* x;         // [n][c][h][w]
  const float* rois;      // [regions][4]: x1, y1, x2, y2
  const void* images;     // [regions], int32 or int64
  float* y;               // [regions][c][oh][ow]
  std::int64_t regions, n, c, h, w, oh, ow;
  std::int64_t samples;   // along each axis of a bin; 0: as many as it has elements
  float scale, shift;     // a region's corners are times scale, less shift
  float least;            // extent of a region, at least
  std::int32_t* error;    // set to 1, never cleared, if an image is outside of [0, n); its region's bins are zero
};

inline std::int64_t roi_task_count(const RoiArgs& args) { return args.regions * args.c; }

namespace detail {

// One sample along one axis.
struct RoiTap {
  std::int64_t low, high;
  float below, above;  // weights; both 0 outside of the image

  OPCEL_INLINE RoiTap(float at, std::int64_t size) {
    const bool outside = !(at >= -1.0f && at <= static_cast<float>(size));
    const float last = static_cast<float>(size - 1);
    const float inside = at > 0 ? (at < last ? at : last) : 0.0f, floor = std::floor(inside);
    low = static_cast<std::int64_t>(floor);
    high = low + 1 < size ? low + 1 : low;
    above = outside ? 0.0f : inside - floor;
    below = outside ? 0.0f : 1.0f - (inside - floor);
  }
};

}  // namespace detail

// Tasks [begin, end), one channel of one region each.
template <bool Max, class Index>
void roi_tasks(const RoiArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t region = task / args.c, image = static_cast<const Index*>(args.images)[region];
    float* y = args.y + task * args.oh * args.ow;
    if (image < 0 || image >= args.n) {
      for (std::int64_t i = 0; i < args.oh * args.ow; ++i) y[i] = 0;
      __atomic_store_n(args.error, 1, __ATOMIC_RELAXED);
      continue;
    }
    const float* x = args.x + (image * args.c + task % args.c) * args.h * args.w;
    const float* roi = args.rois + region * 4;
    const float left = roi[0] * args.scale - args.shift, top = roi[1] * args.scale - args.shift;
    const float wide = std::fmax(roi[2] * args.scale - args.shift - left, args.least);
    const float high = std::fmax(roi[3] * args.scale - args.shift - top, args.least);
    const float bin_w = wide / static_cast<float>(args.ow), bin_h = high / static_cast<float>(args.oh);
    // A bin larger than any image samples no more densely than once an element of it.
    const float most_w = static_cast<float>(args.w + 2) * 64, most_h = static_cast<float>(args.h + 2) * 64;
    const std::int64_t nx = args.samples ? args.samples : static_cast<std::int64_t>(std::ceil(std::fmin(std::fmax(bin_w, 0), most_w)));
    const std::int64_t ny = args.samples ? args.samples : static_cast<std::int64_t>(std::ceil(std::fmin(std::fmax(bin_h, 0), most_h)));
    for (std::int64_t row = 0; row < args.oh; ++row)
      for (std::int64_t col = 0; col < args.ow; ++col) {
        float sum = 0, best = 0;
        for (std::int64_t i = 0; i < ny; ++i) {
          const float at_y = top + static_cast<float>(row) * bin_h + (static_cast<float>(i) + 0.5f) * bin_h / static_cast<float>(ny);
          const detail::RoiTap v(at_y, args.h);
          const float *up = x + v.low * args.w, *down = x + v.high * args.w;
          for (std::int64_t j = 0; j < nx; ++j) {
            const float at_x =
                left + static_cast<float>(col) * bin_w + (static_cast<float>(j) + 0.5f) * bin_w / static_cast<float>(nx);
            const detail::RoiTap u(at_x, args.w);
            const float a = v.below * u.below * up[u.low], b = v.below * u.above * up[u.high];
            const float c = v.above * u.below * down[u.low], d = v.above * u.above * down[u.high];
            if constexpr (Max) {
              const float most = std::fmax(std::fmax(a, b), std::fmax(c, d));
              best = i + j == 0 ? most : std::fmax(best, most);
            } else {
              sum += a + b + c + d;
            }
          }
        }
        y[row * args.ow + col] = Max ? best : nx * ny > 0 ? sum / static_cast<float>(nx * ny) : 0.0f;
      }
  }
}

}  // namespace opcel
