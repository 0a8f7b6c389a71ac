// The inputs and outputs of a run: checked, bound to the symbols, and given memory.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>

#include "runtime/context.h"
#include "runtime/program.h"
#include "runtime/tensors.h"

namespace opcel::runtime {

/// Checks the inputs and reads the symbols from them.
static int32_t bind(opcel_context* context, const opcel_tensor* inputs) {
  const char* const* symbols = program.symbols;
  for (int32_t i = 0; i < program.n_inputs; ++i) {
    if (fits(inputs[i], program.inputs[i])) continue;
    Text text(context->error, sizeof context->error);
    explain_misfit(inputs[i], program.inputs[i], "input", symbols, &text);
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
      explain_misfit(inputs[i], value, "input", symbols, &text);
      text.add(", and %s is %lld in this call", symbols[-1 - dim], static_cast<long long>(context->symbols[-1 - dim]));
      return OPCEL_ARGUMENT;
    }
  }
  return OPCEL_OK;
}

static int32_t output_shapes(opcel_context* context, const opcel_tensor* inputs, int64_t* const* shapes) {
  const int32_t status = bind(context, inputs);
  if (status == OPCEL_OK) program.output_shapes(context->symbols, shapes);
  return status;
}

/// The state that a value is part of; null when there is none.
static const opcel_state* state_of(int32_t opcel_state::* side, int32_t index) {
  for (int32_t i = 0; i < program.n_states; ++i)
    if (program.states[i].*side == index) return program.states + i;
  return nullptr;
}

/// Whether a tensor lies as the state's memory does, and inside it.
static bool lies_in(const opcel_tensor& tensor, const opcel_state& state) {
  if (tensor.shape[state.axis] > state.capacity) return false;
  if (element_count(tensor.shape, tensor.rank) == 0) return true;
  int64_t room = 1, dense = 1;
  for (int32_t axis = tensor.rank - 1; axis >= 0; --axis) {
    const int64_t extent = tensor.shape[axis];
    if (extent > 1 && (tensor.strides ? tensor.strides[axis] : dense) != room) return false;
    room *= axis == state.axis ? state.capacity : extent;
    dense *= extent;
  }
  return true;
}

static int32_t refuse_state(opcel_context* context, const opcel_tensor& tensor, const opcel_value& value,
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

static int32_t place_inputs(opcel_context* context, const opcel_tensor* inputs) {
  for (int32_t i = 0; i < program.n_inputs; ++i) {
    const opcel_tensor& tensor = inputs[i];
    const int64_t count = element_count(tensor.shape, tensor.rank);
    if (!tensor.data && count) {
      snprintf(context->error, sizeof context->error, "input '%s': no data given", program.inputs[i].name);
      return OPCEL_ARGUMENT;
    }
    const opcel_state* state = program.n_states ? state_of(&opcel_state::input, i) : nullptr;
    if (state && !lies_in(tensor, *state)) return refuse_state(context, tensor, program.inputs[i], *state);
    if (state || is_dense(tensor)) {
      context->in[i] = tensor.data;
      continue;
    }
    const size_t element = element_bytes(tensor.dtype), bytes = element * static_cast<size_t>(count);
    if (!grow(context->model->host, &context->staging[i], bytes)) return no_memory(context, "a dense input", bytes);
    context->in[i] = context->staging[i].data;
    copy_dense(tensor, element, 0, static_cast<const char*>(tensor.data), static_cast<char*>(context->in[i]));
  }
  return OPCEL_OK;
}

/// Memory of the context for output i, whose extents are known.
static int32_t own_output(opcel_context* context, int32_t i) {
  const opcel_value& value = program.outputs[i];
  size_t bytes = element_bytes(value.dtype);
  for (int32_t axis = 0; axis < value.rank; ++axis)
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(context->output_shapes[i][axis]), &bytes)) bytes = SIZE_MAX / 2;
  if (!grow(context->model->host, &context->owned[i], bytes)) return no_memory(context, "a result", bytes);
  context->out[i] = context->owned[i].data;
  return OPCEL_OK;
}

static int32_t place_outputs(opcel_context* context, const opcel_tensor* outputs) {
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
    if (!fits(tensor, expected)) {
      explain_misfit(tensor, expected, "output", program.symbols, &text);
      return OPCEL_ARGUMENT;
    }
    const bool no_data = !tensor.data && element_count(tensor.shape, tensor.rank) != 0;
    const opcel_state* state = program.n_states ? state_of(&opcel_state::output, i) : nullptr;
    if (state && !(lies_in(tensor, *state) && tensor.data == context->in[state->input]))
      return refuse_state(context, tensor, program.outputs[i], *state);
    if (no_data || (!state && !is_dense(tensor))) {
      text.add("output '%s': %s", expected.name, no_data ? "no data given" : "the memory given is not dense");
      return OPCEL_ARGUMENT;
    }
    context->out[i] = tensor.data;
  }
  return OPCEL_OK;
}

/// Memory for output `index`, whose extents the run has just told: the caller's, which must fit, or the context's.
static int32_t place_late_output(opcel_context* context, int32_t index, const int64_t* shape) {
  const opcel_value& value = program.outputs[index];
  const opcel_tensor& given = context->given[index];
  memcpy(context->output_shapes[index], shape, static_cast<size_t>(value.rank) * sizeof *shape);
  if (!given.shape) return own_output(context, index);
  if (memcmp(given.shape, shape, static_cast<size_t>(value.rank) * sizeof *shape) == 0) return OPCEL_OK;
  Text text(context->error, sizeof context->error);
  const opcel_value expected = {value.name, value.dtype, value.rank, shape};
  explain_misfit(given, expected, "output", program.symbols, &text);
  return OPCEL_ARGUMENT;
}

}  // namespace opcel::runtime
