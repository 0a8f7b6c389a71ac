// What one thread of this machine can do: fused multiply-adds in registers, and reads of a given amount of memory.
#include <cstdint>
#include <ctime>

#include "base/memory.h"
#include "base/vec.h"

namespace {

using opcel::vf;

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Twelve sums: more than the units need to be busy, and with the two factors few enough for 16 registers.
constexpr int kSums = 12;

volatile float sink;

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

/// FLOP/s in f32, a multiply-add being two, over about `seconds`.
EXPORTED double opcel_peak_flops(double seconds) {
  vf sums[kSums];
  OPCEL_UNROLL  // here as below: an array that is indexed by a variable stays in memory
  for (int i = 0; i < kSums; ++i) sums[i] = opcel::set(static_cast<float>(i));
  vf factor = opcel::set(0.999f), term = opcel::set(1e-3f);
  opcel::keep(factor), opcel::keep(term);
  constexpr int64_t kPass = 2000;
  int64_t passes = 0;
  const double start = now();
  double passed = 0;
  while (passed < seconds) {
    for (int64_t i = 0; i < kPass; ++i) {
      OPCEL_UNROLL
      for (int j = 0; j < kSums; ++j) {
        sums[j] = opcel::fma(sums[j], factor, term);
        opcel::keep(sums[j]);
      }
    }
    passes += kPass;
    passed = now() - start;
  }
  vf total = sums[0];
  OPCEL_UNROLL
  for (int j = 1; j < kSums; ++j) total += sums[j];
  sink = opcel::hsum(total);
  return 2.0 * opcel::W * kSums * static_cast<double>(passes) / passed;
}

/// Bytes/s of reading `count` floats over and over for about `seconds`, and once at least.
EXPORTED double opcel_read_bandwidth(const float* data, int64_t count, double seconds) {
  constexpr int kStreams = 8;
  vf sums[kStreams];
  OPCEL_UNROLL
  for (int j = 0; j < kStreams; ++j) sums[j] = opcel::set(0.0f);
  const double start = now();
  double passed = 0, bytes = 0;
  while (passed < seconds || bytes == 0) {
    for (int64_t i = 0; i + kStreams * opcel::W <= count; i += kStreams * opcel::W) {
      OPCEL_UNROLL
      for (int j = 0; j < kStreams; ++j) {
        sums[j] += opcel::load(data + i + j * opcel::W);
        opcel::keep(sums[j]);
      }
    }
    bytes += 4.0 * static_cast<double>(count);
    passed = now() - start;
  }
  OPCEL_UNROLL
  for (int j = 1; j < kStreams; ++j) sums[0] += sums[j];
  sink = opcel::hsum(sums[0]);
  return bytes / passed;
}

/// `count` floats (> 0) in huge pages where the system has them; null when there is no memory. Whoever calls touches
/// them first. No two pages are alike: a host may keep those in one place. Return them to opcel_free_floats.
EXPORTED float* opcel_new_floats(int64_t count) {
  float* data = static_cast<float*>(opcel::system_alloc(static_cast<size_t>(count) * sizeof(float)));
  if (!data) return nullptr;
  for (int64_t i = 0; i < count; ++i) data[i] = static_cast<float>(i % (int64_t{1} << 24));
  return data;
}

EXPORTED void opcel_free_floats(float* data, int64_t count) {
  opcel::system_free(data, static_cast<size_t>(count) * sizeof(float));
}
