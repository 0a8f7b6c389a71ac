// Vectors of f32 from scattered places.
#pragma once

#include "base/vec.h"

namespace opcel {

// p[index[0]], p[index[1]], …: each lane's element is read.
OPCEL_INLINE vf gather(const float* p, vi index) {
#if defined(__AVX512F__)
  return __builtin_ia32_gathersiv16sf(vf{}, p, index, static_cast<unsigned short>(-1), 4);
#elif defined(__AVX2__) && !defined(__clang__)
  return __builtin_ia32_gathersiv8sf(vf{}, p, index, as_float(set_i(-1)), 4);
#else
  vf v;
  for (int i = 0; i < W; ++i) v[i] = p[index[i]];
  return v;
#endif
}

}  // namespace opcel
