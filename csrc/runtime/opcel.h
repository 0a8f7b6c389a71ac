/* The C interface of a compiled OPCEL artifact. This header is all a C or C++ program needs:
 *
 *   char error[256];
 *   void *library;
 *   const opcel_api *api = opcel_load("model.opcel", &library, error, sizeof error);
 *   opcel_model *model;
 *   opcel_context *context;
 *   if (!api || api->open("model.opcel", NULL, &model, error, sizeof error)) ...
 *   if (api->create_context(model, &context, error, sizeof error)) ...
 *   if (api->run(context, inputs, outputs)) puts(api->last_error(context));
 *
 * Link with -ldl where the C library still keeps dlopen apart.
 *
 * Threads: an opcel_model is immutable and may be used from any number of threads. An opcel_context
 * holds the memory of one run; use it from one thread at a time. Kernels keep up to 1 MB of scratch on the
 * stack of the thread that calls run: give threads of your own 2 MB.
 */
#ifndef OPCEL_H
#define OPCEL_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OPCEL_ABI_VERSION 1u

/* Every function that can fail returns one of these; the text says the rest. */
enum {
  OPCEL_OK = 0,
  OPCEL_ARGUMENT = 1, /* a tensor does not fit the model's signature, or a pointer is missing */
  OPCEL_FILE = 2,     /* a file of the artifact is missing, unreadable or of the wrong size */
  OPCEL_MEMORY = 3,   /* the allocator returned nothing */
  OPCEL_REGION = 4,   /* the host's region callback failed, or is needed and was not given */
  OPCEL_FAILED = 5    /* the program itself reported an error */
};

/* Element types are the codes of ONNX TensorProto.DataType (1 = float, 7 = int64, 9 = bool, ...).
 * Types narrower than 8 bits take one byte per element at this interface. Strings cannot cross it. */
typedef struct opcel_tensor {
  void *data;             /* may be NULL only when the tensor has no elements, or see run */
  const int64_t *shape;   /* rank extents */
  const int64_t *strides; /* in elements; NULL: dense, row-major. Outputs must be dense. */
  int32_t dtype;
  int32_t rank;
} opcel_tensor;

/* A dim >= 0 is a constant; -1 - k is symbol k; INT64_MIN any other expression of the symbols. */
#define OPCEL_DIM_EXPRESSION INT64_MIN

typedef struct opcel_value {
  const char *name;
  int32_t dtype;
  int32_t rank;
  const int64_t *dims;
} opcel_value;

/* An input and an output that are one piece of memory, the caller's: the output is the input with more appended along
 * `axis`, which has room for `capacity`. Their tensors have the same data; their strides are those of a dense tensor
 * with `capacity` in place of the extent of `axis`, and need not be given where that makes no difference. A run writes
 * only what is appended. */
typedef struct opcel_state {
  int32_t input, output;
  int32_t axis;
  int64_t capacity;
} opcel_state;

typedef struct opcel_description {
  uint32_t struct_size;
  int32_t n_inputs;
  int32_t n_outputs;
  int32_t n_symbols;
  int32_t n_regions; /* > 0: the model runs only under a host with a region callback */
  const opcel_value *inputs;
  const opcel_value *outputs;
  const char *const *symbols;
  uint64_t weights_bytes;
  int64_t arena_bytes; /* working memory of one context; -1: depends on the symbols */
  int32_t n_steps;     /* what profile measures; absent where struct_size ends before it */
  int32_t n_states;    /* absent likewise, with states */
  const opcel_state *states;
} opcel_description;

/* Does the tasks [begin, end) of one step. thread is in [0, threads) and unique among the calls that
 * run at the same time for one run. Results must not depend on how the tasks are cut. */
typedef void (*opcel_kernel)(void *const *pointers, const int64_t *integers, int64_t begin, int64_t end,
                             int32_t thread);

/* What the embedding program may supply. Zero-initialise it and set struct_size; NULL means built in. */
typedef struct opcel_host {
  uint32_t struct_size;
  int32_t threads; /* the caller included; 0: one per CPU this process may use */

  /* Threads. All three are given together or none is. begin announces that steps will follow soon, end
   * that they have stopped: idle threads must not spin outside. parallel_for returns when all the tasks
   * are done. All of them may be called by several threads at once. */
  void *pool;
  void (*begin)(void *pool);
  void (*parallel_for)(void *pool, opcel_kernel kernel, void *const *pointers, const int64_t *integers,
                       int64_t tasks);
  void (*end)(void *pool);

  void *user; /* handed to the functions below */
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*free)(void *user, void *memory, size_t bytes);
  /* Computes region index: reads inputs, writes the data of outputs, whose shapes are given. Returns 0, or
   * writes why not into error. */
  int32_t (*region)(void *user, int32_t index, const opcel_tensor *inputs, int32_t n_inputs,
                    const opcel_tensor *outputs, int32_t n_outputs, char *error, size_t error_bytes);
  void (*log)(void *user, int32_t level, const char *message); /* level 0: information, 1: warning */

  /* Not 0: each thread of a pool that is made for this host, by open or create_pool, stays on one CPU; the
   * caller's own thread does not. For machines that do nothing else. */
  int32_t pin;
} opcel_host;

