// Element types that C++ lacks: floats of 16 bits and less, integers of 4 and 2 bits. One element takes a byte at
// least.
//
// All convert to float (int) without a word, and from a number only when asked to: rounded once, to the nearest value,
// ties to even; what is too large becomes an infinity or, where there is none, NaN. Integers wrap around.
// Each also loads and stores as W lanes of f32, which hold all its values exactly.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/bf16.h"
#include "base/vec.h"

namespace opcel {

// What the codes of the largest exponent mean. ieee: infinities and NaNs. nan: the largest code is NaN. unsigned_zero:
// the code of -0 is NaN. finite: they are numbers, and a NaN becomes -0.
enum class Specials { ieee, nan, unsigned_zero, finite };

namespace detail {

OPCEL_INLINE float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
OPCEL_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

template <int Exponent, int Mantissa, int Bias, Specials S>
struct Format {
  static constexpr std::uint32_t sign = 1u << (Exponent + Mantissa);
  static constexpr std::uint32_t top = ((1u << Exponent) - 1) << Mantissa;
  static constexpr std::uint32_t largest = S == Specials::ieee  ? top - 1
                                           : S == Specials::nan ? sign - 2
                                                                : sign - 1;
  static constexpr std::uint32_t nan = S == Specials::ieee  ? top | 1u << (Mantissa - 1)
                                       : S == Specials::nan ? sign - 1
                                                            : sign;

  static float decode(std::uint32_t bits) {
    const std::uint32_t size = bits & (sign - 1), minus = bits & sign ? 0x80000000u : 0;
    if constexpr (S == Specials::ieee) {
      if (size >= top) return float_of(minus | 0x7f800000u | (size & (top - 1)) << (23 - Mantissa));
    } else if constexpr (S != Specials::finite) {
      if ((S == Specials::nan ? size : bits) == nan) return __builtin_nanf("");
    }
    // Exact, and normal whatever the narrow number is: a product with a power of two shifts the exponent.
    return float_of(minus | bits_of(float_of(size << (23 - Mantissa)) * float_of((254u - Bias) << 23)));
  }

  // The nearest code; past the largest number, that number where `saturate` says so.
  static std::uint32_t encode(double x, bool saturate) {
    std::uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (x != x) return nan;
    const std::uint32_t minus = bits >> 63 ? sign : 0;
    constexpr int lowest = 1 - Bias;
    int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
    std::uint32_t code = largest + 1;
    if (exponent <= 1 << Exponent) {
      exponent = exponent < lowest ? lowest : exponent;
      const std::uint64_t power = static_cast<std::uint64_t>(1023 + Mantissa - exponent) << 52;
      double scale;
      std::memcpy(&scale, &power, sizeof scale);
      code = static_cast<std::uint32_t>(__builtin_fabs(x) * scale + 0x1p52 - 0x1p52);
      code += static_cast<std::uint32_t>(exponent - lowest) << Mantissa;
    }
    if (code > largest) {
      if (saturate || S == Specials::finite) return minus | largest;
      return S == Specials::ieee ? minus | top : nan;
    }
    return S == Specials::unsigned_zero && code == 0 ? 0 : minus | code;
  }
};

// f32 lanes to IEEE half precision in the lower half of each lane, and back.
OPCEL_INLINE v32 half_bits(vf v) {
  const v32 bits = (v32)v, size = bits & 0x7fffffffu;
  const v32 tiny = (v32)((vf)size + 0.5f) - 0x3f000000u;
  const v32 normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
  const v32 special = (v32)select_i((vi)(size > 0x7f800000u), set_i(0x7e00), set_i(0x7c00));
  const vi finite = select_i((vi)(size < 0x38800000u), (vi)tiny, (vi)normal);
  return (v32)select_i((vi)(size >= 0x47800000u), (vi)special, finite) | (bits >> 16 & 0x8000u);
}
OPCEL_INLINE vf from_half_bits(v32 half) {
  const v32 size = (half & 0x7fffu) << 13, special = (v32)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (vf)((v32)((vf)size * 0x1p112f) | special | (half & 0x8000u) << 16);
}

}  // namespace detail

template <class Bits, int Exponent, int Mantissa, int Bias, Specials S>
struct NarrowFloat {
  using Format = detail::Format<Exponent, Mantissa, Bias, S>;
  Bits bits;

  NarrowFloat() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit NarrowFloat(T x) : bits(static_cast<Bits>(Format::encode(static_cast<double>(x), false))) {}
  operator float() const { return Format::decode(bits); }

