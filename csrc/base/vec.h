// Vectors of f32 and i32, one width per translation unit: the widest the compiler's target flags allow.
//
// Built on the GCC/clang vector extensions, so arithmetic, comparison and bitwise operators work on `vf` and `vi`
// directly. A comparison of two `vf` gives a `vi` whose lanes are 0 or -1. Nothing here includes a system header beyond
// <cstdint> and <utility>.
#pragma once

#include <cstdint>
#include <utility>

#define OPCEL_INLINE inline __attribute__((always_inline))
// In front of a loop with a small constant trip count: no loop is left.
#if defined(__clang__)
#define OPCEL_UNROLL _Pragma("clang loop unroll(full)")
#else
#define OPCEL_UNROLL _Pragma("GCC unroll 64")
#endif

namespace opcel {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(4 * W)));
typedef std::int32_t vi __attribute__((vector_size(4 * W)));

namespace detail {
typedef float vf_memory __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef std::int32_t vi_memory __attribute__((vector_size(4 * W), aligned(4), may_alias));

// lane index: 0, 1, .. W-1
OPCEL_INLINE vi lanes() {
#if defined(__AVX512F__)
  return vi{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif defined(__AVX2__)
  return vi{0, 1, 2, 3, 4, 5, 6, 7};
#else
  return vi{0, 1, 2, 3};
#endif
}
}  // namespace detail

// Hides the value's history from the optimizer at no cost. After each step of a register tile it stops g++ from moving
// accumulators to the stack at loop edges; on a pointer it stops g++ from keeping the elements of overlapping windows
// alive.
namespace detail {
template <class V>
OPCEL_INLINE void keep_vector(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__SSE2__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}
}  // namespace detail
OPCEL_INLINE void keep(vf& v) { detail::keep_vector(v); }
OPCEL_INLINE void keep(vi& v) { detail::keep_vector(v); }
template <class T>
OPCEL_INLINE void keep(const T*& p) {
  asm volatile("" : "+r"(p));
}

// Every lane equal to x.
OPCEL_INLINE vf set(float x) { return x - vf{}; }
OPCEL_INLINE vi set_i(std::int32_t x) { return x - vi{}; }

// Same bits, other type.
OPCEL_INLINE vi as_int(vf v) { return (vi)v; }
OPCEL_INLINE vf as_float(vi v) { return (vf)v; }

// W elements at p, any alignment.
OPCEL_INLINE vf load(const float* p) { return *reinterpret_cast<const detail::vf_memory*>(p); }
OPCEL_INLINE void store(float* p, vf v) { *reinterpret_cast<detail::vf_memory*>(p) = v; }
// The same past the caches, for p a multiple of a vector; other cores see it after `streamed`.
OPCEL_INLINE void stream(float* p, vf v) {
#if defined(__clang__)
  __builtin_nontemporal_store(v, reinterpret_cast<vf*>(p));
#elif defined(__AVX512F__)
  __builtin_ia32_movntps512(p, v);
#elif defined(__AVX2__)
  __builtin_ia32_movntps256(p, v);
#elif defined(__SSE2__)
  __builtin_ia32_movntps(p, v);
#else
  store(p, v);
#endif
}
OPCEL_INLINE void streamed() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}
OPCEL_INLINE vi load_i(const std::int32_t* p) { return *reinterpret_cast<const detail::vi_memory*>(p); }
OPCEL_INLINE void store_i(std::int32_t* p, vi v) { *reinterpret_cast<detail::vi_memory*>(p) = v; }

// The first n elements at p (0 <= n <= W), zero in the other lanes; memory past them is not touched.
OPCEL_INLINE vf load_n(const float* p, int n) {
#if defined(__AVX512F__)
  return __builtin_ia32_loadups512_mask(p, vf{}, static_cast<unsigned short>((1u << n) - 1));
#elif defined(__AVX2__)
  return __builtin_ia32_maskloadps256(reinterpret_cast<const vf*>(p), (vi)(detail::lanes() < n));
#else
  vf v{};
  for (int i = 0; i < W; ++i)
    if (i < n) v[i] = p[i];
  return v;
#endif
}

