// Vectors of f32 to and from bytes, several at a time: W elements of one byte are a quarter of a vector.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/int8.h"
#include "base/narrow.h"

namespace opcel {

template <class T>
constexpr bool is_byte = std::is_integral_v<T> && sizeof(T) == 1;

namespace detail {

typedef std::int32_t vi_bytes __attribute__((vector_size(4 * W), aligned(1), may_alias));
typedef std::int32_t quarter __attribute__((vector_size(W < 4 ? 4 : W)));
typedef std::int32_t quarter_memory __attribute__((vector_size(W < 4 ? 4 : W), aligned(1), may_alias));

// Dwords of a matrix of `Rows` rows by W / Rows columns, transposed.
template <int Rows, int... I>
OPCEL_INLINE vi transposed_dwords(vi v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I % Rows * (W / Rows) + I / Rows)...);
}

// The bytes of four vectors of integers, one vector after the other, those outside of T's range cut to it.
template <class T>
OPCEL_INLINE vi packed_bytes(vi a, vi b, vi c, vi d) {
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
  vi ab, cd, all;
  asm("vpackssdw %2, %1, %0" : "=v"(ab) : "v"(a), "v"(b));
  asm("vpackssdw %2, %1, %0" : "=v"(cd) : "v"(c), "v"(d));
  if constexpr (std::is_signed_v<T>)
    asm("vpacksswb %2, %1, %0" : "=v"(all) : "v"(ab), "v"(cd));
  else
    asm("vpackuswb %2, %1, %0" : "=v"(all) : "v"(ab), "v"(cd));
  return transposed_dwords<W / 4>(all, std::make_integer_sequence<int, W>{});
#else
  T bytes[4 * W];
  for (int i = 0; i < W; ++i) {
    const std::int32_t four[] = {a[i], b[i], c[i], d[i]};
    for (int j = 0; j < 4; ++j) {
      constexpr std::int32_t low = std::is_signed_v<T> ? -128 : 0;
      bytes[j * W + i] = static_cast<T>(four[j] < low ? low : four[j] > low + 255 ? low + 255 : four[j]);
    }
  }
  vi all;
  __builtin_memcpy(&all, bytes, sizeof all);
  return all;
#endif
}

template <int... I>
OPCEL_INLINE vi transposed_bytes(vi v, std::integer_sequence<int, I...>) {
  typedef signed char bytes __attribute__((vector_size(4 * W)));
  return (vi)__builtin_shufflevector((bytes)v, (bytes)v, (I / 16 * 16 + I % 4 * 4 + I % 16 / 4)...);
}

}  // namespace detail

// Lane c is byte c of each of four rows of W bytes that lie one after another at p.
OPCEL_INLINE quads load_across(const std::uint8_t* p) {
  const vi rows = *reinterpret_cast<const detail::vi_bytes*>(p);
  const vi lanes = detail::transposed_dwords<4>(rows, std::make_integer_sequence<int, W>{});
  return detail::transposed_bytes(lanes, std::make_integer_sequence<int, 4 * W>{});
}

// N vectors of W elements to p, p + step, ...: bytes from integers within T's range, other types as `store` does.
template <int N, class T>
OPCEL_INLINE void store_each(T* p, std::int64_t step, const vf (&v)[N]) {
  constexpr int packed = is_byte<T> ? N / 4 * 4 : 0;
  if constexpr (is_byte<T>) {
    OPCEL_UNROLL
    for (int i = 0; i < packed; i += 4) {
      const vi all = detail::packed_bytes<T>(to_int(v[i]), to_int(v[i + 1]), to_int(v[i + 2]), to_int(v[i + 3]));
      if (step == W) {
        *reinterpret_cast<detail::vi_bytes*>(p + i * W) = all;
      } else {
        OPCEL_UNROLL
        for (int j = 0; j < 4; ++j) {
          detail::quarter part;
          __builtin_memcpy(&part, reinterpret_cast<const char*>(&all) + j * sizeof part, sizeof part);
          *reinterpret_cast<detail::quarter_memory*>(p + (i + j) * step) = part;
        }
      }
    }
  }
  OPCEL_UNROLL
  for (int i = packed; i < N; ++i) store(p + i * step, v[i]);
}

}  // namespace opcel
