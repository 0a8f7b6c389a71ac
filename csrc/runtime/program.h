// What the generated host function of an artifact and csrc/runtime know of each other.
//
// The generated translation unit includes this header and defines
//     extern "C" const OpcelProgram opcel_program = {...};
// It is linked with the kernels and with csrc/runtime/runtime.cpp into model.so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>

#include "runtime/opcel.h"

#define OPCEL_PROGRAM_VERSION 1u
#define OPCEL_HIDDEN __attribute__((visibility("hidden")))

using OpcelTensorInfo = opcel_value;
using OpcelKernel = opcel_kernel;

/// One run, as the generated code sees it. Pointers of inputs and outputs are dense and row-major, in the
/// order of the program's signature.
struct OpcelRun {
  int64_t* sym;         // n_symbols values; those that no input's shape tells are set while running
  char* arena;          // arena_bytes(sym) bytes, 64-byte aligned, contents undefined
  const char* weights;  // weights_bytes bytes, 64-byte aligned
  void* const* in;
  void* const* out;
  int32_t threads;
  int32_t began;  // the pool has been told that this run has parallel steps
  const opcel_host* host;
  opcel_context* context;
  char* error;  // text for the caller when run returns non-zero
  size_t error_bytes;
  uint64_t* ticks;  // null unless the run is profiled: per step, what opcel_ticks advanced by
  uint64_t last;    // opcel_ticks when the last step ended
};

/// The compiled model: constant data and four functions. All pointers live as long as the library.
struct OpcelProgram {
  uint32_t version;  // OPCEL_PROGRAM_VERSION
  int32_t n_inputs;
  int32_t n_outputs;
  int32_t n_symbols;
  int32_t n_regions;
  const OpcelTensorInfo* inputs;
  const OpcelTensorInfo* outputs;
  const char* const* symbols;
  uint64_t weights_bytes;  // exact size of weights.bin; 0: the artifact has no such file
  uint64_t weights_check;  // opcel_weights_check of its contents; 0: not checked

  /// Reads the symbols from the shapes of the inputs. dtype, rank and constant dims have been checked before;
  /// that each dim which is a plain symbol equals it is checked after. Other relations are for this function.
  /// Returns 0, or non-zero with the reason in error.
  int32_t (*bind)(const opcel_tensor* inputs, int64_t* symbols, char* error, size_t error_bytes);
  /// Writes the extents of output i to shapes[i]; -1 for one that run tells opcel_output.
  void (*output_shapes)(const int64_t* symbols, int64_t* const* shapes);
  /// Bytes of working memory that a run with these symbols needs.
  size_t (*arena_bytes)(const int64_t* symbols);
  /// Returns 0, or non-zero after opcel_fail or a failed opcel_region.
  int32_t (*run)(OpcelRun* run);

  /// CPU features the code needs, as /proc/cpuinfo names them, separated by spaces; open refuses a CPU without
  /// them. null: not checked. (runtime.cpp itself is to be compiled without -m options, so that it can refuse.)
  const char* cpu_features;

  int32_t n_steps;  // opcel_mark is called with each number below it, once a run

  int32_t n_states;
  const opcel_state* states;

  int32_t n_blocks;  // of opcel_block
};

extern "C" OPCEL_HIDDEN const OpcelProgram opcel_program;

/// A cheap fingerprint of a weights file: FNV-1a (64 bit: offset basis 14695981039346656037, prime 1099511628211)
/// over its size as 8 little-endian bytes and then over 64 samples of up to 64 bytes; sample i starts at byte
/// i * (bytes / 64) and stops at the end of the file. A result of 0 is replaced by 1.
inline uint64_t opcel_weights_check(const void* data, uint64_t bytes) {
  const unsigned char* at = static_cast<const unsigned char*>(data);
  uint64_t hash = 14695981039346656037ull;
  for (int i = 0; i < 8; ++i) hash = (hash ^ ((bytes >> (8 * i)) & 255)) * 1099511628211ull;
  for (uint64_t i = 0; i < 64; ++i) {
    const uint64_t begin = i * (bytes / 64);
    const uint64_t end = begin + 64 < bytes ? begin + 64 : bytes;
    for (uint64_t j = begin; j < end; ++j) hash = (hash ^ at[j]) * 1099511628211ull;
  }
  return hash ? hash : 1;
}

