// bf16: the upper 16 bits of an f32, so 8 bits of precision and the range of f32. Conversions, and the dot product of
// pairs.
//
// With the instructions of AVX512_BF16 denormals count as zero, as operands, products and sums; without them the same
// functions compute with integers and f32, keep denormals, and may round sums otherwise.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "base/vec.h"

namespace opcel {

struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  // To nearest even. A double is rounded twice, but for the first time to odd, which costs nothing.
  template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>
  explicit bf16(T x) : bits(round(odd(x))) {}
  operator float() const {
    const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
    float x;
    std::memcpy(&x, &wide, sizeof x);
    return x;
  }

 private:
  static float odd(float x) { return x; }
  static float odd(double x) {
    const float near = static_cast<float>(x);
    std::uint32_t wide;
    std::memcpy(&wide, &near, sizeof wide);
    if (near != near || static_cast<double>(near) == x || wide & 1) return near;
    // `near` is even and not x: its neighbour on the other side of x is odd.
    wide += __builtin_fabs(static_cast<double>(near)) < __builtin_fabs(x) ? 1u : -1u;
    float x_odd;
    std::memcpy(&x_odd, &wide, sizeof x_odd);
    return x_odd;
  }
  template <class T>
  static float odd(T x) {
    return odd(static_cast<double>(x));
  }
  static std::uint16_t round(float x) {
    std::uint32_t wide;
    std::memcpy(&wide, &x, sizeof wide);
    if (x != x) return static_cast<std::uint16_t>(wide >> 16 | 0x40u);
    return static_cast<std::uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  }
};

namespace detail {
typedef std::uint32_t v32 __attribute__((vector_size(4 * W)));
typedef std::uint16_t v16 __attribute__((vector_size(2 * W)));
typedef std::uint16_t v16_memory __attribute__((vector_size(2 * W), aligned(2), may_alias));

// bf16 bits in the upper half of each lane, to nearest even; the lower half is unspecified. A NaN stays one.
OPCEL_INLINE v32 round_upper(vf v) {
  const v32 bits = (v32)v;
  const v32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return (v32)(v == v ? (vi)rounded : (vi)(bits | 0x400000u));
}

// g++ takes __builtin_convertvector apart into quarters.
OPCEL_INLINE v32 widen(v16 half) {
#if defined(__AVX512F__) && !defined(__clang__)
  typedef short signed_half __attribute__((vector_size(2 * W)));
  return (v32)__builtin_ia32_pmovzxwd512_mask((signed_half)half, vi{}, static_cast<unsigned short>(-1));
#else
  return __builtin_convertvector(half, v32);
#endif
}
}  // namespace detail

// W elements, any alignment, widened.
OPCEL_INLINE vf load(const bf16* p) {
  const detail::v16 half = *reinterpret_cast<const detail::v16_memory*>(p);
  return (vf)(detail::widen(half) << 16);
}
// Every lane equal to x.
OPCEL_INLINE vf set(bf16 x) { return (vf)(set_i(x.bits) << 16); }

// The first n elements at p (0 <= n <= W), zero in the other lanes; memory past them is not touched.
OPCEL_INLINE vf load_n(const bf16* p, int n) {
  bf16 all[W] = {};
  for (int i = 0; i < W; ++i)
    if (i < n) all[i] = p[i];
  return load(all);
}

// To p, each lane rounded to the nearest bf16, ties to even.
OPCEL_INLINE void store(bf16* p, vf v) {
  detail::v16 half;
#if defined(__AVX512BF16__)
  asm("vcvtneps2bf16 %1, %0" : "=v"(half) : "v"(v));
#else
  half = __builtin_convertvector(detail::round_upper(v) >> 16, detail::v16);
#endif
  *reinterpret_cast<detail::v16_memory*>(p) = half;
}
// The first n lanes of v to p (0 <= n <= W); memory past them is not touched.
OPCEL_INLINE void store_n(bf16* p, vf v, int n) {
  bf16 all[W];
  store(all, v);
  for (int i = 0; i < W; ++i)
    if (i < n) p[i] = all[i];
}

template <bool Tail>
OPCEL_INLINE vf load_t(const bf16* p, int n) {
  return Tail ? load_n(p, n) : load(p);
}
template <bool Tail>
OPCEL_INLINE void store_t(bf16* p, vf v, int n) {
  if constexpr (Tail)
    store_n(p, v, n);
  else
    store(p, v);
}

