// Max pooling of f32 or bytes and average pooling of f32, of any spatial rank up to 6, on dense row-major tensors: the
// last resort.
#pragma once

#include <cstdint>
#include <limits>

namespace opcel {

template <class T = float>
struct PoolReferenceArgs {
  const T* x;             // [planes][in], planes = images * channels
  T* y;                   // [planes][out]; null if only indices are wanted
  std::int64_t* indices;  // of the maxima in x as a flat array, the first of equals; null if not wanted (always for an average)
  std::int64_t planes;
  int rank;
  std::int64_t in[6], out[6], kernel[6], stride[6], dilation[6];
  std::int64_t pad[6], pad_end[6];
  bool count_include_pad;
};

// Tasks [begin, end), one plane each. A NaN in a window gives NaN. A window without any element gives -inf or the least
// byte (max, index 0) or NaN (average).
template <bool Max, class T>
void pool_reference_tasks(const PoolReferenceArgs<T>& args, std::int64_t begin, std::int64_t end) {
  std::int64_t in_size = 1, out_size = 1, taps = 1;
  for (int axis = 0; axis < args.rank; ++axis) {
    in_size *= args.in[axis];
    out_size *= args.out[axis];
    taps *= args.kernel[axis];
  }
  for (std::int64_t plane = begin; plane < end; ++plane) {
    const T* x = args.x + plane * in_size;
    for (std::int64_t out = 0; out < out_size; ++out) {
      using Limits = std::numeric_limits<T>;
      T best = Limits::has_infinity ? static_cast<T>(-Limits::infinity()) : Limits::min(), sum{};
      std::int64_t best_at = 0, counted = 0;
      bool any = false;
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        bool inside = true, padded = true;
        std::int64_t at = 0, out_rest = out, tap_rest = tap, scale = 1;
        for (int axis = args.rank - 1; axis >= 0; --axis) {
          const std::int64_t i = out_rest % args.out[axis] * args.stride[axis] - args.pad[axis] +
                                 tap_rest % args.kernel[axis] * args.dilation[axis];
          out_rest /= args.out[axis];
          tap_rest /= args.kernel[axis];
          inside = inside && i >= 0 && i < args.in[axis];
          padded = padded && i < args.in[axis] + args.pad_end[axis];
          at += i * scale;
          scale *= args.in[axis];
        }
        if (inside || (args.count_include_pad && padded)) ++counted;
        if (!inside) continue;
        if constexpr (!Max) sum += x[at];
        if (!any || x[at] > best || (x[at] != x[at] && best == best)) {
          best = x[at];
          best_at = plane * in_size + at;
          any = true;
        }
      }
      if (args.y) {
        if constexpr (Max)
          args.y[plane * out_size + out] = best;
        else
          args.y[plane * out_size + out] = sum / static_cast<T>(counted);
      }
      if (Max && args.indices) args.indices[plane * out_size + out] = best_at;
    }
  }
}

}  // namespace opcel
