// The floating-point mode that kernels run under: round to nearest, denormals kept, no traps.
#pragma once

#include <cstdint>

namespace opcel {

#if defined(__x86_64__) || defined(__i386__)
constexpr uint32_t kDefaultFloatMode = 0x1F80;
constexpr uint32_t kFloatFlags = 0x3F;  // sticky exception flags, no part of the mode
inline uint32_t float_mode() { return __builtin_ia32_stmxcsr() & ~kFloatFlags; }
inline void set_float_mode(uint32_t mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
constexpr uint32_t kDefaultFloatMode = 0;
inline uint32_t float_mode() {
  uint64_t mode;
  __asm__ __volatile__("mrs %0, fpcr" : "=r"(mode));
  return static_cast<uint32_t>(mode);
}
inline void set_float_mode(uint32_t mode) { __asm__ __volatile__("msr fpcr, %0" : : "r"(uint64_t{mode})); }
#else
constexpr uint32_t kDefaultFloatMode = 0;
inline uint32_t float_mode() { return 0; }
inline void set_float_mode(uint32_t) {}
#endif

/// Sets the default mode for its lifetime, so that a caller's flush-to-zero cannot make results depend on which
/// thread computes them.
class FloatMode {
 public:
  FloatMode() : before_(float_mode()) {
    if (before_ != kDefaultFloatMode) set_float_mode(kDefaultFloatMode);
  }
  ~FloatMode() {
    if (before_ != kDefaultFloatMode) set_float_mode(before_);
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  uint32_t before_;
};

}  // namespace opcel
