// An opened model, a context of it, and the memory that a context holds.
//
// context.h, open.h and arguments.h are parts of one translation unit, runtime.cpp. Their functions are static rather
// than inline, so that the compiler keeps one body of each and the runtime stays small in every artifact.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "base/memory.h"
#include "base/pool.h"
#include "runtime/program.h"
#include "runtime/weights.h"

namespace opcel::runtime {

constexpr int32_t kScratchSlots = 16;

/// Memory that grows and is never given back before the end.
struct Block {
  void* data;
  size_t bytes;
};

}  // namespace opcel::runtime

struct opcel_model {
  opcel_host host;
  opcel::Pool* own_pool;
  opcel::Weights weights;
  opcel_description description;
};

struct opcel_context {
  opcel_model* model;
  // Arrays of the program's sizes, behind the context in the same allocation:
  int64_t* symbols;
  int64_t* output_extents;
  int64_t** output_shapes;
  void** in;
  void** out;
  opcel::runtime::Block* staging;
  opcel::runtime::Block* owned;   // of the outputs that the caller leaves to the context
  opcel::runtime::Block* blocks;  // of opcel_block
  const opcel_tensor* given;       // the caller's outputs, while a run lasts
  opcel::runtime::Block arena;
  opcel::runtime::Block scratch[opcel::runtime::kScratchSlots];
  char error[512];
};

namespace opcel::runtime {

static const OpcelProgram& program = opcel_program;

static void* host_alloc(const opcel_host& host, size_t bytes) {
  return host.alloc ? host.alloc(host.user, bytes, kCacheLine) : system_alloc(bytes);
}

static void host_free(const opcel_host& host, const Block& block) {
  if (!block.data) return;
  if (host.alloc)
    host.free(host.user, block.data, block.bytes);
  else
    system_free(block.data, block.bytes);
}

static bool grow(const opcel_host& host, Block* block, size_t bytes) {
  if (bytes <= block->bytes) return true;
  host_free(host, *block);
  *block = {host_alloc(host, bytes), bytes};
  if (!block->data) *block = {nullptr, 0};
  return block->data != nullptr;
}

static int32_t no_memory(opcel_context* context, const char* what, size_t bytes) {
  snprintf(context->error, sizeof context->error, "no memory for %zu bytes of %s", bytes, what);
  return OPCEL_MEMORY;
}

static int32_t create_context(opcel_model* model, opcel_context** context, char* error, size_t error_bytes) {
  int64_t extents = 0;
  for (int32_t i = 0; i < program.n_outputs; ++i) extents += program.outputs[i].rank;
  const size_t words = program.n_symbols + extents + 2 * size_t(program.n_outputs) + program.n_inputs;
  const size_t n_blocks = size_t(program.n_inputs) + program.n_outputs + program.n_blocks;
  const size_t bytes = sizeof(opcel_context) + words * sizeof(int64_t) + n_blocks * sizeof(Block);
  char* memory = static_cast<char*>(calloc(1, bytes));
  *context = reinterpret_cast<opcel_context*>(memory);
  if (!memory) {
    snprintf(error, error_bytes, "no memory for a context");
    return OPCEL_MEMORY;
  }
  opcel_context* made = *context;
  made->model = model;
  made->staging = reinterpret_cast<Block*>(made + 1);
  made->owned = made->staging + program.n_inputs;
  made->blocks = made->owned + program.n_outputs;
  made->symbols = reinterpret_cast<int64_t*>(made->blocks + program.n_blocks);
  made->output_extents = made->symbols + program.n_symbols;
  made->output_shapes = reinterpret_cast<int64_t**>(made->output_extents + extents);
  made->in = reinterpret_cast<void**>(made->output_shapes + program.n_outputs);
  made->out = made->in + program.n_inputs;
  int64_t* at = made->output_extents;
  for (int32_t i = 0; i < program.n_outputs; at += program.outputs[i++].rank) made->output_shapes[i] = at;
  return OPCEL_OK;
}

static void destroy_context(opcel_context* context) {
  if (!context) return;
  const opcel_host& host = context->model->host;
  for (int32_t i = 0; i < program.n_inputs; ++i) host_free(host, context->staging[i]);
  for (int32_t i = 0; i < program.n_outputs; ++i) host_free(host, context->owned[i]);
  for (int32_t i = 0; i < program.n_blocks; ++i) host_free(host, context->blocks[i]);
  for (const Block& block : context->scratch) host_free(host, block);
  host_free(host, context->arena);
  ::free(context);
}

}  // namespace opcel::runtime
