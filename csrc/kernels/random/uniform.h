// Random floats, uniform in [0, 1): each from its index and a key alone, so that no thread waits for another's.
#pragma once

#include <time.h>

#include "base/tiling.h"

namespace opcel {

namespace detail {

// A generator by counting: the output function of splitmix64.
inline std::uint64_t mixed(std::uint64_t z) {
  z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
  return z ^ (z >> 31);
}

// Another key at each call.
inline std::uint64_t fresh_key() {
  static std::uint64_t calls;
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  const std::uint64_t count = __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
  const auto ns = static_cast<std::uint64_t>(now.tv_sec) * 1000000000u + static_cast<std::uint64_t>(now.tv_nsec);
  return mixed(ns) ^ mixed(count + reinterpret_cast<std::uintptr_t>(&calls));
}

}  // namespace detail

struct RandomArgs {
  float* y;
  std::int64_t count;
  std::int64_t per_task;
  std::uint64_t key;
  bool fixed;  // else every task draws a key
};

inline void random_tasks(const RandomArgs& args, std::int64_t begin, std::int64_t end) {
  for (std::int64_t task = begin; task < end; ++task) {
    const std::uint64_t key = args.fixed ? args.key : detail::fresh_key() ^ args.key;
    const std::int64_t last = detail::least(args.count, (task + 1) * args.per_task);
    for (std::int64_t i = task * args.per_task; i < last; ++i) {
      const std::uint64_t z = detail::mixed(key + static_cast<std::uint64_t>(i + 1) * UINT64_C(0x9E3779B97F4A7C15));
      args.y[i] = static_cast<float>(z >> 40) * 0x1p-24f;
    }
  }
}

}  // namespace opcel
