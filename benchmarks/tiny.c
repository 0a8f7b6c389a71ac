/* Times calls of an artifact from C, by the protocol of opcel_compiler/bench/worker.py.
 * Build: cc -O2 -I csrc/runtime benchmarks/tiny.c -o tiny -ldl      Use: tiny ARTIFACT THREADS INPUT.bin...
 * Orders, one a line: {"calls": n} gives {"seconds": [...], "failures": 0}; {"save": "path"} writes the outputs' bytes. */
#include <stdlib.h>
#include <time.h>

#include "opcel.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail(const char *why) {
  printf("{\"error\": \"%s\"}\n", why);
  return 1;
}

static size_t width(int32_t dtype) {
  switch (dtype) {
    case 7: case 11: case 13: return 8;
    case 1: case 6: case 12: return 4;
    case 4: case 5: case 10: case 16: return 2;
    default: return 1;
  }
}

/* Bytes of a value, 0 when its shape is not constant. */
static size_t make(const opcel_value *value, opcel_tensor *tensor) {
  size_t bytes = width(value->dtype);
  int k;
  for (k = 0; k < value->rank; ++k) {
    if (value->dims[k] < 0) return 0;
    bytes *= (size_t)value->dims[k];
  }
  tensor->data = aligned_alloc(64, (bytes + 127) / 64 * 64);
  tensor->shape = value->dims;
  tensor->dtype = value->dtype;
  tensor->rank = value->rank;
  return tensor->data ? bytes : 0;
}

int main(int argc, char **argv) {
  char error[512] = "", line[5000], path[4200];
  void *library;
  opcel_model *model;
  opcel_context *context;
  opcel_host host = {sizeof host};
  opcel_options options = {sizeof options, OPCEL_WEIGHTS_MAP, &host};
  const opcel_description *facts;
  opcel_tensor *in, *out;
  size_t *sizes;
  int i, calls;
  const opcel_api *api = argc > 2 ? opcel_load(argv[1], &library, error, sizeof error) : NULL;
  if (!api) return fail(argc > 2 ? "the artifact cannot be loaded" : "usage: tiny ARTIFACT THREADS INPUT.bin...");
  host.threads = atoi(argv[2]);
  if (api->open(argv[1], &options, &model, error, sizeof error)) return fail("the artifact cannot be opened");
  if (api->create_context(model, &context, error, sizeof error)) return fail("no context");
  facts = api->describe(model);
  if (argc != 3 + facts->n_inputs) return fail("a file for each input");
  in = calloc((size_t)facts->n_inputs + 1, sizeof *in);
  out = calloc((size_t)facts->n_outputs + 1, sizeof *out);
  sizes = calloc((size_t)facts->n_outputs + 1, sizeof *sizes);
  for (i = 0; i < facts->n_inputs; ++i) {
    FILE *file = fopen(argv[3 + i], "rb");
    const size_t bytes = make(&facts->inputs[i], &in[i]);
    if (!bytes || !file || fread(in[i].data, 1, bytes, file) != bytes) return fail("an input cannot be read");
    fclose(file);
  }
  for (i = 0; i < facts->n_outputs; ++i)
    if (!(sizes[i] = make(&facts->outputs[i], &out[i]))) return fail("an output has no constant shape");
  if (api->run(context, in, out)) return fail("the first call failed");
  printf("{\"version\": \"C\"}\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "{\"calls\": %d}", &calls) == 1 && calls > 0) {
      double *seconds = malloc((size_t)calls * sizeof *seconds);
      int failures = 0;
      for (i = 0; i < calls; ++i) {
        const double start = now();
        failures += api->run(context, in, out) != 0;
        seconds[i] = now() - start;
      }
      printf("{\"failures\": %d, \"seconds\": [", failures);
      for (i = 0; i < calls; ++i) printf("%s%.9f", i ? ", " : "", seconds[i]);
      puts("]}");
      free(seconds);
    } else if (sscanf(line, "{\"save\": \"%4199[^\"]\"}", path) == 1) {
      FILE *file = fopen(path, "wb");
      for (i = 0; file && i < facts->n_outputs; ++i) fwrite(out[i].data, 1, sizes[i], file);
      if (file) fclose(file);
      printf("{\"saved\": \"%s\"}\n", path);
    } else {
      fail("unknown order");
    }
    fflush(stdout);
  }
  return 0;
}
