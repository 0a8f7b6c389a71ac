/* Knows only opcel.h. hammer ARTIFACT INPUTS OUTPUTS CALLERS SECONDS: CALLERS threads run one artifact, whose shapes are
 * constant, until the time is up, each in a context of its own on one pool. Every tensor ends where a page begins that
 * nobody may touch, and a page before it is closed too. Results must have the same bits in every run; the first ones
 * go to the file OUTPUTS. INPUTS holds dense tensors one after another. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "opcel.h"

enum { PAGE = 4096 };

typedef struct caller {
  pthread_t thread;
  opcel_context *context;
  long runs;
} caller;

static const opcel_api *api;
static opcel_model *model;
static const opcel_description *facts;
static const char *inputs, *outputs;
static char *expected;
static size_t result_bytes;
static double seconds;

static void check(int good, const char *what, const char *error) {
  if (good) return;
  printf("failed: %s: %s\n", what, error);
  exit(1);
}

static size_t item_bytes(int32_t dtype) {
  static const char sizes[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8, 8, 16, 2, 1, 1, 1, 1};
  check(dtype > 0 && dtype < (int32_t)sizeof sizes && sizes[dtype], "element type", "unknown");
  return (size_t)sizes[dtype];
}

static size_t bytes_of(const opcel_value *v) {
  size_t bytes = item_bytes(v->dtype);
  for (int32_t i = 0; i < v->rank; ++i) bytes *= (size_t)v->dims[i];
  return bytes;
}

static void *guarded(size_t bytes) {
  const size_t inside = (bytes + PAGE - 1) / PAGE * PAGE;
  char *base = mmap(NULL, inside + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(base != MAP_FAILED, "mmap", "no memory");
  check(!inside || mprotect(base + PAGE, inside, PROT_READ | PROT_WRITE) == 0, "mprotect", "refused");
  return base + PAGE + inside - bytes;
}

static opcel_tensor *tensors(const opcel_value *values, int32_t count) {
  opcel_tensor *out = calloc((size_t)count + 1, sizeof *out);
  for (int32_t k = 0; k < count; ++k)
    out[k] = (opcel_tensor){guarded(bytes_of(&values[k])), values[k].dims, NULL, values[k].dtype, values[k].rank};
  return out;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void gather(const opcel_tensor *out, char *to) {
  for (int32_t k = 0; k < facts->n_outputs; to += bytes_of(&facts->outputs[k++]))
    memcpy(to, out[k].data, bytes_of(&facts->outputs[k]));
}

static void *call(void *argument) {
  caller *self = argument;
  opcel_tensor *in = tensors(facts->inputs, facts->n_inputs), *out = tensors(facts->outputs, facts->n_outputs);
  char *found = malloc(result_bytes + 1);
  FILE *file = fopen(inputs, "rb");
  check(file != NULL, "inputs", inputs);
  for (int32_t k = 0; k < facts->n_inputs; ++k) {
    const size_t bytes = bytes_of(&facts->inputs[k]);
    check(fread(in[k].data, 1, bytes, file) == bytes, "inputs", "too short");
  }
  fclose(file);
  const double end = now() + seconds;
  do {
    for (int32_t k = 0; k < facts->n_outputs; ++k) memset(out[k].data, 0xA5, bytes_of(&facts->outputs[k]));
    check(api->run(self->context, in, out) == OPCEL_OK, "run", api->last_error(self->context));
    gather(out, found);
    if (expected) check(memcmp(found, expected, result_bytes) == 0, "results", "they differ between runs");
    ++self->runs;
  } while (expected && now() < end);
  if (!expected) expected = found;
  else free(found);
  return NULL;
}

int main(int argc, char **argv) {
  static char error[256];
  void *library;
  check(argc == 6, "usage", "hammer ARTIFACT INPUTS OUTPUTS CALLERS SECONDS");
  const int count = atoi(argv[4]);
  inputs = argv[2], outputs = argv[3], seconds = atof(argv[5]);
  opcel_host host = {.struct_size = sizeof host};
  opcel_options options = {.struct_size = sizeof options, .host = &host};
  api = opcel_load(argv[1], &library, error, sizeof error);
  check(api != NULL, "load", error);
  check(api->create_pool(4, &host) == OPCEL_OK, "pool", "");
  check(api->open(argv[1], &options, &model, error, sizeof error) == OPCEL_OK, "open", error);
  facts = api->describe(model);
  for (int32_t k = 0; k < facts->n_outputs; ++k) result_bytes += bytes_of(&facts->outputs[k]);
  caller *callers = calloc((size_t)count + 1, sizeof *callers);
  for (int i = 0; i <= count; ++i)
    check(api->create_context(model, &callers[i].context, error, sizeof error) == OPCEL_OK, "context", error);
  call(&callers[count]);
  FILE *file = fopen(outputs, "wb");
  check(file && fwrite(expected, 1, result_bytes, file) == result_bytes, "outputs", outputs);
  fclose(file);
  long runs = 1;
  for (int i = 0; i < count; ++i) pthread_create(&callers[i].thread, NULL, call, &callers[i]);
  for (int i = 0; i < count; ++i) pthread_join(callers[i].thread, NULL), runs += callers[i].runs;
  for (int i = 0; i <= count; ++i) api->destroy_context(callers[i].context);
  api->close(model);
  api->destroy_pool(&host);
  printf("%ld runs\n", runs);
  return 0;
}
