// Transposed convolution in f32 or f64 of any spatial rank up to 3 on dense row-major tensors: the last resort, for
// what does not divide into convolutions of stride 1.
#pragma once

#include "kernels/conv/reference.h"

namespace opcel {

// ConvReferenceArgs with w as [channels][filters / groups][kernel]; pad is what the result loses in front of each axis.
template <class T>
std::int64_t conv_transpose_task_count(const ConvReferenceArgs<T>& args) { return conv_reference_task_count(args); }

namespace detail {

// The input index that tap k of one axis brings to element o of the result, or -1.
template <class T>
inline std::int64_t transposed_source(const ConvReferenceArgs<T>& args, int axis, std::int64_t o, std::int64_t k) {
  const std::int64_t at = o + args.pad[axis] - k * args.dilation[axis];
  return at >= 0 && at % args.stride[axis] == 0 && at / args.stride[axis] < args.in[axis] ? at / args.stride[axis] : -1;
}

}  // namespace detail

// Tasks [begin, end); each writes one row of y. Every element sums channels, then taps in order.
template <class T>
void conv_transpose_tasks(const ConvReferenceArgs<T>& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t group_channels = args.channels / args.groups, group_filters = args.filters / args.groups;
  const std::int64_t taps = args.kernel[0] * args.kernel[1] * args.kernel[2];
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t h = task % args.out[1], d = task / args.out[1] % args.out[0];
    const std::int64_t filter = task / args.out[1] / args.out[0] % args.filters;
    const std::int64_t n = task / args.out[1] / args.out[0] / args.filters;
    T* y = args.y + task * args.out[2];
    for (std::int64_t i = 0; i < args.out[2]; ++i) y[i] = args.bias ? args.bias[filter] : T(0);
    for (std::int64_t c = 0; c < group_channels; ++c) {
      const std::int64_t channel = filter / group_filters * group_channels + c;
      const T* plane = args.x + (n * args.channels + channel) * args.in[0] * args.in[1] * args.in[2];
      const T* w = args.w + (channel * group_filters + filter % group_filters) * taps;
      for (std::int64_t kd = 0; kd < args.kernel[0]; ++kd) {
        const std::int64_t from_d = detail::transposed_source(args, 0, d, kd);
        if (from_d < 0) continue;
        for (std::int64_t kh = 0; kh < args.kernel[1]; ++kh) {
          const std::int64_t from_h = detail::transposed_source(args, 1, h, kh);
          if (from_h < 0) continue;
          const T* x = plane + (from_d * args.in[1] + from_h) * args.in[2];
          for (std::int64_t kw = 0; kw < args.kernel[2]; ++kw) {
            const T weight = w[(kd * args.kernel[1] + kh) * args.kernel[2] + kw];
            // Result elements i = s * j + k * dilation - pad for input elements j.
            const std::int64_t s = args.stride[2], offset = kw * args.dilation[2] - args.pad[2];
            for (std::int64_t j = offset < 0 ? (-offset + s - 1) / s : 0; j < args.in[2] && s * j + offset < args.out[2]; ++j)
              y[s * j + offset] += weight * x[j];
          }
        }
      }
    }
  }
}

}  // namespace opcel
