// The arrays of one run: the caller's, checked, and new ones for the results.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "runtime/opcel.h"
#include "bindings/arrays.h"
#include "bindings/loaded.h"

namespace opcel::bindings {

/// Takes the array of each input from `feeds`. Raises FeedError for names and arrays that do not fit the signature.
inline void take_inputs(const Loaded& loaded, const py::dict& feeds, Call* call) {
  int64_t* strides = call->strides.data();
  for (size_t i = 0; i < loaded.inputs.size(); ++i) {
    const Value& value = loaded.inputs[i];
    PyObject* given = PyDict_GetItemWithError(feeds.ptr(), value.name.ptr());
    if (!given) {
      if (PyErr_Occurred()) throw py::error_already_set();
      raise_for_names(feeds, loaded.inputs, "input");
    }
    call->arrays[i] = checked_array(given, value, "input");
    call->inputs[i] = tensor_of(&call->arrays[i], value, strides);
    strides += value.rank();
  }
  if (feeds.size() != loaded.inputs.size()) raise_for_names(feeds, loaded.inputs, "input");
}

/// The input whose memory output `output` is in; -1 when it has its own.
inline int32_t past_of(const Loaded& loaded, size_t output) {
  if (!OPCEL_HAS(loaded.facts, states)) return -1;
  for (int32_t i = 0; i < loaded.facts->n_states; ++i)
    if (loaded.facts->states[i].output == static_cast<int32_t>(output)) return loaded.facts->states[i].input;
  return -1;
}

inline void check_apart(const Loaded& loaded, const Call& call, size_t output, const Value& other,
                        const opcel_tensor& tensor) {
  const Value& value = loaded.outputs[output];
  if (call.outputs[output].data && tensor.data && overlap(call.outputs[output], tensor, value.item, other.item))
    raise("FeedError", "output '" + text_of(value.name) + "' shares memory with '" + text_of(other.name) + "'");
}

/// Takes the arrays that the caller gave and makes the others.
inline void make_outputs(const Loaded& loaded, const py::object& given, Call* call) {
  if (!given.is_none() && !PyDict_Check(given.ptr()))
    raise("FeedError", "outputs: a dict of name to NumPy array expected");
  Py_ssize_t used = 0;
  int64_t* strides = call->strides.data();
  for (const Value& value : loaded.inputs) strides += value.rank();
  for (size_t i = 0; i < loaded.outputs.size(); ++i) {
    const Value& value = loaded.outputs[i];
    py::object& array = call->arrays[loaded.inputs.size() + i];
    PyObject* own = given.is_none() ? nullptr : PyDict_GetItemWithError(given.ptr(), value.name.ptr());
    if (!own && PyErr_Occurred()) throw py::error_already_set();
    const bool open = !own && std::any_of(call->shapes[i], call->shapes[i] + value.rank(), [](int64_t n) { return n < 0; });
    if (open) {  // its shape depends on data; take_results makes it
      array = py::object();
      call->outputs[i] = {nullptr, nullptr, nullptr, value.code, value.rank()};
      strides += value.rank();
      continue;
    }
    array = own ? checked_array(own, value, "output") : call->results[i].array(value, call->shapes[i]);
    const bool is_state = past_of(loaded, i) >= 0;
    if (is_state && !own)
      raise("FeedError", "output '" + text_of(value.name) + "' is state: the memory of its input is to be given");
    if (own && !has_flags(array, kAligned | kWriteable | (is_state ? 0 : kDense)))
      raise("FeedError", "output '" + text_of(value.name) + "': a writeable, aligned, C-contiguous array expected");
    call->outputs[i] = tensor_of(&array, value, strides);
    strides += value.rank();
    used += own != nullptr;
  }
  if (used == 0 && (given.is_none() || PyDict_GET_SIZE(given.ptr()) == 0)) return;
  const auto arrays = py::reinterpret_borrow<py::dict>(given);
  if (used != PyDict_GET_SIZE(given.ptr())) raise_for_names(arrays, loaded.outputs, "output");
  for (size_t i = 0; i < loaded.outputs.size(); ++i) {
    const int32_t past = past_of(loaded, i);
    for (size_t j = 0; j < loaded.inputs.size(); ++j)
      if (static_cast<int32_t>(j) != past) check_apart(loaded, *call, i, loaded.inputs[j], call->inputs[j]);
    for (size_t j = 0; j < i; ++j) check_apart(loaded, *call, i, loaded.outputs[j], call->outputs[j]);
  }
}

/// Copies the outputs whose shapes the run told.
inline void take_results(const Loaded& loaded, Call* call) {
  for (size_t i = 0; i < loaded.outputs.size(); ++i) {
    py::object& array = call->arrays[loaded.inputs.size() + i];
    if (array) continue;
    opcel_tensor made;
    loaded.api->result(call->context, static_cast<int32_t>(i), &made);
    array = call->results[i].array(loaded.outputs[i], made.shape);
    size_t bytes = static_cast<size_t>(loaded.outputs[i].item);
    for (int32_t axis = 0; axis < made.rank; ++axis) bytes *= static_cast<size_t>(made.shape[axis]);
    if (bytes) memcpy(py::detail::array_proxy(array.ptr())->data, made.data, bytes);
  }
}

}  // namespace opcel::bindings