// W pairs of bf16, the first of each pair in the lower half of its lane.
typedef vi pairs;

// W pairs that lie one after another at p, any alignment.
OPCEL_INLINE pairs load_pairs(const bf16* p) { return load_i(reinterpret_cast<const std::int32_t*>(p)); }
OPCEL_INLINE void store_pairs(bf16* p, pairs v) { store_i(reinterpret_cast<std::int32_t*>(p), v); }

// The pair at p in every lane.
OPCEL_INLINE pairs set_pair(const bf16* p) {
  typedef std::int32_t pair_memory __attribute__((aligned(2), may_alias));
  return set_i(*reinterpret_cast<const pair_memory*>(p));
}

// The elements of low and then of high, rounded.
OPCEL_INLINE pairs round_pairs(vf low, vf high) {
#if defined(__AVX512BF16__)
  pairs v;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(v) : "v"(low), "v"(high));
  return v;
#else
  bf16 all[2 * W];
  store(all, low);
  store(all + W, high);
  return load_pairs(all);
#endif
}

// Lane i is the pair (first[i], second[i]), rounded.
OPCEL_INLINE pairs interleave(vf first, vf second) {
#if defined(__AVX512BF16__)
  detail::v16 low, high;
  asm("vcvtneps2bf16 %1, %0" : "=v"(low) : "v"(first));
  asm("vcvtneps2bf16 %1, %0" : "=v"(high) : "v"(second));
  return (vi)(detail::widen(low) | detail::widen(high) << 16);
#else
  return (vi)((detail::round_upper(first) >> 16) | (detail::round_upper(second) & 0xffff0000u));
#endif
}

// The same from memory: the first n elements (0 <= n <= W) of two rows.
OPCEL_INLINE pairs interleave_n(const float* first, const float* second, int n) {
  return n == W ? interleave(load(first), load(second)) : interleave(load_n(first, n), load_n(second, n));
}
OPCEL_INLINE pairs interleave_n(const bf16* first, const bf16* second, int n) {
  bf16 rows[2][W] = {};
  for (int i = 0; i < W; ++i)
    if (i < n) rows[0][i] = first[i], rows[1][i] = second[i];
  const detail::v16 low = *reinterpret_cast<const detail::v16_memory*>(n == W ? first : rows[0]);
  const detail::v16 high = *reinterpret_cast<const detail::v16_memory*>(n == W ? second : rows[1]);
  return (vi)(detail::widen(low) | detail::widen(high) << 16);
}

// The first n elements (0 <= n <= 2 W) at p, zero after them.
OPCEL_INLINE pairs load_pairs_n(const float* p, int n) {
  if (n == 2 * W) return round_pairs(load(p), load(p + W));
  return round_pairs(load_n(p, n < W ? n : W), n > W ? load_n(p + W, n - W) : vf{});
}
OPCEL_INLINE pairs load_pairs_n(const bf16* p, int n) {
  if (n == 2 * W) return load_pairs(p);
  bf16 all[2 * W] = {};
  for (int i = 0; i < 2 * W; ++i)
    if (i < n) all[i] = p[i];
  return load_pairs(all);
}

// The first and second elements of the pairs, widened.
OPCEL_INLINE vf first_of(pairs v) { return (vf)((detail::v32)v << 16); }
OPCEL_INLINE vf second_of(pairs v) { return (vf)((detail::v32)v & 0xffff0000u); }

// acc[i] += a[i].first * b[i].first + a[i].second * b[i].second, the accumulator of a register tile, which keeps its
// register.
OPCEL_INLINE void dot(vf& acc, pairs a, pairs b) {
#if defined(__AVX512BF16__)
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#else
  accumulate(acc, second_of(a), second_of(b));
  accumulate(acc, first_of(a), first_of(b));
#endif
}

// The same in the first W / 2 lanes at least.
OPCEL_INLINE void dot_half(vf& acc, pairs a, pairs b) {
#if defined(__AVX512BF16__) && defined(__AVX512VL__)
  asm("vdpbf16ps %t2, %t1, %t0" : "+v"(acc) : "v"(a), "v"(b));
#else
  dot(acc, a, b);
#endif
}

// n elements from f32 to bf16.
OPCEL_INLINE void round_row(bf16* to, const float* from, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  if (i < n) store_n(to + i, load_n(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

}  // namespace opcel