/// Runs the tasks [0, tasks) of a kernel, on the run's threads when there is more than one task. A step too
/// short to share should be given as one task, or called directly.
inline void opcel_parallel(OpcelRun* run, OpcelKernel kernel, void* const* pointers, const int64_t* integers,
                           int64_t tasks) {
  if (tasks <= 1 || run->threads <= 1) {
    if (tasks > 0) kernel(pointers, integers, 0, tasks, 0);
    return;
  }
  if (!run->began) {
    run->began = 1;
    run->host->begin(run->host->pool);
  }
  run->host->parallel_for(run->host->pool, kernel, pointers, integers, tasks);
}

/// A counter that advances evenly and takes a few nanoseconds to read; its unit is the CPU's own.
inline uint64_t opcel_ticks() {
#if defined(__x86_64__) || defined(__i386__)
  return __builtin_ia32_rdtsc();
#elif defined(__aarch64__)
  uint64_t value;
  asm volatile("mrs %0, cntvct_el0" : "=r"(value));
  return value;
#else
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return uint64_t(now.tv_sec) * 1000000000u + uint64_t(now.tv_nsec);
#endif
}

/// Step `step` has ended.
inline void opcel_mark(OpcelRun* run, int32_t step) {
  if (__builtin_expect(run->ticks == nullptr, 1)) return;
  const uint64_t now = opcel_ticks();
  run->ticks[step] += now - run->last;
  run->last = now;
}

/// Runs region `index` in the host. Inputs and outputs are dense; the shapes of the outputs are the ones the
/// region must return. Returns OPCEL_OK or OPCEL_REGION, with the reason in run->error.
OPCEL_HIDDEN int32_t opcel_region(OpcelRun* run, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
                                  const opcel_tensor* outputs, int32_t n_outputs);

/// Memory whose size is known only while running: at least `bytes`, 64-byte aligned, undefined contents. It
/// belongs to the context, one block for each slot in [0, 16), and lasts until the slot is asked for more.
/// Null, with the reason in run->error, when there is none; the program then returns OPCEL_MEMORY.
OPCEL_HIDDEN void* opcel_scratch(OpcelRun* run, int32_t slot, size_t bytes);

/// Memory whose size depends on data: at least `bytes` of block `index` of n_blocks, 64-byte aligned. Its contents last
/// until it is asked for more. Null, with the reason in run->error, when there is none or `estimate`, the size computed
/// in floating point, is beyond any memory; the program then returns OPCEL_MEMORY.
OPCEL_HIDDEN char* opcel_block(OpcelRun* run, int32_t index, double estimate, int64_t bytes);

/// Gives the extents of output `index`, some of which depend on data; from then on run->out holds its memory. Returns
/// OPCEL_OK, or what the program then returns.
OPCEL_HIDDEN int32_t opcel_output(OpcelRun* run, int32_t index, const int64_t* shape);

/// Fails the run as `what` is `value`, which is not `allowed`.
inline int32_t opcel_outside(OpcelRun* run, const char* what, int64_t value, const char* allowed) {
  snprintf(run->error, run->error_bytes, "%s is %lld, and must be %s", what, static_cast<long long>(value), allowed);
  return OPCEL_FAILED;
}

/// Sets the text of a failed run and returns OPCEL_FAILED.
inline int32_t opcel_fail(OpcelRun* run, const char* message) {
  snprintf(run->error, run->error_bytes, "%s", message);
  return OPCEL_FAILED;
}
