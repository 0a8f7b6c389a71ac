// Checks and copies of the tensors that a caller hands in.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "runtime/opcel.h"

namespace opcel {

/// A text that is cut at the end of its buffer.
class Text {
 public:
  Text(char* to, size_t bytes) : to_(to), left_(bytes) {
    if (left_) *to_ = 0;
  }
  __attribute__((format(printf, 2, 3))) void add(const char* format, ...) {
    if (left_ < 2) return;
    va_list arguments;
    va_start(arguments, format);
    const int length = vsnprintf(to_, left_, format, arguments);
    va_end(arguments);
    const size_t used = length < 0 ? 0 : static_cast<size_t>(length) < left_ ? length : left_ - 1;
    to_ += used;
    left_ -= used;
  }
  void add_shape(const int64_t* shape, int32_t rank) {
    for (int32_t i = 0; i < rank; ++i) add("%s%lld", i ? ", " : "[", static_cast<long long>(shape[i]));
    add("%s]", rank ? "" : "[");
  }
  void add_dims(const opcel_value& value, const char* const* symbols) {
    for (int32_t i = 0; i < value.rank; ++i) {
      add("%s", i ? ", " : "[");
      const int64_t dim = value.dims[i];
      if (dim >= 0)
        add("%lld", static_cast<long long>(dim));
      else
        add("%s", dim == OPCEL_DIM_EXPRESSION ? "?" : symbols[-1 - dim]);
    }
    add("%s]", value.rank ? "" : "[");
  }

 private:
  char* to_;
  size_t left_;
};

/// Bytes of one element of an ONNX type at the C interface; 0 for a type that cannot cross it.
inline size_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case 1:   // float32
    case 6:   // int32
    case 12:  // uint32
      return 4;
    case 7:   // int64
    case 11:  // float64
    case 13:  // uint64
    case 14:  // complex64
      return 8;
    case 4:   // uint16
    case 5:   // int16
    case 10:  // float16
    case 16:  // bfloat16
      return 2;
    case 15:  // complex128
      return 16;
    case 2:  // uint8
    case 3:  // int8
    case 9:  // bool
      return 1;
    default:  // the types of 8 bits and less; not undefined, not string
      return dtype >= 17 && dtype <= 28 ? 1 : 0;
  }
}

inline const char* dtype_name(int32_t dtype) {
  static const char* const names[] = {
      "undefined", "float32",      "uint8",          "int8",       "uint16",         "int16",  "int32",
      "int64",     "string",       "bool",           "float16",    "float64",        "uint32", "uint64",
      "complex64", "complex128",   "bfloat16",       "float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz",
      "uint4",     "int4",         "float4e2m1",     "float8e8m0", "uint2",          "int2"};
  return dtype >= 0 && dtype < static_cast<int32_t>(sizeof names / sizeof *names) ? names[dtype] : "unknown";
}

inline int64_t element_count(const int64_t* shape, int32_t rank) {
  int64_t count = 1;
  for (int32_t i = 0; i < rank; ++i) count *= shape[i];
  return count;
}

inline bool is_dense(const opcel_tensor& tensor) {
  if (!tensor.strides) return true;
  int64_t expected = 1;
  bool dense = true;
  for (int32_t i = tensor.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] == 0) return true;
    if (tensor.shape[i] != 1 && tensor.strides[i] != expected) dense = false;
    expected *= tensor.shape[i];
  }
  return dense;
}

template <size_t kBytes>
inline void copy_line(char* to, const char* from, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) memcpy(to + i * kBytes, from + i * stride * int64_t{kBytes}, kBytes);
}

/// Copies a strided tensor to dense memory. Returns the end of what it wrote.
inline char* copy_dense(const opcel_tensor& tensor, size_t bytes, int32_t axis, const char* from, char* to) {
  if (axis == tensor.rank) {
    memcpy(to, from, bytes);
    return to + bytes;
  }
  const int64_t count = tensor.shape[axis], stride = tensor.strides[axis];
  if (axis + 1 < tensor.rank) {
    for (int64_t i = 0; i < count; ++i)
      to = copy_dense(tensor, bytes, axis + 1, from + i * stride * static_cast<int64_t>(bytes), to);
    return to;
  }
  switch (bytes) {
    case 1: copy_line<1>(to, from, count, stride); break;
    case 2: copy_line<2>(to, from, count, stride); break;
    case 4: copy_line<4>(to, from, count, stride); break;
    case 8: copy_line<8>(to, from, count, stride); break;
    default: copy_line<16>(to, from, count, stride); break;
  }
  return to + count * bytes;
}

/// Whether the tensor has the value's dtype, rank and constant dims.
inline bool fits(const opcel_tensor& tensor, const opcel_value& value) {
  if (tensor.dtype != value.dtype || tensor.rank != value.rank) return false;
  for (int32_t i = 0; i < value.rank; ++i)
    if (tensor.shape[i] < 0 || (value.dims[i] >= 0 && value.dims[i] != tensor.shape[i])) return false;
  return true;
}

/// Says why a tensor that does not fit does not.
inline void explain_misfit(const opcel_tensor& tensor, const opcel_value& value, const char* kind,
                           const char* const* symbols, Text* text) {
  text->add("%s '%s': ", kind, value.name);
  if (tensor.dtype != value.dtype) {
    text->add("element type %s given, %s expected", dtype_name(tensor.dtype), dtype_name(value.dtype));
  } else {
    text->add("shape ");
    text->add_shape(tensor.shape, tensor.rank);
    text->add(" given, ");
    text->add_dims(value, symbols);
    text->add(" expected");
  }
}

}  // namespace opcel
