// Elementary functions on vectors of f32, and `float` overloads that give the same bits as a vector lane.
//
// Largest error in ulp of the f32 result, with or without a fused multiply-add:
//   exp, exp_nonpositive 1.2   log 1.0    tanh 2.5   sigmoid 2.5   silu 3.5   softplus 2.5   erf 2.5
//   sin, cos 1.5 for |x| <= 1.5, else 2 plus 2^-30 absolute        pow 0.6    rsqrt 1.5      reciprocal 0.5
//   gelu_erf, gelu_tanh 3 for x >= -1; below, 60 down to x = -5.5, where the absolute error stays under 5e-8, and an
//   absolute error under 1e-12 beyond
// NaN gives NaN (pow: see there). Infinities give the function's limit, NaN where the defining product is inf * 0
// (gelu and silu of -inf) and where there is no limit (sin, cos). Signed zeros follow IEEE 754; denormal arguments and
// results are computed, but exp_nonpositive flushes results below 2^-126 to 0.
// The coefficients are minimax fits (weighted Lawson iterations, rounded to f32 from the lowest power up).
#pragma once

#include "base/vec.h"

namespace opcel {

namespace detail {

constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
// 1.5 * 2^23: a sum with it holds the nearest integer of the other term in its low bits.
constexpr float kRound = 12582912.0f;
constexpr float kInf = __builtin_inff();

// Horner's rule, coefficients from the highest power down.
OPCEL_INLINE vf polynomial(vf, vf sum) { return sum; }
template <class... Rest>
OPCEL_INLINE vf polynomial(vf x, vf sum, float next, Rest... rest) {
  return polynomial(x, fma(sum, x, set(next)), rest...);
}

// p * 2^n, n = rounded - kRound integral; rounded once when the result is denormal.
OPCEL_INLINE vf scale(vf p, vf rounded) {
#if defined(__AVX512F__)
  return __builtin_ia32_scalefps512_mask(p, rounded - kRound, p, static_cast<unsigned short>(-1), 4);
#else
  const vi n = as_int(rounded) - as_int(set(kRound)), half = n >> 1;
  return p * as_float((half + 127) << 23) * as_float((n - half + 127) << 23);
#endif
}

// The power of two alone, for results and powers in the normal range.
OPCEL_INLINE vf power_of_two(vf rounded) { return as_float((as_int(rounded) << 23) + 0x3f800000); }
OPCEL_INLINE vf scale_normal(vf p, vf rounded) {
#if defined(__AVX512F__)
  return scale(p, rounded);
#else
  return p * power_of_two(rounded);
#endif
}

struct Reduced {
  vf rounded, rest;
};
// x = n ln 2 + rest.
OPCEL_INLINE Reduced reduce_ln2(vf x) {
  const vf rounded = fma(x, set(kLog2E), set(kRound)), n = rounded - kRound;
  return {rounded, fma(n, set(-kLn2Low), fma(n, set(-kLn2High), x))};
}

OPCEL_INLINE vf exp_polynomial(vf r) {
  return polynomial(r, set(0x1.6a495cp-10f), 0x1.1239ap-7f, 0x1.5558b4p-5f, 0x1.555492p-3f, 0x1.fffffcp-2f, 1.0f, 1.0f);
}

OPCEL_INLINE vf exp2_polynomial(vf r) {
  return polynomial(r, set(0x1.417284p-13f), 0x1.5f0976p-10f, 0x1.3b2ddap-7f, 0x1.c6af7ap-5f, 0x1.ebfbdcp-3f,
                    0x1.62e43p-1f, 1.0f);
}

// 2^-q for q >= 0, 0 above 126, NaN for NaN.
OPCEL_INLINE vf exp2_minus(vf q) {
  const vf rounded = kRound - q;
  const vf r = (kRound - rounded) - q;
  return select(q > 126.0f, vf{}, scale_normal(exp2_polynomial(r), rounded));
}

// The normal distribution's upper tail, 1 - Phi(t) = 2^-q(t), for t >= 0.
OPCEL_INLINE vf normal_tail(vf t) {
  return exp2_minus(polynomial(t, set(0x1.c73870p-26f), -0x1.a73b48p-21f, 0x1.52eac8p-17f, -0x1.28e7dcp-14f,
                               0x1.0eb2fp-12f, 0x1.94c452p-15f, -0x1.cb5f5ap-8f, 0x1.adf54ep-5f, 0x1.d63a34p-2f,
                               0x1.26aedep+0f, 1.0f));
}

typedef double vd __attribute__((vector_size(4 * W)));
typedef std::int64_t vl __attribute__((vector_size(4 * W)));
typedef float vh __attribute__((vector_size(2 * W)));

OPCEL_INLINE vd polynomial_d(vd, vd sum) { return sum; }
template <class... Rest>
OPCEL_INLINE vd polynomial_d(vd x, vd sum, double next, Rest... rest) {
  return polynomial_d(x, sum * x + next, rest...);
}

// 2^(y log2 x) for finite x > 0.
OPCEL_INLINE vd power_d(vd x, vd y) {
  constexpr std::int64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  const vl bits = (vl)x - kSqrtHalf;
  const vd m = (vd)((bits & 0xfffffffffffff) + kSqrtHalf);
  constexpr double kRoundD = 6755399441055744.0;
  // bits >> 52 as a double: the biased exponent is small, so it fits the low bits of the rounding constant.
  const vd e = (vd)((bits >> 52) + 0x4338000000000000) - kRoundD;
  const vd s = (m - 1.0) / (m + 1.0);
  const vd log2 = e + s * polynomial_d(s * s, vd{} + 0.28290326522197234, 0.31990543049977743, 0.4122092603541516,
                                       0.5770779422668897, 0.9617966941138122, 2.8853900817778486);
  vd z = y * log2;
  z = z > 200.0 ? vd{} + 200.0 : z;
  z = z < -200.0 ? vd{} - 200.0 : z;
  const vd rounded = z + kRoundD, r = z - (rounded - kRoundD);
  const vd p = polynomial_d(r, vd{} + 1.3264073661083672e-06, 1.5310081312002983e-05, 0.0001540341161762747,
                            0.0013333450559881712, 0.009618129228503816, 0.05550410941215744, 0.24022650695467304,
                            0.6931471805459306, 1.0);
  return p * (vd)(((vl)rounded << 52) + 0x3ff0000000000000);
}

template <bool Cosine>
OPCEL_INLINE vf sine(vf x) {
  // pi/2 in four pieces whose products with an integer up to 4096 are exact but for the last.
  constexpr float kLimit = 6000.0f;
  const vf rounded = fma(x, set(0x1.45f306p-1f), set(kRound)), n = rounded - kRound;
  vf r = fma(n, set(-0x1.92p+0f), x);
  r = fma(n, set(-0x1.fb4p-12f), r);
  r = fma(n, set(-0x1.444p-24f), r);
  r = fma(n, set(-0x1.68c234p-39f), r);
  const vf u = r * r;
  const vf s = fma(r * u, polynomial(u, set(-0x1.9954a8p-13f), 0x1.11077ap-7f, -0x1.555546p-3f), r);
  const vf c =
      fma(u * u, polynomial(u, set(0x1.99e0ecp-16f), -0x1.6c0c1ap-10f, 0x1.55554ap-5f), fma(u, set(-0.5f), set(1.0f)));
  const vi quadrant = as_int(rounded) + (Cosine ? 1 : 0);
  vf y = select((quadrant & 1) != 0, c, s);
  y = as_float(as_int(y) ^ ((quadrant & 2) << 30));
  if constexpr (!Cosine) y = select(x == 0.0f, x, y);
  const vi far = ~(abs(x) <= kLimit);
  bool any = false;
  for (int i = 0; i < W; ++i) any |= far[i] != 0;
  if (__builtin_expect(any, 0))
    for (int i = 0; i < W; ++i)
      if (far[i]) y[i] = Cosine ? __builtin_cosf(x[i]) : __builtin_sinf(x[i]);
  return y;
}

}  // namespace detail

OPCEL_INLINE vf reciprocal(vf x) { return 1.0f / x; }
OPCEL_INLINE vf rsqrt(vf x) { return 1.0f / sqrt(x); }

OPCEL_INLINE vf exp(vf x) {
  const auto [rounded, r] = detail::reduce_ln2(x);
  const vf y = detail::scale(detail::exp_polynomial(r), rounded);
  return select(x > 0x1.62e42ep+6f, set(detail::kInf), select(x < -104.0f, vf{}, y));
}

// exp for x <= 0 (or NaN), for softmax: results below 2^-126 are 0.
OPCEL_INLINE vf exp_nonpositive(vf x) {
  const auto [rounded, r] = detail::reduce_ln2(x);
  return select(x < -87.25f, vf{}, detail::scale_normal(detail::exp_polynomial(r), rounded));
}

// Natural logarithm; -inf for 0, NaN below.
OPCEL_INLINE vf log(vf x) {
  constexpr std::int32_t kSqrtHalf = 0x3f3504f3;
  const vi denormal = x < 0x1p-126f;
  const vi bits = as_int(select(denormal, x * 0x1p23f, x)) - kSqrtHalf;
  const vf e = to_float((bits >> 23) + (denormal & -23));
  const vf f = as_float((bits & 0x7fffff) + kSqrtHalf) - 1.0f, u = f * f;
  const vf q = detail::polynomial(f, set(-0x1.38c974p-4f), 0x1.055eaep-3f, -0x1.0d8246p-3f, 0x1.22d93p-3f,
                                  -0x1.54728ap-3f, 0x1.99a01cp-3f, -0x1.000226p-2f, 0x1.555554p-2f);
  vf y = fma(f * u, q, e * detail::kLn2Low);
  y = fma(u, set(-0.5f), y) + f;
  y = fma(e, set(detail::kLn2High), y);
  y = select(x < detail::kInf, y, x);
  y = select(x < 0.0f, set(__builtin_nanf("")), y);
  return select(x == 0.0f, set(-detail::kInf), y);
}

OPCEL_INLINE vf tanh(vf x) {
  const auto [rounded, r] = detail::reduce_ln2(2.0f * min(set(10.0f), abs(x)));
  const vf q =
      detail::polynomial(r, set(0x1.6b9caap-10f), 0x1.12256p-7f, 0x1.5556f2p-5f, 0x1.5554b4p-3f, 0x1.fffffep-2f);
  const vf s = detail::power_of_two(rounded);
  const vf e = fma(s, fma(r * r, q, r), s - 1.0f);  // exp(2|x|) - 1
  return copysign(e / (e + 2.0f), x);
}

// 1 / (1 + exp(-x)).
OPCEL_INLINE vf sigmoid(vf x) {
  const vf e = exp(-abs(x));
  return select(x < 0.0f, e, set(1.0f)) / (1.0f + e);
}

// x * sigmoid(x).
OPCEL_INLINE vf silu(vf x) { return x * sigmoid(x); }

// log(1 + exp(x)) = max(x, 0) + 2 atanh(e / (2 + e)) with e = exp(-|x|).
OPCEL_INLINE vf softplus(vf x) {
  const vf e = exp(-abs(x));
  const vf s = e / (2.0f + e), u = s * s;
  const vf q = detail::polynomial(u, set(0x1.1efd6cp-2f), 0x1.1eb4d2p-2f, 0x1.99d294p-2f, 0x1.5555p-1f);
  return max(vf{}, x) + fma(s * u, q, 2.0f * s);
}

OPCEL_INLINE vf erf(vf x) {
  const vf t = abs(x), u = x * x;
  const vf g = detail::polynomial(u, set(-0x1.8bb296p-16f), -0x1.00e4f8p-11f, 0x1.3cab2p-8f, -0x1.b4e07p-6f,
                                  0x1.cdfd3p-4f, -0x1.81262ep-2f, 0x1.20dd74p+0f);
  const vf tail = fma(set(-2.0f), detail::normal_tail(t * 0x1.6a09e6p+0f), set(1.0f));
  return select(t < 1.0f, x * g, copysign(tail, x));
}

// x * Phi(x), the exact GELU.
OPCEL_INLINE vf gelu_erf(vf x) {
  const vf tail = detail::normal_tail(abs(x));
  return x * select(x < 0.0f, tail, 1.0f - tail);
}

// x/2 * (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
OPCEL_INLINE vf gelu_tanh(vf x) {
  const vf u = x * fma(x * x, set(0x1.2444f2p-4f), set(0x1.988454p+0f));  // twice the argument of tanh
  const vf e = exp_nonpositive(-abs(u));
  return x * (select(x < 0.0f, e, set(1.0f)) / (1.0f + e));
}

OPCEL_INLINE vf sin(vf x) { return detail::sine<false>(x); }
OPCEL_INLINE vf cos(vf x) { return detail::sine<true>(x); }

// x to the power y with every special case of C's powf: 1 for y = 0 or x = 1 even if the other is NaN, NaN for finite x
// < 0 and y not an integer, the sign of x kept for odd y.
OPCEL_INLINE vf pow(vf x, vf y) {
  const vf a = abs(x);
  detail::vh a_half[2], y_half[2];
  __builtin_memcpy(a_half, &a, sizeof a);
  __builtin_memcpy(y_half, &y, sizeof y);
  for (int i = 0; i < 2; ++i)
    a_half[i] = __builtin_convertvector(
        detail::power_d(__builtin_convertvector(a_half[i], detail::vd), __builtin_convertvector(y_half[i], detail::vd)),
        detail::vh);
  vf z;
  __builtin_memcpy(&z, a_half, sizeof z);
  z = select(a == 0.0f, select(y < 0.0f, set(detail::kInf), vf{}), z);
  z = select(a == detail::kInf, select(y < 0.0f, vf{}, set(detail::kInf)), z);
  z = select(a == 1.0f, set(1.0f), z);
  const vf half = 0.5f * y;
  const vi integer = round_even(y) == y, odd = integer & (round_even(half) != half);
  z = as_float(as_int(z) | (odd & as_int(x) & as_int(set(-0.0f))));
  z = select((x < 0.0f) & (a < detail::kInf) & ~integer, set(__builtin_nanf("")), z);
  z = select((x == x) & (y == y), z, x + y);
  return select((y == 0.0f) | (x == 1.0f), set(1.0f), z);
}

#define OPCEL_SCALAR_FORM(NAME) \
  inline float NAME(float x) { return NAME(set(x))[0]; }
OPCEL_SCALAR_FORM(reciprocal)
OPCEL_SCALAR_FORM(rsqrt)
OPCEL_SCALAR_FORM(exp)
OPCEL_SCALAR_FORM(exp_nonpositive)
OPCEL_SCALAR_FORM(log)
OPCEL_SCALAR_FORM(tanh)
OPCEL_SCALAR_FORM(sigmoid)
OPCEL_SCALAR_FORM(silu)
OPCEL_SCALAR_FORM(softplus)
OPCEL_SCALAR_FORM(erf)
OPCEL_SCALAR_FORM(gelu_erf)
OPCEL_SCALAR_FORM(gelu_tanh)
OPCEL_SCALAR_FORM(sin)
OPCEL_SCALAR_FORM(cos)
inline float pow(float x, float y) { return pow(set(x), set(y))[0]; }

}  // namespace opcel

#include "base/vmath_arcs.h"

#undef OPCEL_SCALAR_FORM