// The first n lanes of v to p (0 <= n <= W); memory past them is not touched.
OPCEL_INLINE void store_n(float* p, vf v, int n) {
#if defined(__AVX512F__)
  __builtin_ia32_storeups512_mask(p, v, static_cast<unsigned short>((1u << n) - 1));
#elif defined(__AVX2__)
  __builtin_ia32_maskstoreps256(reinterpret_cast<vf*>(p), (vi)(detail::lanes() < n), v);
#else
  for (int i = 0; i < W; ++i)
    if (i < n) p[i] = v[i];
#endif
}

// load/store of a whole vector, or of its first n lanes when Tail.
template <bool Tail>
OPCEL_INLINE vf load_t(const float* p, int n) {
  if constexpr (Tail)
    return load_n(p, n);
  else
    return load(p);
}

template <bool Tail>
OPCEL_INLINE void store_t(float* p, vf v, int n) {
  if constexpr (Tail)
    store_n(p, v, n);
  else
    store(p, v);
}

// mask ? a : b, lane by lane; a mask lane is 0 or -1.
OPCEL_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
OPCEL_INLINE vi select_i(vi mask, vi a, vi b) { return mask ? a : b; }

// -1 in the first n lanes, 0 in the others.
OPCEL_INLINE vi first_lanes(int n) { return detail::lanes() < n; }

// a * b + c, rounded once where the target has a fused multiply-add, else twice.
OPCEL_INLINE vf fma(vf a, vf b, vf c) {
#if defined(__clang__) && (defined(__FMA__) || defined(__AVX512F__))
  return __builtin_elementwise_fma(a, b, c);
#elif defined(__AVX512F__)
  return __builtin_ia32_vfmaddps512_mask(a, b, c, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__) && defined(__FMA__)
  return __builtin_ia32_vfmaddps256(a, b, c);
#else
  return a * b + c;
#endif
}

