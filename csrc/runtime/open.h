// Opening a model: its threads, the checks of the CPU and of the options, its weights.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/pool.h"
#include "runtime/context.h"
#include "runtime/program.h"
#include "runtime/tensors.h"
#include "runtime/weights.h"

namespace opcel::runtime {

// The pool's functions as members of opcel_host.
static void pool_begin(void* pool) { static_cast<Pool*>(pool)->begin(); }
static void pool_end(void* pool) { static_cast<Pool*>(pool)->end(); }
static void pool_for(void* pool, opcel_kernel kernel, void* const* pointers, const int64_t* integers, int64_t tasks) {
  static_cast<Pool*>(pool)->parallel_for(kernel, pointers, integers, tasks);
}

static int32_t create_pool(int32_t threads, opcel_host* host) {
  Pool* pool = Pool::create(threads, OPCEL_HAS(host, pin) && host->pin != 0);
  if (!pool) return OPCEL_MEMORY;
  host->threads = pool->threads();
  host->pool = pool;
  host->begin = pool_begin;
  host->parallel_for = pool_for;
  host->end = pool_end;
  return OPCEL_OK;
}

static void destroy_pool(opcel_host* host) {
  if (!host || !host->pool) return;
  static_cast<Pool*>(host->pool)->destroy();
  host->pool = nullptr;
  host->begin = nullptr;
  host->parallel_for = nullptr;
  host->end = nullptr;
}

/// The first CPU's line of features in /proc/cpuinfo, padded with spaces; empty when there is none.
static void read_cpu_features(char* line, int bytes) {
  bool found = false;
  if (FILE* file = fopen("/proc/cpuinfo", "re")) {
    while (!found && fgets(line, bytes, file))
      found = strncmp(line, "flags", 5) == 0 || strncmp(line, "Features", 8) == 0;
    fclose(file);
  }
  if (!found) line[0] = 0;
  for (char* at = line; *at; ++at)
    if (*at == '\n' || *at == '\t') *at = ' ';
}

static int32_t check_cpu(Text* text) {
  const char* at = program.cpu_features;
  if (!at || !*at) return OPCEL_OK;
  char features[8192];
  read_cpu_features(features, sizeof features);
  if (!features[0]) return OPCEL_OK;
  while (*at) {
    const int length = static_cast<int>(strcspn(at, " "));
    char name[64];
    snprintf(name, sizeof name, " %.*s ", length, at);
    if (length && !strstr(features, name)) {
      text->add("this CPU lacks %.*s, which the model was compiled for; compile it for this CPU", length, at);
      return OPCEL_FAILED;
    }
    at += length + (at[length] == ' ');
  }
  return OPCEL_OK;
}

static int32_t check_options(const opcel_options& options, Text* text) {
  if (program.version != OPCEL_PROGRAM_VERSION) {
    text->add("model.so was generated for program version %u, its runtime has %u; compile the model again",
              program.version, OPCEL_PROGRAM_VERSION);
    return OPCEL_FAILED;
  }
  if (options.weights != OPCEL_WEIGHTS_MAP && options.weights != OPCEL_WEIGHTS_RESIDENT) {
    text->add("unknown weights mode %d", options.weights);
    return OPCEL_ARGUMENT;
  }
  const opcel_host* host = options.host;
  if (host && (!host->begin != !host->parallel_for || !host->end != !host->parallel_for)) {
    text->add("the host gives only some of begin, parallel_for and end");
    return OPCEL_ARGUMENT;
  }
  if (host && host->parallel_for && host->threads < 1) {
    text->add("the host gives parallel_for but no number of threads");
    return OPCEL_ARGUMENT;
  }
  if (host && !host->alloc != !host->free) {
    text->add("the host gives only one of alloc and free");
    return OPCEL_ARGUMENT;
  }
  if (program.n_regions && !(host && host->region)) {
    text->add("%d part(s) of the model run in ONNX Runtime, and the host gives no region callback for them "
              "(the Python package has one)", program.n_regions);
    return OPCEL_REGION;
  }
  return check_cpu(text);
}

static void close_model(opcel_model* model) {
  if (!model) return;
  release(&model->weights);
  if (model->own_pool) model->own_pool->destroy();
  ::free(model);
}

/// Copies what the caller's version of a struct has; the rest stays zero.
template <class T>
static T copy_sized(const T* from) {
  T to{};
  if (from) memcpy(&to, from, from->struct_size < sizeof to ? from->struct_size : sizeof to);
  return to;
}

static int32_t open_model(const char* artifact, const opcel_options* given, opcel_model** model, char* error,
                          size_t error_bytes) {
  *model = nullptr;
  Text text(error, error_bytes);
  opcel_options options = copy_sized(given);
  const opcel_host host = copy_sized(options.host);
  if (options.host) options.host = &host;
  if (const int32_t status = check_options(options, &text)) return status;
  opcel_model* made = static_cast<opcel_model*>(calloc(1, sizeof(opcel_model)));
  if (!made) return OPCEL_MEMORY;
  made->host = host;
  int32_t status = OPCEL_OK;
  if (!made->host.parallel_for) {
    status = create_pool(made->host.threads, &made->host);
    made->own_pool = static_cast<Pool*>(made->host.pool);
    if (status != OPCEL_OK) text.add("no memory for the threads");
  }
  if (status == OPCEL_OK)
    status = load_weights(artifact, program, options.weights == OPCEL_WEIGHTS_RESIDENT, made->host,
                                 &made->weights, error, error_bytes);
  if (status != OPCEL_OK) {
    close_model(made);
    return status;
  }
  const int64_t no_symbol = 0;
  made->description = {sizeof(opcel_description),
                       program.n_inputs,
                       program.n_outputs,
                       program.n_symbols,
                       program.n_regions,
                       program.inputs,
                       program.outputs,
                       program.symbols,
                       program.weights_bytes,
                       program.n_symbols ? -1 : static_cast<int64_t>(program.arena_bytes(&no_symbol)),
                       program.n_steps,
                       program.n_states,
                       program.states};
  *model = made;
  return OPCEL_OK;
}

static const opcel_description* describe(const opcel_model* model) { return &model->description; }

}  // namespace opcel::runtime
