/* Opens an artifact, runs it once on zeros, prints load and first-run times and the process' peak memory, as JSON.
 * Build: cc -O2 -I csrc/runtime benchmarks/startup.c -o startup -ldl      Use: startup ARTIFACT [SIZE OF EVERY SYMBOL] */
#include <stdlib.h>
#include <time.h>

#include "opcel.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static long peak_kib(void) {
  char line[256];
  long value = -1;
  FILE *file = fopen("/proc/self/status", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "VmHWM: %ld", &value) == 1) break;
  if (file) fclose(file);
  return value;
}

static size_t width(int32_t dtype) {
  switch (dtype) {
    case 7: case 11: case 13: return 8;
    case 1: case 6: case 12: return 4;
    case 4: case 5: case 10: case 16: return 2;
    default: return 1;
  }
}

int main(int argc, char **argv) {
  char error[512];
  void *library;
  opcel_model *model;
  opcel_context *context;
  const opcel_description *d;
  opcel_tensor *in, *out;
  int64_t **shapes;
  const int64_t symbol = argc > 2 ? atoll(argv[2]) : 1;
  double start, opened, first, steady = 1e9;
  int i, k;
  const opcel_api *api = argc > 1 ? opcel_load(argv[1], &library, error, sizeof error) : NULL;
  if (!api) return fprintf(stderr, "%s\n", argc > 1 ? error : "usage: startup ARTIFACT [SYMBOL SIZE]"), 1;
  start = now();
  if (api->open(argv[1], NULL, &model, error, sizeof error) ||
      api->create_context(model, &context, error, sizeof error))
    return fprintf(stderr, "%s\n", error), 1;
  opened = now() - start;
  d = api->describe(model);
  in = calloc((size_t)d->n_inputs, sizeof *in);
  out = calloc((size_t)d->n_outputs, sizeof *out);
  shapes = calloc((size_t)d->n_outputs, sizeof *shapes);
  for (i = 0; i < d->n_inputs; ++i) {
    const opcel_value *v = &d->inputs[i];
    int64_t *shape = calloc((size_t)v->rank + 1, sizeof *shape);
    size_t count = 1;
    for (k = 0; k < v->rank; ++k) count *= (size_t)(shape[k] = v->dims[k] >= 0 ? v->dims[k] : symbol);
    in[i] = (opcel_tensor){calloc(count + 1, width(v->dtype)), shape, NULL, v->dtype, v->rank};
  }
  for (i = 0; i < d->n_outputs; ++i) shapes[i] = calloc((size_t)d->outputs[i].rank + 1, sizeof **shapes);
  if (api->output_shapes(context, in, shapes)) return fprintf(stderr, "%s\n", api->last_error(context)), 1;
  for (i = 0; i < d->n_outputs; ++i) {
    const opcel_value *v = &d->outputs[i];
    size_t count = 1;
    for (k = 0; k < v->rank; ++k) count *= (size_t)shapes[i][k];
    out[i] = (opcel_tensor){calloc(count + 1, width(v->dtype)), shapes[i], NULL, v->dtype, v->rank};
  }
  for (i = 0; i < 8; ++i) {
    const double before = now();
    if (api->run(context, in, out)) return fprintf(stderr, "%s\n", api->last_error(context)), 1;
    if (i == 0) first = now() - start;
    else if (now() - before < steady) steady = now() - before;
  }
  printf("{\"open_ms\": %.3f, \"first_result_ms\": %.3f, \"steady_ms\": %.3f, \"peak_mib\": %.1f, \"weights_mib\": %.1f, "
         "\"arena_mib\": %.1f}\n", 1e3 * opened, 1e3 * first, 1e3 * steady, (double)peak_kib() / 1024,
         (double)d->weights_bytes / 1048576, (double)d->arena_bytes / 1048576);
  api->destroy_context(context);
  api->close(model);
  return 0;
}
