/* Knows only opcel.h. run THREADS (ARTIFACT INPUTS OUTPUTS)...: runs artifacts whose inputs have constant shapes on one pool, twice in
 * turn. Files hold dense tensors one after another. Prints the number of threads of the process. */
#include <dirent.h>
#include <stdlib.h>

#include "opcel.h"

enum { MAX = 8 };

static void check(int good, const char *what, const char *error) {
  if (good) return;
  printf("failed: %s: %s\n", what, error);
  exit(1);
}

static size_t bytes_of(int32_t dtype, int32_t rank, const int64_t *shape) {
  size_t bytes = dtype == 7 ? 8 : dtype == 1 ? 4 : 0;
  for (int32_t i = 0; i < rank; ++i) bytes *= (size_t)shape[i];
  return bytes;
}

int main(int argc, char **argv) {
  static char error[256];
  const opcel_api *api[MAX];
  opcel_model *model[MAX];
  opcel_context *context[MAX];
  void *library[MAX];
  opcel_host host = {.struct_size = sizeof host};
  opcel_options options = {.struct_size = sizeof options, .host = &host};
  const int count = (argc - 2) / 3;
  for (int i = 0; i < count; ++i) {
    api[i] = opcel_load(argv[2 + 3 * i], &library[i], error, sizeof error);
    check(api[i] != NULL, "load", error);
    if (i == 0) check(api[0]->create_pool(atoi(argv[1]), &host) == OPCEL_OK, "pool", "");
    check(api[i]->open(argv[2 + 3 * i], &options, &model[i], error, sizeof error) == OPCEL_OK, "open", error);
    check(api[i]->create_context(model[i], &context[i], error, sizeof error) == OPCEL_OK, "context", error);
  }
  for (int round = 0; round < 2; ++round)
    for (int i = 0; i < count; ++i) {
      const opcel_description *d = api[i]->describe(model[i]);
      opcel_tensor in[MAX], out[MAX];
      int64_t extents[MAX][MAX], *shapes[MAX];
      FILE *file = fopen(argv[3 + 3 * i], "rb");
      check(file != NULL, "inputs", argv[3 + 3 * i]);
      for (int32_t k = 0; k < d->n_inputs; ++k) {
        const opcel_value *v = &d->inputs[k];
        const size_t bytes = bytes_of(v->dtype, v->rank, v->dims);
        in[k] = (opcel_tensor){malloc(bytes), v->dims, NULL, v->dtype, v->rank};
        check(bytes && fread(in[k].data, 1, bytes, file) == bytes, "inputs", "too short");
      }
      fclose(file);
      for (int32_t k = 0; k < d->n_outputs; ++k) shapes[k] = extents[k];
      check(api[i]->output_shapes(context[i], in, shapes) == OPCEL_OK, "shapes", api[i]->last_error(context[i]));
      for (int32_t k = 0; k < d->n_outputs; ++k) {
        const opcel_value *v = &d->outputs[k];
        int late = 0;
        for (int32_t axis = 0; axis < v->rank; ++axis) late = late || shapes[k][axis] < 0;
        out[k] = (opcel_tensor){NULL, NULL, NULL, v->dtype, v->rank};
        if (!late) out[k].data = malloc(bytes_of(v->dtype, v->rank, out[k].shape = shapes[k]));
      }
      check(api[i]->run(context[i], in, out) == OPCEL_OK, "run", api[i]->last_error(context[i]));
      file = fopen(argv[4 + 3 * i], "wb");
      check(file != NULL, "outputs", argv[4 + 3 * i]);
      for (int32_t k = 0; k < d->n_outputs; ++k) {
        opcel_tensor made;
        api[i]->result(context[i], k, &made);
        fwrite(made.data, 1, bytes_of(made.dtype, made.rank, made.shape), file), free(out[k].data);
      }
      for (int32_t k = 0; k < d->n_inputs; ++k) free(in[k].data);
      fclose(file);
    }
  int threads = 0;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *entry; (entry = readdir(tasks)) != NULL;) threads += entry->d_name[0] != '.';
  closedir(tasks);
  printf("threads %d\n", threads);
  for (int i = 0; i < count; ++i) api[i]->destroy_context(context[i]), api[i]->close(model[i]);
  api[0]->destroy_pool(&host);
  return 0;
}
