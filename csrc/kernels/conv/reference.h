// Convolution in f32 or f64 of any spatial rank up to 3, any group, stride, dilation and padding, on dense row-major
// tensors: the last resort, for what no fast kernel takes.
#pragma once

#include <cstdint>

namespace opcel {

// Spatial axes are (depth, height, width); a lower rank has size 1, kernel 1, stride 1, dilation 1 and padding 0 in
// front.
template <class T>
struct ConvReferenceArgs {
  const T* x;         // [n][channels][in]
  const T* w;         // [filters][channels / groups][kernel]
  const T* bias;      // [filters], or null for zero
  T* y;               // [n][filters][out]
  std::int64_t n, channels, filters, groups;
  std::int64_t in[3], out[3], kernel[3], stride[3], dilation[3];
  std::int64_t pad[3];  // in front of each axis
};

// Number of tasks: image, filter, depth, height; the last varies fastest.
template <class T>
std::int64_t conv_reference_task_count(const ConvReferenceArgs<T>& args) {
  return args.n * args.filters * args.out[0] * args.out[1];
}

// Tasks [begin, end); each writes one row of y.
template <class T>
void conv_reference_tasks(const ConvReferenceArgs<T>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t group_channels = args.channels / args.groups, group_filters = args.filters / args.groups;
  const std::int64_t width = args.in[2], taps = args.kernel[0] * args.kernel[1] * args.kernel[2];
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t h = task % args.out[1], d = task / args.out[1] % args.out[0];
    const std::int64_t filter = task / args.out[1] / args.out[0] % args.filters;
    const std::int64_t n = task / args.out[1] / args.out[0] / args.filters;
    T* y = args.y + task * args.out[2];
    for (std::int64_t i = 0; i < args.out[2]; ++i) y[i] = args.bias ? args.bias[filter] : T(0);
    for (std::int64_t c = 0; c < group_channels; ++c) {
      const std::int64_t channel = filter / group_filters * group_channels + c;
      const T* plane = args.x + (n * args.channels + channel) * args.in[0] * args.in[1] * width;
      const T* w = args.w + (filter * group_channels + c) * taps;
      for (std::int64_t kd = 0; kd < args.kernel[0]; ++kd) {
        const std::int64_t from_d = d * args.stride[0] - args.pad[0] + kd * args.dilation[0];
        if (from_d < 0 || from_d >= args.in[0]) continue;
        for (std::int64_t kh = 0; kh < args.kernel[1]; ++kh) {
          const std::int64_t from_h = h * args.stride[1] - args.pad[1] + kh * args.dilation[1];
          if (from_h < 0 || from_h >= args.in[1]) continue;
          const T* x = plane + (from_d * args.in[1] + from_h) * width;
          for (std::int64_t kw = 0; kw < args.kernel[2]; ++kw) {
            const T weight = w[(kd * args.kernel[1] + kh) * args.kernel[2] + kw];
            const std::int64_t start = kw * args.dilation[2] - args.pad[2], stride = args.stride[2];
            const std::int64_t first = start < 0 ? (-start + stride - 1) / stride : 0;
            const std::int64_t inside = start < width ? (width - start + stride - 1) / stride : 0;
            const std::int64_t last = inside < args.out[2] ? inside : args.out[2];
            for (std::int64_t i = first; i < last; ++i) y[i] += weight * x[start + i * stride];
          }
        }
      }
    }
  }
}

}  // namespace opcel
