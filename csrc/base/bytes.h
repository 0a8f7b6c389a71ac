// Vectors of f32 to and from bytes, several at a time: W elements of one byte are a quarter of a vector.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "base/int8.h"
#include "base/narrow.h"
#include "base/tiling.h"

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

// The bytes of four vectors of integers plus `zero`, one vector after the other, those outside of T's range cut to it.
template <class T>
OPCEL_INLINE vi packed_bytes(vi a, vi b, vi c, vi d, std::int64_t zero) {
#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
  vi ab, cd, all;
  asm("vpackssdw %2, %1, %0" : "=v"(ab) : "v"(a), "v"(b));
  asm("vpackssdw %2, %1, %0" : "=v"(cd) : "v"(c), "v"(d));
  if (!__builtin_constant_p(zero) || zero != 0) {
    const auto low = static_cast<std::uint32_t>(zero) & 0xffffu;
    const vi both = set_i(static_cast<std::int32_t>(low | low << 16));
    asm("vpaddsw %1, %0, %0" : "+v"(ab) : "v"(both));
    asm("vpaddsw %1, %0, %0" : "+v"(cd) : "v"(both));
  }
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
      const std::int64_t v = (four[j] < -32768 ? -32768 : four[j]) + zero;
      bytes[j * W + i] = static_cast<T>(v < low ? low : v > low + 255 ? low + 255 : v);
    }
  }
  vi all;
  __builtin_memcpy(&all, bytes, sizeof all);
  return all;
#endif
}

// The nearest integers, ties to even, at most 2^30; the least one for a NaN or what is too small.
OPCEL_INLINE vi nearest(vf v) {
  v = min(set(1073741824.0f), v);
#if defined(__AVX512F__)
  vi out;
  asm("vcvtps2dq %1, %0" : "=v"(out) : "v"(v));
  return out;
#elif defined(__AVX2__)
  vi out;
  asm("vcvtps2dq %1, %0" : "=x"(out) : "x"(v));
  return out;
#elif defined(__SSE2__)
  vi out;
  asm("cvtps2dq %1, %0" : "=x"(out) : "x"(v));
  return out;
#else
  vi out;
  for (int i = 0; i < W; ++i)
    out[i] = v[i] > -1073741824.0f ? static_cast<std::int32_t>(__builtin_nearbyintf(v[i])) : INT32_MIN;
  return out;
#endif
}

// The first `Count` of four vectors of bytes to p, p + step, ...
template <int Count, class T>
OPCEL_INLINE void store_quarters(T* p, std::int64_t step, vi all) {
  if (Count == 4 && step == W) {
    *reinterpret_cast<vi_bytes*>(p) = all;
  } else {
    each<Count>([&](auto i) __attribute__((always_inline)) {
      quarter part;
      __builtin_memcpy(&part, reinterpret_cast<const char*>(&all) + decltype(i)::value * sizeof part, sizeof part);
      *reinterpret_cast<quarter_memory*>(p + decltype(i)::value * step) = part;
    });
  }
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

// Whether an epilogue gives results in steps of their scale, to be rounded and moved by its zero point, a member
// `zero`.
template <class Epi, class = void>
inline constexpr bool on_grid = false;
template <class Epi>
inline constexpr bool on_grid<Epi, std::void_t<decltype(Epi::zero)>> = true;

// N results of an epilogue, W elements each, to p, p + step, ... Bytes come from integers within T's range, or,
// on_grid, from any numbers, to nearest even, plus the zero point, cut to the range, NaN to its lower end.
template <class Epi, int N, class T>
OPCEL_INLINE void store_results(const Epi& epi, T* p, std::int64_t step, const vf (&v)[N]) {
  constexpr int packed = !is_byte<T> ? 0 : on_grid<Epi> ? (N + 3) / 4 * 4 : N / 4 * 4;
  if constexpr (is_byte<T>) {
    detail::each<packed / 4>([&](auto group) __attribute__((always_inline)) {
      constexpr int i = 4 * decltype(group)::value, count = N - i < 4 ? N - i : 4;
      vi four[4];
      detail::each<4>([&](auto part) __attribute__((always_inline)) {
        constexpr int j = decltype(part)::value;
        if constexpr (on_grid<Epi>)
          four[j] = detail::nearest(v[j < count ? i + j : i]);
        else
          four[j] = to_int(v[i + j]);
      });
      std::int64_t zero = 0;
      if constexpr (on_grid<Epi>) zero = epi.zero;
      detail::store_quarters<count>(p + i * step, step,
                                    detail::packed_bytes<T>(four[0], four[1], four[2], four[3], zero));
    });
  }
  (void)epi;
  detail::each<(N > packed ? N - packed : 0)>([&](auto i) __attribute__((always_inline)) {
    store(p + (packed + decltype(i)::value) * step, v[packed + decltype(i)::value]);
  });
}

}  // namespace opcel
