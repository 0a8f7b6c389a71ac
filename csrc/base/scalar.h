// Elementwise operators on single elements of any arithmetic type, as the operator definitions state them.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "base/narrow.h"
#include "base/vmath.h"

namespace opcel {
namespace scalar {

template <class T>
inline T div(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    // The two cases that trap on x86; ONNX leaves both undefined.
    if (b == 0) return 0;
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
  return static_cast<T>(a / b);
}

// A sum over how many elements it has; of no integers 0.
template <class T>
inline T mean(T sum, std::int64_t count) {
  if constexpr (std::is_integral_v<T>) {
    using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
    return count == 0 ? T(0) : static_cast<T>(static_cast<Wide>(sum) / static_cast<Wide>(count));
  } else {
    return sum / static_cast<T>(count);
  }
}

// Sign of the divisor, as Python's %.
template <class T>
inline T mod(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    const T r = std::fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
  } else {
    if (b == 0) return 0;
    if constexpr (std::is_signed_v<T>) {
      if (b == -1) return 0;
      const T r = static_cast<T>(a % b);
      return r != 0 && (r < 0) != (b < 0) ? static_cast<T>(r + b) : r;
    }
    return static_cast<T>(a % b);
  }
}

// Sign of the dividend, as C's fmod.
template <class T>
inline T fmod(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmod(a, b);
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) return 0;
    if constexpr (std::is_signed_v<T>)
      if (b == -1) return 0;
    return static_cast<T>(a % b);
  }
}

// NaN in either operand propagates.
template <class T>
inline T max(T a, T b) {
  return a != a ? a : (a > b ? a : b);
}
template <class T>
inline T min(T a, T b) {
  return a != a ? a : (a < b ? a : b);
}

template <class T>
inline T pow(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    if (b < 0) return a == 1 ? 1 : a == static_cast<T>(-1) ? (b % 2 ? a : 1) : 0;
    T out = 1;
    for (; b; b = static_cast<T>(b / 2), a = static_cast<T>(a * a))
      if (b % 2) out = static_cast<T>(out * a);
    return out;
  } else {
    return std::pow(a, b);
  }
}

template <class T>
inline T sign(T x) {
  return x > 0 ? 1 : x < 0 ? static_cast<T>(-1) : x;
}

template <class T>
inline T abs(T x) {
  return x < 0 ? static_cast<T>(-x) : x == 0 ? T(0) : x;
}

// A shift as wide as the type, or wider or negative, leaves nothing but the sign.
template <class T>
inline T shift_left(T a, T b) {
  constexpr auto bits = static_cast<std::make_unsigned_t<T>>(8 * sizeof(T));
  const auto by = static_cast<std::make_unsigned_t<T>>(b);
  return by < bits ? static_cast<T>(static_cast<std::uint64_t>(a) << by) : T(0);
}
template <class T>
inline T shift_right(T a, T b) {
  constexpr auto bits = static_cast<std::make_unsigned_t<T>>(8 * sizeof(T));
  const auto by = static_cast<std::make_unsigned_t<T>>(b);
  return static_cast<T>(a >> (by < bits ? by : bits - 1) >> (by < bits ? 0 : 1));
}

// Float to integer as the hardware does it, without undefined behaviour for what does not fit.
template <class To, class From>
inline To cast(From x) {
  if constexpr (std::is_same_v<To, bool>) {
    return x != 0;
  } else if constexpr (std::is_floating_point_v<From> && (std::is_integral_v<To> || is_narrow_int<To>)) {
    if constexpr (std::is_same_v<To, std::uint64_t>)
      if (x >= 9.2e18f && x < 18446744073709551616.0f) return static_cast<To>(x);
    if (!(x > -9.3e18f && x < 9.2e18f)) return static_cast<To>(INT64_MIN);
    return static_cast<To>(static_cast<std::int64_t>(x));
  } else {
    return static_cast<To>(x);
  }
}

// Unsigned integers in the order of floats, equal for 0 and -0. NaN: `nan`.
template <class T, class Key>
inline Key order_key(T x, Key nan) {
  constexpr Key top = Key{1} << (8 * sizeof(Key) - 1);
  const T y = x + T(0);
  Key bits;
  static_assert(sizeof bits == sizeof y);
  __builtin_memcpy(&bits, &y, sizeof y);
  const Key key = bits & top ? ~bits : bits | top;
  return x != x ? nan : key;
}
inline std::uint32_t order_key_high(float x) { return order_key(x, UINT32_MAX); }
inline std::uint64_t order_key_high(double x) { return order_key(x, UINT64_MAX); }
inline std::uint32_t order_key_low(float x) { return order_key(x, std::uint32_t{0x7FFFFE}); }
inline std::uint64_t order_key_low(double x) { return order_key(x, std::uint64_t{0xFFFFFFFFFFFFE}); }

// Functions that libm has too, under names of their own: where its headers declare them for float outside of std, calls
// of the plain names would be ambiguous.
#define OPCEL_BOTH(NAME)                                \
  inline float NAME(float x) { return opcel::NAME(x); } \
  inline double NAME(double x) { return std::NAME(x); }
OPCEL_BOTH(exp)
OPCEL_BOTH(log)
OPCEL_BOTH(erf)
OPCEL_BOTH(tanh)
OPCEL_BOTH(sin)
OPCEL_BOTH(cos)
OPCEL_BOTH(asin)
OPCEL_BOTH(acos)
OPCEL_BOTH(atan)
OPCEL_BOTH(sinh)
OPCEL_BOTH(cosh)
OPCEL_BOTH(asinh)
OPCEL_BOTH(acosh)
OPCEL_BOTH(atanh)
#undef OPCEL_BOTH

}  // namespace scalar

// The functions of vmath.h that libm lacks, in double.
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline double silu(double x) { return x * sigmoid(x); }
inline double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
inline double gelu_erf(double x) { return 0.5 * x * (1.0 + std::erf(x * 0.70710678118654752440)); }
inline double gelu_tanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
}

// A quotient rounded to an integer, ties to even, moved by `zero` and cut to [low, high]; NaN becomes `low`.
inline float quantized(float quotient, float zero, float low, float high) {
  const float grid = std::nearbyintf(quotient) + zero;
  return grid > low ? (grid < high ? grid : high) : low;
}
OPCEL_INLINE vf quantized(vf quotient, vf zero, float low, float high) {
  return min(set(high), max(round_even(quotient) + zero, set(low)));
}

}  // namespace opcel
