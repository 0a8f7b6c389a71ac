// Inverse trigonometric, hyperbolic and inverse hyperbolic functions; a part of vmath.h, which states what holds for
// all.
//
// Largest error in ulp of the f32 result:
//   asin 2.5   acos 2.5   atan 2.5   sinh 4   cosh 4   asinh 3   acosh 4   atanh 2.5
// Outside of their domains asin, acos, acosh and atanh give NaN.
#pragma once

#include "base/vmath.h"

namespace opcel {

namespace detail {

constexpr float kPi2High = 0x1.921fb6p+0f, kPi2Low = -0x1.777a5cp-25f;

// asin x for |x| <= 1/2, z = x^2.
OPCEL_INLINE vf asin_small(vf x, vf z) {
  return fma(x * z, polynomial(z, set(0x1.595c92p-5f), 0x1.8c3e28p-6f, 0x1.747bbap-5f, 0x1.330204p-4f, 0x1.5555c8p-3f), x);
}

// atanh x for |x| <= 1/2.
OPCEL_INLINE vf atanh_small(vf x) {
  const vf z = x * x;
  return fma(x * z,
             polynomial(z, set(0x1.69442ep-3f), 0x1.a69f06p-5f, 0x1.e403bep-4f, 0x1.234d64p-3f, 0x1.99a678p-3f, 0x1.55554p-2f),
             x);
}

// asinh x for x >= 0.
OPCEL_INLINE vf asinh_positive(vf x) {
  const vf root = sqrt(fma(x, x, set(1.0f)));
  const vf small = 2.0f * atanh_small(x / (1.0f + root));
  const vi huge = x > 1e18f;
  const vf large = log(select(huge, x, x + root)) + select(huge, set(0x1.62e43p-1f), vf{});
  return select(x < 0x1p-13f, x, select(x < 1.3f, small, large));
}

}  // namespace detail

OPCEL_INLINE vf asin(vf x) {
  const vf a = abs(x), z = 0.5f * (1.0f - a), s = sqrt(z);
  const vf edge = detail::kPi2High - (2.0f * detail::asin_small(s, z) - detail::kPi2Low);
  return select(a > 0.5f, copysign(edge, x), detail::asin_small(x, x * x));
}

OPCEL_INLINE vf acos(vf x) {
  const vf a = abs(x), z = 0.5f * (1.0f - a), s = sqrt(z);
  const vf edge = 2.0f * detail::asin_small(s, z);
  const vf left = 2.0f * detail::kPi2High - (edge - 2.0f * detail::kPi2Low);
  const vf middle = detail::kPi2High - (detail::asin_small(x, x * x) - detail::kPi2Low);
  return select(a > 0.5f, select(x < 0.0f, left, edge), middle);
}

OPCEL_INLINE vf atan(vf x) {
  const vf a = abs(x);
  const vi far = a > 0x1.3504f4p+1f, middle = a > 0x1.a8279ap-2f;
  const vf u = select(far, set(-1.0f), select(middle, a - 1.0f, a)) / select(far, a, select(middle, a + 1.0f, set(1.0f)));
  const vf z = u * u;
  const vf p = fma(u * z, detail::polynomial(z, set(0x1.49e74ap-4f), -0x1.1c380cp-3f, 0x1.9924dap-3f, -0x1.555454p-2f), u);
  const vf high = select(far, set(detail::kPi2High), select(middle, set(0.5f * detail::kPi2High), vf{}));
  const vf low = select(far, set(detail::kPi2Low), select(middle, set(0.5f * detail::kPi2Low), vf{}));
  return copysign(high + (p + low), x);
}

OPCEL_INLINE vf sinh(vf x) {
  const vf a = abs(x), z = a * a, e = exp(0.5f * a);
  const vf small = fma(a * z, detail::polynomial(z, set(0x1.ab40ecp-13f), 0x1.10f764p-7f, 0x1.555598p-3f), a);
  return copysign(select(a < 1.0f, small, 0.5f * e * e - 0.5f / (e * e)), x);
}

OPCEL_INLINE vf cosh(vf x) {
  const vf e = exp(0.5f * abs(x));
  return 0.5f * e * e + 0.5f / (e * e);
}

OPCEL_INLINE vf asinh(vf x) { return copysign(detail::asinh_positive(abs(x)), x); }

// With y = sqrt((x - 1) / 2), whose square cannot overflow, it is 2 asinh y.
OPCEL_INLINE vf acosh(vf x) { return 2.0f * detail::asinh_positive(sqrt(0.5f * (x - 1.0f))); }

OPCEL_INLINE vf atanh(vf x) {
  const vf a = abs(x);
  return copysign(select(a <= 0.5f, detail::atanh_small(a), 0.5f * log((1.0f + a) / (1.0f - a))), x);
}

OPCEL_SCALAR_FORM(asin)
OPCEL_SCALAR_FORM(acos)
OPCEL_SCALAR_FORM(atan)
OPCEL_SCALAR_FORM(sinh)
OPCEL_SCALAR_FORM(cosh)
OPCEL_SCALAR_FORM(asinh)
OPCEL_SCALAR_FORM(acosh)
OPCEL_SCALAR_FORM(atanh)

}  // namespace opcel
