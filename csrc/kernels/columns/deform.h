// Columns of a deformable convolution: f32 images interpolated at shifted positions, zero outside.
#pragma once

#include <cmath>

#include "base/tiling.h"

namespace opcel {

struct DeformArgs {
  const float* x;       // [n][c][h][w]
  const float* offset;  // [n][groups][taps][2][oh][ow], rows before columns
  const float* mask;    // [n][groups][taps][oh][ow]; null: 1
  float* y;             // [n][c][taps][oh][ow]
  std::int64_t n, c, groups, h, w, oh, ow;
  std::int64_t kh, kw, sh, sw, ph, pw, dh, dw;
};

// One tap of one image and group each: the positions are found once for all channels of the group.
inline std::int64_t deform_task_count(const DeformArgs& args) { return args.n * args.groups * args.kh * args.kw; }

// Tasks [begin, end).
inline void deform_tasks(const DeformArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t taps = args.kh * args.kw, places = args.oh * args.ow, own = args.c / args.groups;
  const float h = static_cast<float>(args.h), w = static_cast<float>(args.w);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t tap = task % taps, group = task / taps % args.groups, n = task / taps / args.groups;
    const float* rows = args.offset + task * 2 * places;
    const float* columns = rows + places;
    const float* mask = args.mask ? args.mask + task * places : nullptr;
    const std::int64_t first = n * args.c + group * own;
    for (std::int64_t place = 0; place < places; ++place) {
      const float row =
          rows[place] + static_cast<float>(tap / args.kw * args.dh + place / args.ow * args.sh - args.ph);
      const float col =
          columns[place] + static_cast<float>(tap % args.kw * args.dw + place % args.ow * args.sw - args.pw);
      const bool near = row > -1 && row < h && col > -1 && col < w;
      const float top = near ? std::floor(row) : 0, left = near ? std::floor(col) : 0;
      const float down = row - top, right = col - left, factor = mask ? mask[place] : 1.0f;
      const std::int64_t r = static_cast<std::int64_t>(top), s = static_cast<std::int64_t>(left);
      const bool above = near && r >= 0, below = near && r + 1 < args.h, before = s >= 0, after = s + 1 < args.w;
      for (std::int64_t c = 0; c < own; ++c) {
        const float* x = args.x + ((first + c) * args.h + r) * args.w + s;
        float sum = 0;
        if (above && before) sum += (1 - down) * (1 - right) * x[0];
        if (above && after) sum += (1 - down) * right * x[1];
        if (below && before) sum += down * (1 - right) * x[args.w];
        if (below && after) sum += down * right * x[args.w + 1];
        args.y[((first + c) * taps + tap) * places + place] = sum * factor;
      }
    }
  }
}

}  // namespace opcel