  static NarrowFloat saturated(double x) {
    NarrowFloat out;
    out.bits = static_cast<Bits>(Format::encode(x, true));
    return out;
  }
};

using f16 = NarrowFloat<std::uint16_t, 5, 10, 15, Specials::ieee>;
using f8e4m3fn = NarrowFloat<std::uint8_t, 4, 3, 7, Specials::nan>;
using f8e4m3fnuz = NarrowFloat<std::uint8_t, 4, 3, 8, Specials::unsigned_zero>;
using f8e5m2 = NarrowFloat<std::uint8_t, 5, 2, 15, Specials::ieee>;
using f8e5m2fnuz = NarrowFloat<std::uint8_t, 5, 2, 16, Specials::unsigned_zero>;
using f6e2m3 = NarrowFloat<std::uint8_t, 2, 3, 1, Specials::finite>;
using f6e3m2 = NarrowFloat<std::uint8_t, 3, 2, 3, Specials::finite>;
using f4e2m1 = NarrowFloat<std::uint8_t, 2, 1, 1, Specials::finite>;

enum class Rounding { nearest, up, down };

// A power of two, 2^-127 to 2^127; 255 is NaN, and so is what becomes of an infinity. Signs are lost, and zero is
// 2^-127.
struct f8e8m0 {
  std::uint8_t bits;

  f8e8m0() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit f8e8m0(T x) : bits(rounded(static_cast<float>(x), Rounding::nearest, false).bits) {}
  operator float() const {
    if (bits == 255) return __builtin_nanf("");
    return detail::float_of(bits ? static_cast<std::uint32_t>(bits) << 23 : 0x400000u);
  }

  static f8e8m0 rounded(float x, Rounding rounding, bool saturate) {
    const std::uint32_t all = detail::bits_of(x), fraction = all & 0x7fffffu;
    std::uint32_t exponent = all >> 23 & 255;
    bool up = rounding == Rounding::up && fraction;
    if (rounding == Rounding::nearest) up = fraction > 0x400000u || (fraction == 0x400000u && exponent);
    if (exponent < (saturate ? 254u : 255u)) exponent += up;
    f8e8m0 out;
    out.bits = static_cast<std::uint8_t>(exponent);
    return out;
  }
};

template <int Bits, bool Signed>
struct NarrowInt {
  std::uint8_t bits;

  NarrowInt() = default;
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit NarrowInt(T x) : bits(static_cast<std::uint8_t>(static_cast<std::int64_t>(x) & ((1 << Bits) - 1))) {}
  operator int() const {
    const int value = bits & ((1 << Bits) - 1);
    return Signed && value >> (Bits - 1) ? value - (1 << Bits) : value;
  }
};

using i4 = NarrowInt<4, true>;
using u4 = NarrowInt<4, false>;
using i2 = NarrowInt<2, true>;
using u2 = NarrowInt<2, false>;

template <class T>
inline constexpr bool is_narrow_float = false;
template <class Bits, int E, int M, int Bias, Specials S>
inline constexpr bool is_narrow_float<NarrowFloat<Bits, E, M, Bias, S>> = true;
template <>
inline constexpr bool is_narrow_float<bf16> = true;
template <>
inline constexpr bool is_narrow_float<f8e8m0> = true;

template <class T>
inline constexpr bool is_narrow_int = false;
template <int Bits, bool Signed>
inline constexpr bool is_narrow_int<NarrowInt<Bits, Signed>> = true;

// -- lanes -----------------------------------------------------------------------------------------------------------

namespace detail {
typedef std::uint8_t v8 __attribute__((vector_size(W)));
typedef std::uint8_t v8_memory __attribute__((vector_size(W), aligned(1), may_alias));

// W elements of 8 or 16 bits, with the sign of their type, as 32-bit integers.
template <class T>
OPCEL_INLINE vi widened(const T* p) {
  vi out;
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 1) {
    const v8_memory& from = *reinterpret_cast<const v8_memory*>(p);
    if constexpr (std::is_signed_v<T>)
      asm("vpmovsxbd %1, %0" : "=v"(out) : "m"(from));
    else
      asm("vpmovzxbd %1, %0" : "=v"(out) : "m"(from));
  } else {
    const v16_memory& from = *reinterpret_cast<const v16_memory*>(p);
    if constexpr (std::is_signed_v<T>)
      asm("vpmovsxwd %1, %0" : "=v"(out) : "m"(from));
    else
      asm("vpmovzxwd %1, %0" : "=v"(out) : "m"(from));
  }
#else
  for (int i = 0; i < W; ++i) out[i] = p[i];
#endif
  return out;
}

// The lower bits of each lane, at p.
OPCEL_INLINE void store_low(std::uint8_t* p, vi v) {
#if defined(__AVX512F__)
  asm("vpmovdb %1, %0" : "=m"(*reinterpret_cast<v8_memory*>(p)) : "v"(v));
#else
  *reinterpret_cast<v8_memory*>(p) = __builtin_convertvector(v, v8);
#endif
}
OPCEL_INLINE void store_low(std::uint16_t* p, vi v) {
#if defined(__AVX512F__)
  asm("vpmovdw %1, %0" : "=m"(*reinterpret_cast<v16_memory*>(p)) : "v"(v));
#else
  *reinterpret_cast<v16_memory*>(p) = __builtin_convertvector((v32)v, v16);
#endif
}

#if defined(__F16C__) || defined(__AVX512F__)
OPCEL_INLINE v16 to_half(vf v) {
  v16 half;
  asm("vcvtps2ph $0, %1, %0" : "=v"(half) : "v"(v));
  return half;
}
OPCEL_INLINE vf from_half(v16 half) {
  vf v;
  asm("vcvtph2ps %1, %0" : "=v"(v) : "v"(half));
  return v;
}
#else
OPCEL_INLINE v16 to_half(vf v) { return __builtin_convertvector(half_bits(v), v16); }
OPCEL_INLINE vf from_half(v16 half) { return from_half_bits(__builtin_convertvector(half, v32)); }
#endif

}  // namespace detail

