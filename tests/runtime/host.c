/* A C program that knows only opcel.h: runs two artifacts on one pool, with its own allocator. */
#include <stdio.h>
#include <stdlib.h>

#include "opcel.h"

static int allocations = 0;

static void *count_alloc(void *user, size_t bytes, size_t alignment) {
  void *memory = NULL;
  (void)user;
  ++allocations;
  return posix_memalign(&memory, alignment, bytes) == 0 ? memory : NULL;
}

static void count_free(void *user, void *memory, size_t bytes) {
  (void)user;
  (void)bytes;
  free(memory);
}

static void check(int good, const char *what, const char *error) {
  if (good) return;
  printf("failed: %s: %s\n", what, error);
  exit(1);
}

int main(int argc, char **argv) {
  char error[256] = "";
  void *libraries[2];
  const opcel_api *apis[2];
  opcel_model *models[2];
  opcel_context *contexts[2];
  static float a[64 * 3], b[64 * 3], c[64 * 3], d[64 * 3];
  int64_t shape[2] = {64, 3}, column[2] = {1, 64}, *shapes[2], found[2][2];
  opcel_host host = {sizeof host};
  opcel_options options = {sizeof options, OPCEL_WEIGHTS_MAP, NULL};
  int i, round;

  check(argc == 3, "usage", "two artifacts");
  for (i = 0; i < 64 * 3; ++i) a[i] = (float)i, b[i] = 1;
  for (i = 0; i < 2; ++i) {
    apis[i] = opcel_load(argv[1 + i], &libraries[i], error, sizeof error);
    check(apis[i] != NULL, "load", error);
  }
  check(apis[0]->create_pool(2, &host) == 0, "pool", "");
  host.alloc = count_alloc;
  host.free = count_free;
  options.host = &host;
  for (i = 0; i < 2; ++i) {
    check(apis[i]->open(argv[1 + i], &options, &models[i], error, sizeof error) == 0, "open", error);
    check(apis[i]->create_context(models[i], &contexts[i], error, sizeof error) == 0, "context", error);
  }
  for (round = 0; round < 100; ++round)
    for (i = 0; i < 2; ++i) {
      opcel_tensor in[2] = {{a, shape, NULL, 1, 2}, {b, shape, NULL, 1, 2}};
      opcel_tensor out[2] = {{c, shape, NULL, 1, 2}, {d, shape, NULL, 1, 2}};
      check(apis[i]->run(contexts[i], in, out) == 0, "run", apis[i]->last_error(contexts[i]));
      check(c[191] == 192 && d[191] == 384, "result", "wrong");
    }
  printf("allocations %d\n", allocations);
  {
    opcel_tensor in[2] = {{a, shape, column, 1, 2}, {b, shape, NULL, 1, 2}};
    opcel_tensor out[2] = {{c, shape, NULL, 1, 2}, {d, shape, NULL, 1, 2}};
    shapes[0] = found[0], shapes[1] = found[1];
    check(apis[0]->output_shapes(contexts[0], in, shapes) == 0 && found[1][0] == 64 && found[1][1] == 3, "shapes", "");
    check(apis[0]->run(contexts[0], in, out) == 0 && c[4] == 65 + 1, "strided", "wrong");
    out[1].data = NULL;
    check(apis[0]->run(contexts[0], in, out) == OPCEL_ARGUMENT, "no data", "taken");
    puts(apis[0]->last_error(contexts[0]));
    out[1].shape = NULL; /* neither data nor shape: the context keeps it */
    check(apis[0]->run(contexts[0], in, out) == 0, "kept by the context", apis[0]->last_error(contexts[0]));
    {
      opcel_tensor kept;
      apis[0]->result(contexts[0], 1, &kept);
      check(OPCEL_HAS(apis[0], result) && kept.rank == 2 && kept.shape[0] == 64 && kept.shape[1] == 3, "shape", "wrong");
      check(((float *)kept.data)[4] == 2 * c[4] && kept.data != d, "kept", "wrong");
    }
    out[1].shape = shape;
    out[1].data = d, in[0].dtype = 7;
    check(apis[0]->run(contexts[0], in, out) == OPCEL_ARGUMENT, "dtype", "taken");
    puts(apis[0]->last_error(contexts[0]));
  }
#ifdef __x86_64__
  { /* a caller's flush-to-zero, denormals-are-zero mode is not the model's, and is the caller's again afterwards */
    opcel_tensor in[2] = {{a, shape, NULL, 1, 2}, {b, shape, NULL, 1, 2}};
    opcel_tensor out[2] = {{c, shape, NULL, 1, 2}, {d, shape, NULL, 1, 2}};
    uint32_t bits = 1, result;
    memcpy(a, &bits, 4), b[0] = 0;
    __builtin_ia32_ldmxcsr(0x9fc0);
    check(apis[0]->run(contexts[0], in, out) == 0, "run", apis[0]->last_error(contexts[0]));
    check((__builtin_ia32_stmxcsr() & 0x8040) == 0x8040, "mode", "lost");
    memcpy(&result, c, 4);
    check(result == 1, "denormal", "flushed");
  }
#endif
  printf("symbols %d %s\n", (int)apis[0]->describe(models[0])->n_symbols, apis[0]->describe(models[0])->symbols[0]);
  for (i = 0; i < 2; ++i) apis[i]->destroy_context(contexts[i]), apis[i]->close(models[i]);
  apis[0]->destroy_pool(&host);
  for (i = 0; i < 2; ++i) dlclose(libraries[i]);
  return 0;
}
