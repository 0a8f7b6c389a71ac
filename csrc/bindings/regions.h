// Parts of a model that a Python function runs, and the errors that it raises.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "runtime/opcel.h"
#include "bindings/arrays.h"
#include "bindings/loaded.h"

namespace opcel::bindings {

/// What a region callback raised, for the run on this thread to chain to.
inline thread_local std::unique_ptr<py::error_already_set> region_error;

inline std::string facts_of(const py::object& array) {
  return text_of(array.attr("dtype")) + " " + text_of(array.attr("shape"));
}

inline void call_region(const py::object& function, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
                        const opcel_tensor* outputs, int32_t n_outputs) {
  py::list arrays;
  for (int32_t i = 0; i < n_inputs; ++i) {
    py::array array = view_of(inputs[i]);
    array.attr("setflags")(py::arg("write") = false);
    arrays.append(array);
  }
  const py::sequence results = function(index, arrays);
  if (static_cast<int32_t>(results.size()) != n_outputs)
    raise("RunError", "it returned " + std::to_string(results.size()) + " arrays, the model expects " +
                          std::to_string(n_outputs));
  for (int32_t i = 0; i < n_outputs; ++i) {
    py::array expected = view_of(outputs[i]);
    const py::object result = results[i];
    const std::string given = py::isinstance<py::array>(result) ? facts_of(result) : "no array";
    if (given != facts_of(expected))
      raise("RunError", "output " + std::to_string(i) + " is " + given + ", the model expects " + facts_of(expected));
    py::module_::import("numpy").attr("copyto")(expected, result);
  }
}

/// opcel_host's region, of which `user` is a Loaded.
inline int32_t region_callback(void* user, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
                               const opcel_tensor* outputs, int32_t n_outputs, char* error, size_t error_bytes) {
  const py::gil_scoped_acquire gil;
  try {
    call_region(static_cast<Loaded*>(user)->region, index, inputs, n_inputs, outputs, n_outputs);
    return 0;
  } catch (py::error_already_set& raised) {
    const std::string reason = text_of(raised.value());
    snprintf(error, error_bytes, "region %d: %s", index, reason.c_str());
    region_error = std::make_unique<py::error_already_set>(raised);
  } catch (const std::exception& raised) {
    snprintf(error, error_bytes, "region %d: %s", index, raised.what());
  }
  return 1;
}

/// Raises for a run that gave `status`; from what a region raised, where that is the cause.
[[noreturn]] inline void raise_for_run(int32_t status, const char* message) {
  if (status != OPCEL_REGION || !region_error) raise(error_type(status), message);
  const std::unique_ptr<py::error_already_set> cause = std::move(region_error);
  py::raise_from(*cause, py::module_::import("opcel_compiler.runtime.errors").attr("RunError").ptr(), message);
  throw py::error_already_set();
}

}  // namespace opcel::bindings