// W elements at p, any alignment, as f32; i32 are rounded.
template <class T>
OPCEL_INLINE vf load(const T* p) {
  if constexpr (std::is_same_v<T, f16>) {
    return detail::from_half(*reinterpret_cast<const detail::v16_memory*>(p));
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return to_float(load_i(p));
  } else if constexpr (std::is_integral_v<T>) {
    return to_float(detail::widened(p));
  } else {
    vf v;
    for (int i = 0; i < W; ++i) v[i] = static_cast<float>(p[i]);
    return v;
  }
}

// To p: floats are rounded, integers must be values of T.
template <class T>
OPCEL_INLINE void store(T* p, vf v) {
  if constexpr (std::is_same_v<T, f16>) {
    *reinterpret_cast<detail::v16_memory*>(p) = detail::to_half(v);
  } else if constexpr (std::is_integral_v<T>) {
    detail::store_low(reinterpret_cast<std::make_unsigned_t<T>*>(p), to_int(v));
  } else {
    for (int i = 0; i < W; ++i) p[i] = T(v[i]);
  }
}

template <bool Tail, class T>
OPCEL_INLINE vf load_t(const T* p, int n) {
  if constexpr (Tail) {
    T all[W] = {};
    for (int i = 0; i < W; ++i)
      if (i < n) all[i] = p[i];
    return load(all);
  } else {
    return load(p);
  }
}
template <bool Tail, class T>
OPCEL_INLINE void store_t(T* p, vf v, int n) {
  if constexpr (Tail) {
    T all[W];
    store(all, v);
    for (int i = 0; i < W; ++i)
      if (i < n) p[i] = all[i];
  } else {
    store(p, v);
  }
}

// Booleans are lane masks, 0 or -1.
template <bool Tail>
OPCEL_INLINE vi load_mask(const bool* p, int n) {
  std::uint8_t all[W] = {};
  if constexpr (Tail)
    for (int i = 0; i < W; ++i)
      if (i < n) all[i] = p[i];
  return -detail::widened(Tail ? all : reinterpret_cast<const std::uint8_t*>(p));
}
template <bool Tail>
OPCEL_INLINE void store_mask(bool* p, vi mask, int n) {
  std::uint8_t all[W];
  detail::store_low(Tail ? all : reinterpret_cast<std::uint8_t*>(p), -mask);
  if constexpr (Tail)
    for (int i = 0; i < W; ++i)
      if (i < n) p[i] = all[i];
}
OPCEL_INLINE vi set_mask(bool b) { return set_i(-static_cast<int>(b)); }

// Each lane rounded to the nearest value of T.
template <class T>
OPCEL_INLINE vf rounded(vf v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else if constexpr (std::is_same_v<T, f16>) {
    return detail::from_half(detail::to_half(v));
  } else if constexpr (std::is_same_v<T, bf16>) {
    return (vf)(detail::round_upper(v) & 0xffff0000u);
  } else {
    for (int i = 0; i < W; ++i) v[i] = static_cast<float>(T(v[i]));
    return v;
  }
}
// The same, but what is too large becomes the largest number.
template <class T>
OPCEL_INLINE vf saturated(vf v) {
  for (int i = 0; i < W; ++i) v[i] = static_cast<float>(T::saturated(v[i]));
  return v;
}

}  // namespace opcel
