// Aligned memory straight from the system; big blocks lie in huge pages where the system has them.
#pragma once

#include <stdlib.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace opcel {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

inline size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// At least `bytes` (> 0), aligned to 64 bytes, from 2 MB on to a huge page. Null when there is none. The contents
/// are undefined.
inline void* system_alloc(size_t bytes) {
  if (bytes < kHugePage) {
    void* memory = nullptr;
    return posix_memalign(&memory, kCacheLine, round_up(bytes, kCacheLine)) == 0 ? memory : nullptr;
  }
  if (bytes > SIZE_MAX - 2 * kHugePage) return nullptr;
  const size_t length = round_up(bytes, kHugePage);
  void* mapped = mmap(nullptr, length + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* begin = static_cast<char*>(mapped);
  const size_t skip = round_up(reinterpret_cast<uintptr_t>(begin), kHugePage) - reinterpret_cast<uintptr_t>(begin);
  if (skip) munmap(begin, skip);
  if (skip != kHugePage) munmap(begin + skip + length, kHugePage - skip);
  madvise(begin + skip, length, MADV_HUGEPAGE);
  return begin + skip;
}

/// Returns what system_alloc(bytes) gave.
inline void system_free(void* memory, size_t bytes) {
  if (!memory) return;
  if (bytes < kHugePage)
    ::free(memory);
  else
    munmap(memory, round_up(bytes, kHugePage));
}

}  // namespace opcel
