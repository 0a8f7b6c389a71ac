// The weights of an artifact, from its file into memory.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstring>

#include "base/memory.h"
#include "runtime/program.h"

namespace opcel {

struct Weights {
  const char* data = nullptr;
  size_t bytes = 0;
  bool resident = false;
};

inline void release(Weights* weights) {
  if (weights->data && weights->resident)
    system_free(const_cast<char*>(weights->data), weights->bytes);
  else if (weights->data)
    munmap(const_cast<char*>(weights->data), weights->bytes);
  *weights = Weights{};
}

inline bool read_all(int file, char* to, size_t from, size_t bytes) {
  for (size_t at = 0; at < bytes;) {
    const ssize_t got = pread(file, to + at, bytes - at, static_cast<off_t>(from + at));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += static_cast<size_t>(got);
  }
  return true;
}

/// Reads the whole file on the host's threads: most of the time goes to clearing and filling new pages. Returns 0, an
/// errno, or -1 for a file that ends early.
inline int read_in_parallel(int file, char* to, size_t bytes, const opcel_host& host) {
  constexpr size_t kPiece = 4 * kHugePage;
  std::atomic<int> failed{0};
  void* const pointers[] = {to, &failed};
  const int64_t integers[] = {file, static_cast<int64_t>(bytes)};
  const opcel_kernel read = [](void* const* p, const int64_t* d, int64_t begin, int64_t end, int32_t) {
    const size_t from = static_cast<size_t>(begin) * kPiece, bytes = static_cast<size_t>(d[1]);
    const size_t last = static_cast<size_t>(end) * kPiece;
    errno = 0;
    if (!read_all(static_cast<int>(d[0]), static_cast<char*>(p[0]) + from, from, (last < bytes ? last : bytes) - from))
      static_cast<std::atomic<int>*>(p[1])->store(errno ? errno : -1);
  };
  const int64_t pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  host.begin(host.pool);
  host.parallel_for(host.pool, read, pointers, integers, pieces);
  host.end(host.pool);
  return failed.load();
}

/// Loads `bytes` (> 0) from an open file that has exactly that size.
inline int32_t load_file(int file, const char* path, uint64_t bytes, bool resident, const opcel_host& host,
                         Weights* weights, char* error, size_t error_bytes) {
  if (!resident) {
    void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (mapped == MAP_FAILED) {
      snprintf(error, error_bytes, "cannot map %s: %s", path, strerror(errno));
      return OPCEL_FILE;
    }
    // Starts reading ahead and returns; populating here would wait for the disk.
    madvise(mapped, bytes, MADV_WILLNEED);
    *weights = {static_cast<const char*>(mapped), bytes, false};
    return OPCEL_OK;
  }
  char* memory = static_cast<char*>(system_alloc(bytes));
  if (!memory) {
    snprintf(error, error_bytes, "no memory for %llu bytes of weights; the mode 'map' needs none of its own",
             static_cast<unsigned long long>(bytes));
    return OPCEL_MEMORY;
  }
  *weights = {memory, bytes, true};
  if (const int failed = read_in_parallel(file, memory, bytes, host)) {
    snprintf(error, error_bytes, "cannot read %s: %s", path, failed > 0 ? strerror(failed) : "it ends early");
    release(weights);
    return OPCEL_FILE;
  }
  posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
  return OPCEL_OK;
}

/// Loads <artifact>/weights.bin, which must have the size and the fingerprint that the program states, on the threads
/// of `host`. On failure *weights stays empty and error holds the reason.
inline int32_t load_weights(const char* artifact, const OpcelProgram& program, bool resident, const opcel_host& host,
                            Weights* weights, char* error, size_t error_bytes) {
  if (program.weights_bytes == 0) return OPCEL_OK;
  char path[4096];
  if (static_cast<size_t>(snprintf(path, sizeof path, "%s/weights.bin", artifact)) >= sizeof path) {
    snprintf(error, error_bytes, "the path of the artifact is too long");
    return OPCEL_FILE;
  }
  const int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat facts;
  if (file < 0 || fstat(file, &facts) != 0) {
    snprintf(error, error_bytes, "cannot open %s: %s", path, strerror(errno));
    if (file >= 0) close(file);
    return OPCEL_FILE;
  }
  int32_t status = OPCEL_OK;
  if (static_cast<uint64_t>(facts.st_size) != program.weights_bytes) {
    snprintf(error, error_bytes, "%s has %lld bytes, the model expects %llu; copy the whole artifact again", path,
             static_cast<long long>(facts.st_size), static_cast<unsigned long long>(program.weights_bytes));
    status = OPCEL_FILE;
  } else {
    status = load_file(file, path, program.weights_bytes, resident, host, weights, error, error_bytes);
  }
  close(file);
  if (status == OPCEL_OK && program.weights_check &&
      opcel_weights_check(weights->data, weights->bytes) != program.weights_check) {
    snprintf(error, error_bytes, "%s does not belong to the model.so beside it; copy the whole artifact again", path);
    release(weights);
    status = OPCEL_FILE;
  }
  return status;
}

}  // namespace opcel