enum {
  OPCEL_WEIGHTS_MAP = 0,     /* mapped from the file: opens in milliseconds, pages come as they are used */
  OPCEL_WEIGHTS_RESIDENT = 1 /* copied into huge pages while opening; fastest to run */
};

typedef struct opcel_options {
  uint32_t struct_size;
  int32_t weights;        /* OPCEL_WEIGHTS_* */
  const opcel_host *host; /* copied; NULL: everything built in */
} opcel_options;

typedef struct opcel_model opcel_model;
typedef struct opcel_context opcel_context;

typedef struct opcel_api {
  uint32_t abi_version;
  uint32_t struct_size;

  /* options may be NULL. On failure *model is NULL and error holds the reason. */
  int32_t (*open)(const char *artifact, const opcel_options *options, opcel_model **model, char *error,
                  size_t error_bytes);
  /* Destroy the model's contexts first. */
  void (*close)(opcel_model *model);
  /* Valid until close. */
  const opcel_description *(*describe)(const opcel_model *model);

  int32_t (*create_context)(opcel_model *model, opcel_context **context, char *error, size_t error_bytes);
  void (*destroy_context)(opcel_context *context);

  /* Writes the extents of output i for these inputs to shapes[i] (room for its rank). Reads no data: an extent that
   * depends on data, and so is known only when the model has run, is -1. */
  int32_t (*output_shapes)(opcel_context *context, const opcel_tensor *inputs, int64_t *const *shapes);
  /* Inputs and outputs in the order of the description. Dense inputs are read in place, others are copied
   * first. No output may overlap an input or another output,
   * but for those of opcel_state. An output with neither data nor shape is kept by the context, and result gives it;
   * so is best handed in one whose shape depends on data, as memory for it must have just its shape. Allocates only
   * when a shape needs more memory than any before it in this context. */
  int32_t (*run)(opcel_context *context, const opcel_tensor *inputs, const opcel_tensor *outputs);
  /* Why the last call on this context failed. */
  const char *(*last_error)(const opcel_context *context);

  /* Fills the thread members of host, whose struct_size is set. Any number of models of this and of other artifacts may be opened
   * with it; they then share the threads. The library that made a pool must stay loaded, and the models
   * must be closed, before destroy_pool. */
  int32_t (*create_pool)(int32_t threads, opcel_host *host);
  void (*destroy_pool)(opcel_host *host);

  /* Absent in older artifacts: OPCEL_HAS(api, profile) tells. Does `run` `runs` times and writes to seconds[i]
   * what step i took, as the calling thread sees it, summed over the runs; n_steps values. The times are read
   * from the CPU's counter, a few nanoseconds a step. */
  int32_t (*profile)(opcel_context *context, const opcel_tensor *inputs, const opcel_tensor *outputs, int32_t runs,
                     double *seconds);

  /* Absent in older artifacts. Output i of the last run on this context, which must have succeeded: data and shape,
   * dense. The shape, and data that the context keeps, are valid until its next call of run or profile. */
  void (*result)(const opcel_context *context, int32_t i, opcel_tensor *tensor);
} opcel_api;

/* Whether a struct that carries its size reaches as far as a member. */
#define OPCEL_HAS(pointer, member)                             \
  ((const char *)&(pointer)->member + sizeof (pointer)->member \
   <= (const char *)(pointer) + (pointer)->struct_size)

/* Exported by <artifact>/model.so; its only symbol. */
typedef const opcel_api *(*opcel_artifact_api_function)(void);

/* Loads <artifact>/model.so and checks that its interface is the one of this header. Returns NULL, with the
 * reason in error, when it is not. dlclose(*library) after the last model of it is closed. */
static inline const opcel_api *opcel_load(const char *artifact, void **library, char *error, size_t error_bytes) {
  char path[4096];
  opcel_artifact_api_function function = NULL;
  const opcel_api *api;
  void *symbol;
  *library = NULL;
  if ((size_t)snprintf(path, sizeof path, "%s/model.so", artifact) >= sizeof path) {
    snprintf(error, error_bytes, "the path of the artifact is too long");
    return NULL;
  }
  *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!*library) {
    snprintf(error, error_bytes, "%s", dlerror());
    return NULL;
  }
  symbol = dlsym(*library, "opcel_artifact_api");
  memcpy(&function, &symbol, sizeof function);
  api = function ? function() : NULL;
  if (api && api->abi_version == OPCEL_ABI_VERSION && OPCEL_HAS(api, destroy_pool)) return api;
  if (api)
    snprintf(error, error_bytes, "its model.so has interface version %u (%u bytes), this program was built for %u (%u)",
             (unsigned)api->abi_version, (unsigned)api->struct_size, OPCEL_ABI_VERSION, (unsigned)sizeof(opcel_api));
  else
    snprintf(error, error_bytes, "its model.so is not a compiled OPCEL model: it lacks opcel_artifact_api");
  dlclose(*library);
  *library = NULL;
  return NULL;
}

#ifdef __cplusplus
}
#endif

#endif
