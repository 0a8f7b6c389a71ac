// An opened artifact, and what its runs keep for one another.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/opcel.h"
#include "bindings/arrays.h"
#include "bindings/library.h"
#include "bindings/pool.h"
#include "bindings/results.h"

namespace opcel::bindings {

/// What one run needs, kept for the next one.
struct Call {
  opcel_context* context = nullptr;
  std::vector<opcel_tensor> inputs, outputs;
  std::vector<int64_t> strides;  // of all the inputs and then the outputs, one after the other
  std::vector<int64_t> extents;  // of all the outputs
  std::vector<int64_t*> shapes;  // of each output, into extents
  std::vector<Results> results;    // of each output
  std::vector<py::object> arrays;  // the inputs and then the outputs, while the run lasts
};

/// An open library and model; lives until the last run on it returns.
struct Loaded {
  std::shared_ptr<Library> library;
  const opcel_api* api = nullptr;
  opcel_model* model = nullptr;
  const opcel_description* facts = nullptr;
  std::shared_ptr<SharedPool> pool;
  py::object region;
  std::vector<Value> inputs, outputs;
  std::vector<std::unique_ptr<Call>> idle;  // guarded by the GIL

  ~Loaded() {
    for (const std::unique_ptr<Call>& call : idle) api->destroy_context(call->context);
    if (model) api->close(model);
  }

  std::unique_ptr<Call> take_call() {
    if (!idle.empty()) {
      std::unique_ptr<Call> call = std::move(idle.back());
      idle.pop_back();
      return call;
    }
    auto call = std::make_unique<Call>();
    char error[512] = "";
    if (const int32_t status = api->create_context(model, &call->context, error, sizeof error))
      raise(error_type(status), error);
    call->inputs.resize(inputs.size());
    call->outputs.resize(outputs.size());
    call->results.resize(outputs.size());
    call->arrays.resize(inputs.size() + outputs.size());
    size_t strides = 0, extents = 0;
    for (const Value& value : inputs) strides += value.shape.size();
    for (const Value& value : outputs) strides += value.shape.size();
    for (const Value& value : outputs) extents += value.shape.size();
    call->strides.resize(strides);
    call->extents.resize(extents);
    int64_t* at = call->extents.data();
    for (const Value& value : outputs) {
      call->shapes.push_back(at);
      at += value.rank();
    }
    return call;
  }

  void give_back(std::unique_ptr<Call> call) {
    for (py::object& array : call->arrays) array = py::object();
    idle.push_back(std::move(call));
  }
};

/// A Call for the length of one run.
class Loan {
 public:
  explicit Loan(Loaded* from) : from_(from), call_(from->take_call()) {}
  ~Loan() { from_->give_back(std::move(call_)); }
  Loan(const Loan&) = delete;
  Loan& operator=(const Loan&) = delete;
  Call& operator*() const { return *call_; }

 private:
  Loaded* from_;
  std::unique_ptr<Call> call_;
};

}  // namespace opcel::bindings