// acc += a * b, the same arithmetic as fma, for the accumulators of a register tile: acc stays in its register. Left to
// choose, g++ overwrites other operands and then runs out of registers in large tiles.
OPCEL_INLINE void accumulate(vf& acc, vf a, vf b) {
#if defined(__AVX512F__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
#elif defined(__AVX2__) && defined(__FMA__)
  asm("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b));
#else
  acc = fma(a, b, acc);
  keep(acc);
#endif
}

// The same in the first W / 2 lanes at least.
OPCEL_INLINE void accumulate_half(vf& acc, vf a, vf b) {
#if defined(__AVX512VL__) && !defined(__clang__)
  asm("vfmadd231ps %t2, %t1, %t0" : "+v"(acc) : "v"(a), "v"(b));
#else
  accumulate(acc, a, b);
#endif
}

// c > x ? c : x and c < x ? c : x. A NaN in x propagates, one in c does not; of two zeros the result is x.
OPCEL_INLINE vf max(vf c, vf x) {
#if defined(__clang__)
  return c > x ? c : x;
#elif defined(__AVX512F__)
  return __builtin_ia32_maxps512_mask(c, x, c, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__)
  return __builtin_ia32_maxps256(c, x);
#elif defined(__SSE2__)
  return __builtin_ia32_maxps(c, x);
#else
  return c > x ? c : x;
#endif
}
OPCEL_INLINE vf min(vf c, vf x) {
#if defined(__clang__)
  return c < x ? c : x;
#elif defined(__AVX512F__)
  return __builtin_ia32_minps512_mask(c, x, c, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__)
  return __builtin_ia32_minps256(c, x);
#elif defined(__SSE2__)
  return __builtin_ia32_minps(c, x);
#else
  return c < x ? c : x;
#endif
}

OPCEL_INLINE vf abs(vf v) { return as_float(as_int(v) & 0x7fffffff); }
// |magnitude| with the sign bit of sign.
OPCEL_INLINE vf copysign(vf magnitude, vf sign) {
  return as_float((as_int(magnitude) & 0x7fffffff) | (as_int(sign) & static_cast<std::int32_t>(0x80000000u)));
}

// Correctly rounded square root; NaN for a negative argument, -0 for -0.
OPCEL_INLINE vf sqrt(vf v) {
#if defined(__clang__)
  return __builtin_elementwise_sqrt(v);
#elif defined(__AVX512F__)
  return __builtin_ia32_sqrtps512_mask(v, v, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__)
  return __builtin_ia32_sqrtps256(v);
#elif defined(__SSE2__)
  return __builtin_ia32_sqrtps(v);
#else
  for (int i = 0; i < W; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}

namespace detail {
// Mode: 0 to nearest even, 1 down, 2 up.
template <int Mode>
OPCEL_INLINE vf round_to(vf v) {
#if defined(__AVX512F__)
  return __builtin_ia32_rndscaleps_mask(v, 8 | Mode, v, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__)
  return __builtin_ia32_roundps256(v, 8 | Mode);
#else
  const vf two23 = set(8388608.0f);
  vf r = (abs(v) + two23) - two23;
  r = copysign(r, v);
  if constexpr (Mode == 1) r = r > v ? r - 1.0f : r;
  if constexpr (Mode == 2) r = r < v ? r + 1.0f : r;
  return abs(v) < two23 ? copysign(r, v) : v;
#endif
}
}  // namespace detail

// To an integral value, sign of zero, infinities and NaN kept.
OPCEL_INLINE vf round_even(vf v) { return detail::round_to<0>(v); }
OPCEL_INLINE vf floor(vf v) { return detail::round_to<1>(v); }
OPCEL_INLINE vf ceil(vf v) { return detail::round_to<2>(v); }

// Truncation towards zero; outside of int32 the result is INT32_MIN on x86.
OPCEL_INLINE vi to_int(vf v) { return __builtin_convertvector(v, vi); }
OPCEL_INLINE vf to_float(vi v) { return __builtin_convertvector(v, vf); }

namespace detail {
// Lane i of the result is lane i ^ Distance of v.
template <int Distance>
OPCEL_INLINE vf swap(vf v) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(v, v, 0 ^ Distance, 1 ^ Distance, 2 ^ Distance, 3 ^ Distance, 4 ^ Distance, 5 ^ Distance,
                                 6 ^ Distance, 7 ^ Distance, 8 ^ Distance, 9 ^ Distance, 10 ^ Distance, 11 ^ Distance,
                                 12 ^ Distance, 13 ^ Distance, 14 ^ Distance, 15 ^ Distance);
#elif defined(__AVX2__)
  return __builtin_shufflevector(v, v, 0 ^ Distance, 1 ^ Distance, 2 ^ Distance, 3 ^ Distance, 4 ^ Distance, 5 ^ Distance,
                                 6 ^ Distance, 7 ^ Distance);
#else
  return __builtin_shufflevector(v, v, 0 ^ Distance, 1 ^ Distance, 2 ^ Distance, 3 ^ Distance);
#endif
}

template <int G, int J, class Index>
struct Spread;
template <int G, int J, int... I>
struct Spread<G, J, std::integer_sequence<int, I...>> {
  static OPCEL_INLINE vf of(vf v) { return __builtin_shufflevector(v, v, (I / G * G + J)...); }
};

template <class Op>
OPCEL_INLINE float reduce(vf v, Op op) {
  if constexpr (W >= 16) v = op(v, swap<8 % W>(v));
  if constexpr (W >= 8) v = op(v, swap<4 % W>(v));
  v = op(v, swap<2>(v));
  v = op(v, swap<1>(v));
  return v[0];
}
}  // namespace detail

// Lane J of each run of G lanes to all lanes of the run; G divides W.
template <int G, int J>
OPCEL_INLINE vf spread(vf v) {
  if constexpr (G == 1)
    return v;
  else
    return detail::Spread<G, J, std::make_integer_sequence<int, W>>::of(v);
}

// Over all lanes, by halving (a fixed order). hmax and hmin give NaN if any lane is NaN.
OPCEL_INLINE float hsum(vf v) {
  return detail::reduce(v, [](vf a, vf b) __attribute__((always_inline)) { return a + b; });
}
OPCEL_INLINE float hmax(vf v) {
  return detail::reduce(v, [](vf a, vf b) __attribute__((always_inline)) { return select(a != a, a, max(a, b)); });
}
OPCEL_INLINE float hmin(vf v) {
  return detail::reduce(v, [](vf a, vf b) __attribute__((always_inline)) { return select(a != a, a, min(a, b)); });
}

}  // namespace opcel
