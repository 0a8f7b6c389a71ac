// The C interface of opcel.h, over the opcel_program that is linked in.
#include <cstdlib>
#include <cstring>

#include "base/float_env.h"
#include "base/memory.h"
#include "base/pool.h"
#include "runtime/program.h"
#include "runtime/tensors.h"
#include "runtime/weights.h"

using opcel::Pool;
using opcel::Text;

namespace {

constexpr int32_t kScratchSlots = 16;

/// Memory that grows and is never given back before the end.
struct Block {
  void* data;
  size_t bytes;
};

}  // namespace

struct opcel_model {
  opcel_host host;
  Pool* own_pool;
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
  Block* staging;
  Block* owned;   // of the outputs that the caller leaves to the context
  Block* blocks;  // of opcel_block
  const opcel_tensor* given;  // the caller's outputs, while a run lasts
  Block arena;
  Block scratch[kScratchSlots];
  char error[512];
};

namespace {

const OpcelProgram& program = opcel_program;

void* host_alloc(const opcel_host& host, size_t bytes) {
  return host.alloc ? host.alloc(host.user, bytes, opcel::kCacheLine) : opcel::system_alloc(bytes);
}

void host_free(const opcel_host& host, const Block& block) {
  if (!block.data) return;
  if (host.alloc)
    host.free(host.user, block.data, block.bytes);
  else
    opcel::system_free(block.data, block.bytes);
}

bool grow(const opcel_host& host, Block* block, size_t bytes) {
  if (bytes <= block->bytes) return true;
  host_free(host, *block);
  *block = {host_alloc(host, bytes), bytes};
  if (!block->data) *block = {nullptr, 0};
  return block->data != nullptr;
}

// The pool's functions as members of opcel_host.
void pool_begin(void* pool) { static_cast<Pool*>(pool)->begin(); }
void pool_end(void* pool) { static_cast<Pool*>(pool)->end(); }
void pool_for(void* pool, opcel_kernel kernel, void* const* pointers, const int64_t* integers, int64_t tasks) {
  static_cast<Pool*>(pool)->parallel_for(kernel, pointers, integers, tasks);
}

int32_t create_pool(int32_t threads, opcel_host* host) {
  Pool* pool = Pool::create(threads, OPCEL_HAS(host, pin) && host->pin != 0);
  if (!pool) return OPCEL_MEMORY;
  host->threads = pool->threads();
  host->pool = pool;
  host->begin = pool_begin;
  host->parallel_for = pool_for;
  host->end = pool_end;
  return OPCEL_OK;
}

void destroy_pool(opcel_host* host) {
  if (!host || !host->pool) return;
  static_cast<Pool*>(host->pool)->destroy();
  host->pool = nullptr;
  host->begin = nullptr;
  host->parallel_for = nullptr;
  host->end = nullptr;
}

/// The first CPU's line of features in /proc/cpuinfo, padded with spaces; empty when there is none.
void read_cpu_features(char* line, int bytes) {
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

int32_t check_cpu(Text* text) {
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

int32_t check_options(const opcel_options& options, Text* text) {
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

void close_model(opcel_model* model) {
  if (!model) return;
  opcel::release(&model->weights);
  if (model->own_pool) model->own_pool->destroy();
  ::free(model);
}

/// Copies what the caller's version of a struct has; the rest stays zero.
template <class T>
T copy_sized(const T* from) {
  T to{};
  if (from) memcpy(&to, from, from->struct_size < sizeof to ? from->struct_size : sizeof to);
  return to;
}

int32_t open_model(const char* artifact, const opcel_options* given, opcel_model** model, char* error,
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
    status = opcel::load_weights(artifact, program, options.weights == OPCEL_WEIGHTS_RESIDENT, made->host,
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

const opcel_description* describe(const opcel_model* model) { return &model->description; }

int32_t create_context(opcel_model* model, opcel_context** context, char* error, size_t error_bytes) {
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

void destroy_context(opcel_context* context) {
  if (!context) return;
  const opcel_host& host = context->model->host;
  for (int32_t i = 0; i < program.n_inputs; ++i) host_free(host, context->staging[i]);
  for (int32_t i = 0; i < program.n_outputs; ++i) host_free(host, context->owned[i]);
  for (int32_t i = 0; i < program.n_blocks; ++i) host_free(host, context->blocks[i]);
  for (const Block& block : context->scratch) host_free(host, block);
  host_free(host, context->arena);
  ::free(context);
}

/// Checks the inputs and reads the symbols from them.
int32_t bind(opcel_context* context, const opcel_tensor* inputs) {
  const char* const* symbols = program.symbols;
  for (int32_t i = 0; i < program.n_inputs; ++i) {
    if (opcel::fits(inputs[i], program.inputs[i])) continue;
    Text text(context->error, sizeof context->error);
    opcel::explain_misfit(inputs[i], program.inputs[i], "input", symbols, &text);
    return OPCEL_ARGUMENT;
  }
  context->error[0] = 0;
  if (program.bind && program.bind(inputs, context->symbols, context->error, sizeof context->error) != 0)
    return OPCEL_ARGUMENT;
  if (program.n_symbols == 0) return OPCEL_OK;
  for (int32_t i = 0; i < program.n_inputs; ++i) {
    const opcel_value& value = program.inputs[i];
    for (int32_t axis = 0; axis < value.rank; ++axis) {
      const int64_t dim = value.dims[axis];
      if (dim >= 0 || dim == OPCEL_DIM_EXPRESSION || context->symbols[-1 - dim] == inputs[i].shape[axis]) continue;
      Text text(context->error, sizeof context->error);
      opcel::explain_misfit(inputs[i], value, "input", symbols, &text);
      text.add(", and %s is %lld in this call", symbols[-1 - dim], static_cast<long long>(context->symbols[-1 - dim]));
      return OPCEL_ARGUMENT;
    }
  }
  return OPCEL_OK;
}

int32_t output_shapes(opcel_context* context, const opcel_tensor* inputs, int64_t* const* shapes) {
  const int32_t status = bind(context, inputs);
  if (status == OPCEL_OK) program.output_shapes(context->symbols, shapes);
  return status;
}

int32_t no_memory(opcel_context* context, const char* what, size_t bytes) {
  snprintf(context->error, sizeof context->error, "no memory for %zu bytes of %s", bytes, what);
  return OPCEL_MEMORY;
}

/// The state that a value is part of; null when there is none.
const opcel_state* state_of(int32_t opcel_state::* side, int32_t index) {
  for (int32_t i = 0; i < program.n_states; ++i)
    if (program.states[i].*side == index) return program.states + i;
  return nullptr;
}

/// Whether a tensor lies as the state's memory does, and inside it.
bool lies_in(const opcel_tensor& tensor, const opcel_state& state) {
  if (tensor.shape[state.axis] > state.capacity) return false;
  if (opcel::element_count(tensor.shape, tensor.rank) == 0) return true;
  int64_t room = 1, dense = 1;
  for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
    const int64_t extent = tensor.shape[axis];
    if (extent > 1 && (tensor.strides ? tensor.strides[axis] : dense) != room) return false;
    room *= axis == state.axis ? state.capacity : extent;
    dense *= extent;
  }
  return true;
}

int32_t refuse_state(opcel_context* context, const opcel_tensor& tensor, const opcel_value& value,
                     const opcel_state& state) {
  const long long length = tensor.shape[state.axis], capacity = state.capacity;
  if (length > capacity)
    snprintf(context->error, sizeof context->error, "'%s' holds %lld places, and its capacity is %lld", value.name,
             length, capacity);
  else
    snprintf(context->error, sizeof context->error,
             "'%s' is state: an input and an output with the same data, dense but for a capacity of %lld along axis %d",
             value.name, capacity, state.axis);
  return OPCEL_ARGUMENT;
}

int32_t place_inputs(opcel_context* context, const opcel_tensor* inputs) {
  for (int32_t i = 0; i < program.n_inputs; ++i) {
    const opcel_tensor& tensor = inputs[i];
    const int64_t count = opcel::element_count(tensor.shape, tensor.rank);
    if (!tensor.data && count) {
      snprintf(context->error, sizeof context->error, "input '%s': no data given", program.inputs[i].name);
      return OPCEL_ARGUMENT;
    }
    const opcel_state* state = program.n_states ? state_of(&opcel_state::input, i) : nullptr;
    if (state && !lies_in(tensor, *state)) return refuse_state(context, tensor, program.inputs[i], *state);
    if (state || opcel::is_dense(tensor)) {
      context->in[i] = tensor.data;
      continue;
    }
    const size_t element = opcel::element_bytes(tensor.dtype), bytes = element * static_cast<size_t>(count);
    if (!grow(context->model->host, &context->staging[i], bytes)) return no_memory(context, "a dense input", bytes);
    context->in[i] = context->staging[i].data;
    opcel::copy_dense(tensor, element, 0, static_cast<const char*>(tensor.data), static_cast<char*>(context->in[i]));
  }
  return OPCEL_OK;
}

/// Memory of the context for output i, whose extents are known.
int32_t own_output(opcel_context* context, int32_t i) {
  const opcel_value& value = program.outputs[i];
  size_t bytes = opcel::element_bytes(value.dtype);
  for (int32_t axis = 0; axis < value.rank; ++axis)
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(context->output_shapes[i][axis]), &bytes)) bytes = SIZE_MAX / 2;
  if (!grow(context->model->host, &context->owned[i], bytes)) return no_memory(context, "a result", bytes);
  context->out[i] = context->owned[i].data;
  return OPCEL_OK;
}

int32_t place_outputs(opcel_context* context, const opcel_tensor* outputs) {
  program.output_shapes(context->symbols, context->output_shapes);
  context->given = outputs;
  for (int32_t i = 0; i < program.n_outputs; ++i) {
    const opcel_tensor& tensor = outputs[i];
    bool known = true;
    for (int32_t axis = 0; axis < program.outputs[i].rank; ++axis) known = known && context->output_shapes[i][axis] >= 0;
    if (!tensor.data && !tensor.shape && !(program.n_states && state_of(&opcel_state::output, i))) {
      context->out[i] = nullptr;
      const int32_t status = known ? own_output(context, i) : OPCEL_OK;
      if (status != OPCEL_OK) return status;
      continue;
    }
    const opcel_value expected = {program.outputs[i].name, program.outputs[i].dtype, program.outputs[i].rank,
                                  known ? context->output_shapes[i] : program.outputs[i].dims};
    Text text(context->error, sizeof context->error);
    if (!opcel::fits(tensor, expected)) {
      opcel::explain_misfit(tensor, expected, "output", program.symbols, &text);
      return OPCEL_ARGUMENT;
    }
    const bool no_data = !tensor.data && opcel::element_count(tensor.shape, tensor.rank) != 0;
    const opcel_state* state = program.n_states ? state_of(&opcel_state::output, i) : nullptr;
    if (state && !(lies_in(tensor, *state) && tensor.data == context->in[state->input]))
      return refuse_state(context, tensor, program.outputs[i], *state);
    if (no_data || (!state && !opcel::is_dense(tensor))) {
      text.add("output '%s': %s", expected.name, no_data ? "no data given" : "the memory given is not dense");
      return OPCEL_ARGUMENT;
    }
    context->out[i] = tensor.data;
  }
  return OPCEL_OK;
}

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
  const opcel::FloatMode mode;
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
  const int64_t since_ns = opcel::now_ns();
  for (int32_t i = 0; i < runs && status == OPCEL_OK; ++i) status = run_once(context, inputs, outputs, ticks);
  const double passed = 1e-9 * static_cast<double>(opcel::now_ns() - since_ns);
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
  opcel_context* context = run->context;
  const opcel_value& value = program.outputs[index];
  const opcel_tensor& given = context->given[index];
  memcpy(context->output_shapes[index], shape, static_cast<size_t>(value.rank) * sizeof *shape);
  if (!given.shape) return own_output(context, index);
  if (memcmp(given.shape, shape, static_cast<size_t>(value.rank) * sizeof *shape) == 0) return OPCEL_OK;
  Text text(context->error, sizeof context->error);
  const opcel_value expected = {value.name, value.dtype, value.rank, shape};
  opcel::explain_misfit(given, expected, "output", program.symbols, &text);
  return OPCEL_ARGUMENT;
}

extern "C" __attribute__((visibility("default"))) const opcel_api* opcel_artifact_api(void) { return &kApi; }
