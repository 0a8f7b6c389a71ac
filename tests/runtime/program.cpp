// A hand-written program as the generator would emit it, for inputs a, b [N, 3]: c = a + b, then d = 2 * c.
// -DREGION adds a region that computes e from d; -DWEIGHTS=bytes makes d = c + first weight.
#include "runtime/program.h"

namespace {

void add(void* const* p, const int64_t* d, int64_t begin, int64_t end, int32_t) {
  const float* a = static_cast<const float*>(p[0]);
  const float* b = static_cast<const float*>(p[1]);
  float* c = static_cast<float*>(p[2]);
  for (int64_t i = begin * d[0]; i < end * d[0]; ++i) c[i] = a[i] + b[i];
}

void second(void* const* p, const int64_t* d, int64_t begin, int64_t end, int32_t) {
  const float* c = static_cast<const float*>(p[0]);
  const float* w = static_cast<const float*>(p[1]);
  float* y = static_cast<float*>(p[2]);
  for (int64_t i = begin * d[0]; i < end * d[0]; ++i) y[i] = w ? c[i] + w[0] : 2 * c[i];
}

const int64_t dims[] = {-1, 3};
const OpcelTensorInfo inputs[] = {{"a", 1, 2, dims}, {"b", 1, 2, dims}};
const OpcelTensorInfo outputs[] = {{"c", 1, 2, dims}, {"d", 1, 2, dims}, {"e", 1, 2, dims}};
const char* const symbols[] = {"N"};

int32_t bind(const opcel_tensor* in, int64_t* sym, char* error, size_t error_bytes) {
  sym[0] = in[0].shape[0];
  if (sym[0] <= 1000000) return 0;
  snprintf(error, error_bytes, "N is at most 1000000");
  return 1;
}

void output_shapes(const int64_t* sym, int64_t* const* shapes) {
  for (int i = 0; i < opcel_program.n_outputs; ++i) {
    shapes[i][0] = sym[0];
    shapes[i][1] = 3;
  }
}

size_t arena_bytes(const int64_t* sym) { return static_cast<size_t>(sym[0]) * 12; }

int32_t run(OpcelRun* r) {
  const int64_t d[] = {3};
  void* const first_p[] = {r->in[0], r->in[1], r->arena};
  opcel_parallel(r, add, first_p, d, r->sym[0]);
  opcel_mark(r, 0);
  void* const copy_p[] = {r->arena, nullptr, r->out[1]};
  void* const weight_p[] = {r->arena, const_cast<char*>(r->weights), r->out[1]};
  opcel_parallel(r, second, r->weights ? weight_p : copy_p, d, r->sym[0]);
  opcel_mark(r, 1);
  memcpy(r->out[0], r->arena, arena_bytes(r->sym));
  opcel_mark(r, 2);
#ifdef REGION
  const int64_t shape[] = {r->sym[0], 3};
  const opcel_tensor in = {r->out[1], shape, nullptr, 1, 2}, out = {r->out[2], shape, nullptr, 1, 2};
  return opcel_region(r, 0, &in, 1, &out, 1);
#else
  return 0;
#endif
}

}  // namespace

#ifndef WEIGHTS
#define WEIGHTS 0
#endif
#ifndef FEATURES
#define FEATURES nullptr
#endif
#ifdef REGION
constexpr int32_t kRegions = 1;
#else
constexpr int32_t kRegions = 0;
#endif

const OpcelProgram opcel_program = {
    OPCEL_PROGRAM_VERSION, 2, 2 + kRegions, 1, kRegions, inputs, outputs, symbols, WEIGHTS, 0, bind, output_shapes,
    arena_bytes, run, FEATURES, 3, 0, nullptr, 0};
