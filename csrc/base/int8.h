// Sums of products of bytes: u8 times s8, added up in s32, exactly, four products a lane and step.
//
// Every level gives the same bits. A sum wraps around past 2^31, so whoever adds up k products must know that
// k * 255 * 128 stays below that, as it does up to k = 65,793.
#pragma once

#include <cstdint>

#include "base/vec.h"

namespace opcel {

// W groups of four bytes, the first of a group in the lowest byte of its lane.
typedef vi quads;

// W groups that lie one after another at p, any alignment.
OPCEL_INLINE quads load_quads(const std::int8_t* p) { return load_i(reinterpret_cast<const std::int32_t*>(p)); }
OPCEL_INLINE quads load_quads(const std::uint8_t* p) { return load_i(reinterpret_cast<const std::int32_t*>(p)); }

// The four bytes at p in every lane.
OPCEL_INLINE quads set_quads(const std::uint8_t* p) {
  typedef std::int32_t quad_memory __attribute__((aligned(1), may_alias));
  return set_i(*reinterpret_cast<const quad_memory*>(p));
}

namespace detail {

typedef std::uint32_t v_bits __attribute__((vector_size(4 * W)));

#if !defined(__AVX512VNNI__) && defined(__SSE2__)
typedef std::int16_t v_shorts __attribute__((vector_size(4 * W)));

// The bytes 0 and 2 of each lane, or 1 and 3, as s16.
template <int Odd, bool Signed>
OPCEL_INLINE v_shorts widen_bytes(quads v) {
  typedef std::uint16_t v_words __attribute__((vector_size(4 * W)));
  if constexpr (Signed)
    return (Odd ? (v_shorts)v : (v_shorts)((v_words)v << 8)) >> 8;
  else
    return (v_shorts)(Odd ? (v_words)v >> 8 : (v_words)v & 0xff);
}

// Lane i: a[2i] b[2i] + a[2i + 1] b[2i + 1].
OPCEL_INLINE vi multiply_add(v_shorts a, v_shorts b) {
  vi sum;
#if defined(__AVX512F__)
  asm("vpmaddwd %2, %1, %0" : "=v"(sum) : "v"(a), "v"(b));
#elif defined(__AVX2__)
  asm("vpmaddwd %2, %1, %0" : "=x"(sum) : "x"(a), "x"(b));
#else
  asm("pmaddwd %1, %0" : "+x"(a) : "x"(b));
  sum = (vi)a;
#endif
  return sum;
}
#endif

}  // namespace detail

// acc[i] += the sum of x[i][j] * w[i][j] for j = 0 .. 3, x unsigned and w signed; the accumulator of a register tile,
// which keeps its register.
OPCEL_INLINE void dot(vi& acc, quads x, quads w) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
#elif defined(__SSE2__)
  // 255 * 128 * 2 fits into s32, not into the s16 of an instruction that multiplies bytes and adds neighbours.
  acc += detail::multiply_add(detail::widen_bytes<0, false>(x), detail::widen_bytes<0, true>(w));
  acc += detail::multiply_add(detail::widen_bytes<1, false>(x), detail::widen_bytes<1, true>(w));
  keep(acc);
#else
  for (int shift = 0; shift < 32; shift += 8)
    acc += ((x >> shift) & 0xff) * ((vi)((detail::v_bits)w << (24 - shift)) >> 24);
#endif
}

// The same in the first W / 2 lanes at least.
OPCEL_INLINE void dot_half(vi& acc, quads x, quads w) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  asm("vpdpbusd %t2, %t1, %t0" : "+v"(acc) : "v"(x), "v"(w));
#else
  dot(acc, x, w);
#endif
}

// A sum as a real number: the s32 and the product each rounded once, on every level, whatever is added to it.
OPCEL_INLINE vf scaled(vi sum, vf scale) {
  vf v = to_float(sum) * scale;
  keep(v);
  return v;
}

}  // namespace opcel
