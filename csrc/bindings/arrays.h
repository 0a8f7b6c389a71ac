// NumPy arrays as opcel_tensors, and the checks on the way.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/opcel.h"

namespace opcel::bindings {

namespace py = pybind11;

/// Raises opcel_compiler.runtime.errors.<type>.
[[noreturn]] inline void raise(const char* type, const std::string& message) {
  const py::object error = py::module_::import("opcel_compiler.runtime.errors").attr(type);
  PyErr_SetString(error.ptr(), message.c_str());
  throw py::error_already_set();
}

inline const char* error_type(int32_t status) {
  return status == OPCEL_ARGUMENT ? "FeedError" : status == OPCEL_FILE ? "ArtifactError" : "RunError";
}

/// The NumPy type of an ONNX element type.
inline py::dtype numpy_dtype(int32_t code) {
  static const char* const names[] = {
      nullptr,         "float32",      "uint8",     "int8",          "uint16",
      "int16",         "int32",        "int64",     nullptr,         "bool",
      "float16",       "float64",      "uint32",    "uint64",        "complex64",
      "complex128",    "bfloat16",     "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
      "float8_e5m2fnuz", "uint4",      "int4",      "float4_e2m1fn", "float8_e8m0fnu",
      "uint2",         "int2",     "float6_e2m3fn", "float6_e3m2fn"};
  constexpr int32_t kFirstOfMlDtypes = 16;
  const char* name = code >= 0 && code < int32_t(std::size(names)) ? names[code] : nullptr;
  if (!name) raise("ArtifactError", "element type " + std::to_string(code) + " cannot be passed to or from NumPy");
  if (code < kFirstOfMlDtypes) return py::dtype(name);
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr(name));
}

/// An input or output of the model.
struct Value {
  py::str name;
  py::dtype dtype;
  int32_t code;
  py::ssize_t item;  // bytes of an element
  py::tuple shape;  // int, symbol name, or "?" for an expression of symbols

  int32_t rank() const { return static_cast<int32_t>(shape.size()); }
};

inline std::vector<Value> values_of(const opcel_value* values, int32_t count, const char* const* symbols) {
  std::vector<Value> result;
  for (int32_t i = 0; i < count; ++i) {
    py::tuple shape(values[i].rank);
    for (int32_t axis = 0; axis < values[i].rank; ++axis) {
      const int64_t dim = values[i].dims[axis];
      if (dim >= 0)
        shape[axis] = py::int_(dim);
      else
        shape[axis] = py::str(dim == OPCEL_DIM_EXPRESSION ? "?" : symbols[-1 - dim]);
    }
    PyObject* name = PyUnicode_InternFromString(values[i].name);
    if (!name) throw py::error_already_set();
    const py::dtype dtype = numpy_dtype(values[i].dtype);
    result.push_back({py::reinterpret_steal<py::str>(name), dtype, values[i].dtype, dtype.itemsize(), shape});
  }
  return result;
}

inline std::string text_of(const py::handle& object) { return py::str(object).cast<std::string>(); }

/// NumPy memory of a tensor that someone else owns.
inline py::array view_of(const opcel_tensor& tensor) {
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank);
  return py::array(numpy_dtype(tensor.dtype), shape, std::vector<py::ssize_t>(), tensor.data, py::none());
}

/// A new array, dense and uninitialised.
/// Raises RunError when there is no memory for it.
inline py::object new_array(const Value& value, const int64_t* extents) {
  static_assert(sizeof(py::ssize_t) == sizeof(int64_t), "the extents of NumPy are used in place");
  const py::detail::npy_api& numpy = py::detail::npy_api::get();
  PyObject* array = numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::dtype(value.dtype).release().ptr(), value.rank(),
                                                reinterpret_cast<const Py_intptr_t*>(extents), nullptr, nullptr, 0,
                                                nullptr);
  if (!array) {
    const py::error_already_set cause;
    raise("RunError", "no memory for output '" + text_of(value.name) + "': " + text_of(cause.value()));
  }
  return py::reinterpret_steal<py::object>(array);
}

