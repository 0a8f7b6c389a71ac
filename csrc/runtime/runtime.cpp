// The C interface of opcel.h, over the opcel_program that is linked in.
#include <cstdlib>

#include "base/float_env.h"
#include "runtime/arguments.h"
#include "runtime/context.h"
#include "runtime/open.h"
#include "runtime/program.h"

namespace opcel::runtime {
namespace {

int32_t run_once(opcel_context* context, const opcel_tensor* inputs, const opcel_tensor* outputs, uint64_t* ticks) {
  const opcel_host& host = context->model->host;
  int32_t status = bind(context, inputs);
  if (status == OPCEL_OK) status = place_inputs(context, inputs);
  if (status == OPCEL_OK) status = place_outputs(context, outputs);
  if (status != OPCEL_OK) return status;
  const size_t arena = program.arena_bytes(context->symbols);
  if (!grow(host, &context->arena, arena)) return no_memory(context, "working memory", arena);
  OpcelRun run{context->symbols,
               static_cast<char*>(context->arena.data),
               context->model->weights.data,
               context->in,
               context->out,
               host.threads,
               0,
               &host,
               context,
               context->error,
               sizeof context->error,
               ticks,
               0};
  const FloatMode mode;
  if (ticks) run.last = opcel_ticks();
  status = program.run(&run);
  if (run.began) host.end(host.pool);
  if (status != OPCEL_OK && host.log) host.log(host.user, 1, context->error);
  return status;
}

int32_t run(opcel_context* context, const opcel_tensor* inputs, const opcel_tensor* outputs) {
  return run_once(context, inputs, outputs, nullptr);
}

int32_t profile(opcel_context* context, const opcel_tensor* inputs, const opcel_tensor* outputs, int32_t runs,
                double* seconds) {
  const size_t steps = static_cast<size_t>(program.n_steps);
  uint64_t* ticks = static_cast<uint64_t*>(calloc(steps + 1, sizeof(uint64_t)));
  if (!ticks) return no_memory(context, "step times", steps * sizeof(uint64_t));
  int32_t status = OPCEL_OK;
  const uint64_t since = opcel_ticks();
  const int64_t since_ns = now_ns();
  for (int32_t i = 0; i < runs && status == OPCEL_OK; ++i) status = run_once(context, inputs, outputs, ticks);
  const double passed = 1e-9 * static_cast<double>(now_ns() - since_ns);
  const uint64_t ticked = opcel_ticks() - since;
  for (size_t i = 0; i < steps; ++i)
    seconds[i] = ticked ? passed * static_cast<double>(ticks[i]) / static_cast<double>(ticked) : 0;
  ::free(ticks);
  return status;
}

void result(const opcel_context* context, int32_t i, opcel_tensor* tensor) {
  const opcel_value& value = program.outputs[i];
  *tensor = {context->out[i], context->output_shapes[i], nullptr, value.dtype, value.rank};
}

const char* last_error(const opcel_context* context) { return context->error; }

const opcel_api kApi = {OPCEL_ABI_VERSION, sizeof(opcel_api), open_model, close_model, describe,    create_context,
                        destroy_context,   output_shapes,     run,        last_error,  create_pool, destroy_pool,
                        profile,           result};

}  // namespace
}  // namespace opcel::runtime

using namespace opcel::runtime;

int32_t opcel_region(OpcelRun* run, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
                     const opcel_tensor* outputs, int32_t n_outputs) {
  const opcel_host& host = *run->host;
  if (run->began) host.end(host.pool);  // the region has threads of its own; ours must not spin beside them
  run->began = 0;
  run->error[0] = 0;
  if (host.region(host.user, index, inputs, n_inputs, outputs, n_outputs, run->error, run->error_bytes) == 0)
    return OPCEL_OK;
  if (!run->error[0]) snprintf(run->error, run->error_bytes, "region %d failed without giving a reason", index);
  return OPCEL_REGION;
}

void* opcel_scratch(OpcelRun* run, int32_t slot, size_t bytes) {
  Block* block = &run->context->scratch[slot];
  if (grow(*run->host, block, bytes ? bytes : 1)) return block->data;
  no_memory(run->context, "working memory", bytes);
  return nullptr;
}

char* opcel_block(OpcelRun* run, int32_t index, double estimate, int64_t bytes) {
  Block* block = &run->context->blocks[index];
  const bool fits = estimate < 0x1p62 && bytes >= 0;
  if (fits && grow(*run->host, block, bytes ? static_cast<size_t>(bytes) : 1)) return static_cast<char*>(block->data);
  no_memory(run->context, "working memory", fits ? static_cast<size_t>(bytes) : SIZE_MAX);
  return nullptr;
}

int32_t opcel_output(OpcelRun* run, int32_t index, const int64_t* shape) {
  return place_late_output(run->context, index, shape);
}

extern "C" __attribute__((visibility("default"))) const opcel_api* opcel_artifact_api(void) { return &kApi; }
