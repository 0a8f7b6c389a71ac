// Integer arithmetic of symbolic dims, rounding towards minus infinity.
#pragma once

#include <cstdint>

namespace opcel {
namespace dims {

inline std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - ((a % b != 0) & ((a < 0) != (b < 0))); }
inline std::int64_t floor_mod(std::int64_t a, std::int64_t b) { return a - floor_div(a, b) * b; }
inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
inline std::int64_t greatest(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

// The same for estimates of what may not fit.
inline double floor_div(double a, double b) { return __builtin_floor(a / b); }
inline double floor_mod(double a, double b) { return a - floor_div(a, b) * b; }
inline double least(double a, double b) { return a < b ? a : b; }
inline double greatest(double a, double b) { return a > b ? a : b; }

}  // namespace dims
}  // namespace opcel
