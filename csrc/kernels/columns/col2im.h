// Images as sums of windows, of any spatial rank up to 6: f32.
#pragma once

#include <cstdint>

namespace opcel {

struct Col2ImArgs {
  const float* x;  // [planes][taps][places]
  float* y;        // [planes][size]
  std::int64_t planes;
  int rank;
  std::int64_t size[6], kernel[6], places[6], stride[6], dilation[6], pad[6];
};

inline std::int64_t col2im_task_count(const Col2ImArgs& args) { return args.planes; }

// Tasks [begin, end), one plane each: every element gathers what windows hold of it.
inline void col2im_tasks(const Col2ImArgs& args, std::int64_t begin, std::int64_t end) {
  std::int64_t size = 1, taps = 1, places = 1;
  for (int axis = 0; axis < args.rank; ++axis) {
    size *= args.size[axis];
    taps *= args.kernel[axis];
    places *= args.places[axis];
  }
  for (std::int64_t plane = begin; plane < end; ++plane) {
    const float* x = args.x + plane * taps * places;
    for (std::int64_t to = 0; to < size; ++to) {
      float sum = 0;
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        bool inside = true;
        std::int64_t place = 0, scale = 1, to_rest = to, tap_rest = tap;
        for (int axis = args.rank - 1; axis >= 0; --axis) {
          const std::int64_t from =
              to_rest % args.size[axis] + args.pad[axis] - tap_rest % args.kernel[axis] * args.dilation[axis];
          to_rest /= args.size[axis];
          tap_rest /= args.kernel[axis];
          const std::int64_t i = from / args.stride[axis];
          inside = inside && from >= 0 && from % args.stride[axis] == 0 && i < args.places[axis];
          place += i * scale;
          scale *= args.places[axis];
        }
        if (inside) sum += x[tap * places + place];
      }
      args.y[plane * size + to] = sum;
    }
  }
}

}  // namespace opcel