/// The array of `given` (or the NumPy scalar, as a 0-d array), of the value's element type.
inline py::object checked_array(PyObject* given, const Value& value, const char* kind) {
  py::object array = py::reinterpret_borrow<py::object>(given);
  if (!py::detail::npy_api::get().PyArray_Check_(given)) {
    if (!py::isinstance(array, py::module_::import("numpy").attr("generic")))
      raise("FeedError", std::string(kind) + " '" + text_of(value.name) + "': a " +
                             text_of(py::type::of(array).attr("__name__")) + " given, a NumPy array of " +
                             text_of(value.dtype) + " " + text_of(value.shape) + " expected");
    array = py::array::ensure(array);
  }
  PyObject* dtype = py::detail::array_proxy(array.ptr())->descr;
  if (dtype != value.dtype.ptr() && !value.dtype.equal(py::handle(dtype)))
    raise("FeedError", std::string(kind) + " '" + text_of(value.name) + "': element type " + text_of(dtype) +
                           " given, " + text_of(value.dtype) + " expected");
  return array;
}

inline bool has_flags(const py::handle& array, int flags) {
  return (py::detail::array_proxy(array.ptr())->flags & flags) == flags;
}
constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kDense = py::array::c_style;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

/// The tensor of an array. `*array` is replaced by a dense copy when its strides are no multiples of the element or
/// its memory is not aligned. Strides go to `strides`, which has room for `value.rank()` of them; an array of another
/// rank gets none, and is refused by the runtime.
inline opcel_tensor tensor_of(py::object* array, const Value& value, int64_t* strides) {
  const auto* numpy = py::detail::array_proxy(array->ptr());
  bool regular = has_flags(*array, kAligned);
  for (int axis = 0; axis < numpy->nd; ++axis) regular = regular && numpy->strides[axis] % value.item == 0;
  if (!regular) {
    *array = array->attr("copy")("C");
    numpy = py::detail::array_proxy(array->ptr());
  }
  opcel_tensor tensor{numpy->data, reinterpret_cast<const int64_t*>(numpy->dimensions), nullptr, value.code, numpy->nd};
  if (!has_flags(*array, kDense) && numpy->nd == value.rank()) {
    for (int axis = 0; axis < numpy->nd; ++axis) strides[axis] = numpy->strides[axis] / value.item;
    tensor.strides = strides;
  }
  return tensor;
}

/// Whether the address ranges of two tensors meet.
inline bool overlap(const opcel_tensor& one, const opcel_tensor& other, py::ssize_t one_item, py::ssize_t other_item) {
  const auto range = [](const opcel_tensor& tensor, py::ssize_t item) {
    const char* low = static_cast<const char*>(tensor.data);
    const char* high = low + item;
    int64_t dense = 1;
    for (int32_t axis = tensor.rank - 1; axis >= 0; dense *= tensor.shape[axis--]) {
      if (tensor.shape[axis] == 0) return std::make_pair(low, low);
      const int64_t span = (tensor.shape[axis] - 1) * (tensor.strides ? tensor.strides[axis] : dense) * item;
      (span < 0 ? low : high) += span;
    }
    return std::make_pair(low, high);
  };
  const auto first = range(one, one_item), second = range(other, other_item);
  return first.first < second.second && second.first < first.second;
}

/// Raises for names in `given` that no value has, and for values that are missing.
[[noreturn]] inline void raise_for_names(const py::dict& given, const std::vector<Value>& values, const char* kind) {
  std::string known;
  for (const Value& value : values) known += (known.empty() ? "'" : ", '") + text_of(value.name) + "'";
  for (const auto& item : given) {
    bool found = false;
    for (const Value& value : values) found = found || value.name.equal(item.first);
    if (!found)
      raise("FeedError", "the model has no " + std::string(kind) + " " + text_of(py::repr(item.first)) + "; it has " +
                             (known.empty() ? "none" : known));
  }
  for (const Value& value : values)
    if (!given.contains(value.name))
      raise("FeedError", std::string(kind) + " '" + text_of(value.name) + "' is missing; given: " +
                             text_of(py::list(given)));
  raise("FeedError", std::string(kind) + " names do not fit the model");
}

}  // namespace opcel::bindings
