// Memory of large results, used again once the caller has dropped the arrays on it.
//
// Fresh memory costs a page fault for every 4 KB that a run writes, which for a language model's caches is as long as
// reading the weights. An array and all its views hold a reference to their memory, so memory that only `Results`
// refers to is free. Two blocks an output are kept: one that the caller still holds and one that is written.
#pragma once

#include <vector>

#include "base/memory.h"
#include "bindings/arrays.h"

namespace opcel::bindings {

class Results {
 public:
  static constexpr size_t kLeast = size_t{1} << 16;  // smaller ones NumPy allocates, without a page fault

  /// An array for `value` of these extents, dense and with undefined contents. Raises RunError when there is no memory.
  py::object array(const Value& value, const int64_t* extents) {
    size_t bytes = static_cast<size_t>(value.item);
    for (int32_t axis = 0; axis < value.rank(); ++axis)
      if (extents[axis] < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(extents[axis]), &bytes)) bytes = 0;
    if (bytes < kLeast) return new_array(value, extents);
    py::object owner = memory(bytes);
    if (!owner) return new_array(value, extents);  // fails and says so, or finds memory after all
    const py::detail::npy_api& numpy = py::detail::npy_api::get();
    PyObject* made = numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, py::dtype(value.dtype).release().ptr(), value.rank(),
        reinterpret_cast<const Py_intptr_t*>(extents), nullptr, block_of(owner)->data,
        kDense | kAligned | kWriteable, nullptr);
    if (!made || numpy.PyArray_SetBaseObject_(made, owner.release().ptr()) < 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  static Block* block_of(const py::object& owner) {
    return static_cast<Block*>(PyCapsule_GetPointer(owner.ptr(), nullptr));
  }

  /// Memory of at least `bytes` that nobody reads, in a capsule; empty when there is none.
  py::object memory(size_t bytes) {
    py::object* place = nullptr;
    for (py::object& owner : kept_) {
      if (owner.ref_count() != 1) continue;
      const size_t has = block_of(owner)->bytes;
      if (has >= bytes && has / 2 <= bytes) return owner;
      place = &owner;
    }
    if (!place && kept_.size() < kBlocks) place = &kept_.emplace_back();
    if (!place) place = &kept_[oldest_++ % kBlocks];
    *place = py::object();
    *place = make(bytes + bytes / 8);  // a sequence that grows by a step a call finds room for a while
    return *place;
  }

  static py::object make(size_t bytes) {
    void* data = system_alloc(bytes);
    if (!data) return py::object();
    auto* block = new Block{data, bytes};
    PyObject* capsule = PyCapsule_New(block, nullptr, [](PyObject* self) {
      auto* mine = static_cast<Block*>(PyCapsule_GetPointer(self, nullptr));
      system_free(mine->data, mine->bytes);
      delete mine;
    });
    if (!capsule) {
      system_free(data, bytes);
      delete block;
      throw py::error_already_set();
    }
    return py::reinterpret_steal<py::object>(capsule);
  }

  static constexpr size_t kBlocks = 2;
  std::vector<py::object> kept_;
  size_t oldest_ = 0;
};

}  // namespace opcel::bindings
