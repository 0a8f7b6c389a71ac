// opcel_compiler.runtime._runtime: compiled models for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../base/pool.h"
#include "../runtime/opcel.h"

namespace py = pybind11;

namespace {

/// Raises opcel_compiler.runtime.errors.<type>.
[[noreturn]] void raise(const char* type, const std::string& message) {
  const py::object error = py::module_::import("opcel_compiler.runtime.errors").attr(type);
  PyErr_SetString(error.ptr(), message.c_str());
  throw py::error_already_set();
}

const char* error_type(int32_t status) {
  return status == OPCEL_ARGUMENT ? "FeedError" : status == OPCEL_FILE ? "ArtifactError" : "RunError";
}

/// The NumPy type of an ONNX element type.
py::dtype numpy_dtype(int32_t code) {
  static const char* const names[] = {
      nullptr,         "float32",      "uint8",     "int8",          "uint16",
      "int16",         "int32",        "int64",     nullptr,         "bool",
      "float16",       "float64",      "uint32",    "uint64",        "complex64",
      "complex128",    "bfloat16",     "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
      "float8_e5m2fnuz", "uint4",      "int4",      "float4_e2m1fn", "float8_e8m0fnu",
      "uint2",         "int2"};
  constexpr int32_t kFirstOfMlDtypes = 16;
  const char* name = code >= 0 && code < int32_t(std::size(names)) ? names[code] : nullptr;
  if (!name) raise("ArtifactError", "element type " + std::to_string(code) + " cannot be passed to or from NumPy");
  if (code < kFirstOfMlDtypes) return py::dtype(name);
  return py::dtype::from_args(py::module_::import("ml_dtypes").attr(name));
}

/// Threads that live as long as the process, so that every model of a thread count shares them.
class SharedPool {
 public:
  static std::shared_ptr<SharedPool> get(int32_t threads) {
    static auto* mutex = new std::mutex;
    static auto* pools = new std::map<int32_t, std::shared_ptr<SharedPool>>;
    if (threads <= 0) threads = opcel::usable_cpus();
    const std::lock_guard<std::mutex> lock(*mutex);
    std::shared_ptr<SharedPool>& pool = (*pools)[threads];
    if (!pool) pool = std::make_shared<SharedPool>(threads);
    return pool;
  }

  explicit SharedPool(int32_t threads) : pool_(opcel::Pool::create(threads)) {
    if (!pool_) throw std::bad_alloc();
  }

  int32_t threads() const { return pool_->threads(); }

  void lend(opcel_host* host) const {
    host->threads = pool_->threads();
    host->pool = pool_;
    host->begin = [](void* pool) { static_cast<opcel::Pool*>(pool)->begin(); };
    host->end = [](void* pool) { static_cast<opcel::Pool*>(pool)->end(); };
    host->parallel_for = [](void* pool, opcel_kernel kernel, void* const* pointers, const int64_t* integers,
                            int64_t tasks) {
      static_cast<opcel::Pool*>(pool)->parallel_for(kernel, pointers, integers, tasks);
    };
  }

 private:
  opcel::Pool* pool_;
};

/// An input or output of the model.
struct Value {
  py::str name;
  py::dtype dtype;
  int32_t code;
  py::tuple shape;  // int, symbol name, or "?" for an expression of symbols
};

std::vector<Value> values_of(const opcel_value* values, int32_t count, const char* const* symbols) {
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
    result.push_back({py::reinterpret_steal<py::str>(name), numpy_dtype(values[i].dtype), values[i].dtype, shape});
  }
  return result;
}

std::string text_of(const py::handle& object) { return py::str(object).cast<std::string>(); }

/// What a region callback raised, for the run on this thread to chain to.
thread_local std::unique_ptr<py::error_already_set> region_error;

/// An open library and model; lives until the last run on it returns.
struct Loaded {
  void* library = nullptr;
  const opcel_api* api = nullptr;
  opcel_model* model = nullptr;
  const opcel_description* facts = nullptr;
  std::shared_ptr<SharedPool> pool;
  py::object region;
  std::vector<Value> inputs, outputs;
  std::mutex mutex;
  std::vector<opcel_context*> idle;

  ~Loaded() {
    for (opcel_context* context : idle) api->destroy_context(context);
    if (model) api->close(model);
    if (library) dlclose(library);
  }

  opcel_context* take_context() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!idle.empty()) {
        opcel_context* context = idle.back();
        idle.pop_back();
        return context;
      }
    }
    char error[512] = "";
    opcel_context* context = nullptr;
    if (const int32_t status = api->create_context(model, &context, error, sizeof error))
      raise(error_type(status), error);
    return context;
  }

  void give_context(opcel_context* context) {
    const std::lock_guard<std::mutex> lock(mutex);
    idle.push_back(context);
  }
};

/// A context for the length of one run.
class ContextLoan {
 public:
  explicit ContextLoan(Loaded* from) : from_(from), context_(from->take_context()) {}
  ~ContextLoan() { from_->give_context(context_); }
  ContextLoan(const ContextLoan&) = delete;
  ContextLoan& operator=(const ContextLoan&) = delete;
  opcel_context* get() const { return context_; }

 private:
  Loaded* from_;
  opcel_context* context_;
};

/// NumPy memory of a tensor that someone else owns.
py::array view_of(const opcel_tensor& tensor) {
  const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank);
  py::array array(numpy_dtype(tensor.dtype), shape, std::vector<py::ssize_t>(), tensor.data, py::none());
  return array;
}

std::string facts_of(const py::object& array) {
  return text_of(array.attr("dtype")) + " " + text_of(array.attr("shape"));
}

void call_region(const py::object& function, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
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

int32_t region_callback(void* user, int32_t index, const opcel_tensor* inputs, int32_t n_inputs,
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

/// The opcel_tensors of one call, and the arrays they point into.
class Tensors {
 public:
  explicit Tensors(size_t count) { tensors_.reserve(count), arrays_.reserve(count), strides_.reserve(count); }

  void add(py::array array, int32_t code) {
    const py::ssize_t item = array.itemsize();
    bool dense = array.flags() & py::array::c_style;
    bool regular = reinterpret_cast<uintptr_t>(array.data()) % alignment(item) == 0;
    for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) regular = regular && array.strides(axis) % item == 0;
    if (!regular) {
      array = array.attr("copy")("C").cast<py::array>();
      dense = true;
    }
    opcel_tensor tensor{};
    tensor.data = const_cast<void*>(array.data());
    tensor.shape = shape_of(array);
    tensor.dtype = code;
    tensor.rank = static_cast<int32_t>(array.ndim());
    if (!dense) {
      strides_.emplace_back();
      for (py::ssize_t axis = 0; axis < array.ndim(); ++axis) strides_.back().push_back(array.strides(axis) / item);
      tensor.strides = strides_.back().data();
    }
    tensors_.push_back(tensor);
    arrays_.push_back(std::move(array));
  }

  const opcel_tensor* data() const { return tensors_.data(); }
  const py::array& array(size_t i) const { return arrays_[i]; }
  size_t size() const { return arrays_.size(); }

 private:
  static_assert(sizeof(py::ssize_t) == sizeof(int64_t), "the extents of NumPy are used in place");
  static const int64_t* shape_of(const py::array& array) { return reinterpret_cast<const int64_t*>(array.shape()); }
  static uintptr_t alignment(py::ssize_t item) { return item >= 8 ? 8 : item > 0 ? static_cast<uintptr_t>(item) : 1; }

  std::vector<opcel_tensor> tensors_;
  std::vector<py::array> arrays_;
  std::vector<std::vector<int64_t>> strides_;
};

/// The array of `given` (or the NumPy scalar, as a 0-d array), of the value's element type.
py::array checked_array(const py::handle& given, const Value& value, const char* kind) {
  py::array array;
  if (py::isinstance<py::array>(given))
    array = py::reinterpret_borrow<py::array>(given);
  else if (py::isinstance(given, py::module_::import("numpy").attr("generic")))
    array = py::array::ensure(given);
  else
    raise("FeedError", std::string(kind) + " '" + text_of(value.name) + "': a " +
                           text_of(py::type::of(given).attr("__name__")) + " given, a NumPy array of " +
                           text_of(value.dtype) + " " + text_of(value.shape) + " expected");
  const py::dtype dtype = array.dtype();
  if (!dtype.is(value.dtype) && !dtype.equal(value.dtype))
    raise("FeedError", std::string(kind) + " '" + text_of(value.name) + "': element type " + text_of(dtype) +
                           " given, " + text_of(value.dtype) + " expected");
  return array;
}

/// Raises for names in `given` that no value has, and for values that are missing.
[[noreturn]] void raise_for_names(const py::dict& given, const std::vector<Value>& values, const char* kind) {
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

class Model {
 public:
  Model(const std::string& artifact, bool resident, std::shared_ptr<SharedPool> pool, py::object region)
      : loaded_(std::make_shared<Loaded>()) {
    char error[1024] = "";
    loaded_->api = opcel_load(artifact.c_str(), &loaded_->library, error, sizeof error);
    if (!loaded_->api) raise("ArtifactError", "cannot open " + artifact + ": " + error);
    loaded_->pool = std::move(pool);
    loaded_->region = std::move(region);
    opcel_host host{};
    host.struct_size = sizeof host;
    host.threads = 1;
    if (loaded_->pool) loaded_->pool->lend(&host);
    host.user = loaded_.get();
    if (!loaded_->region.is_none()) host.region = region_callback;
    const opcel_options options{sizeof options, resident ? OPCEL_WEIGHTS_RESIDENT : OPCEL_WEIGHTS_MAP, &host};
    int32_t status;
    {
      const py::gil_scoped_release released;
      status = loaded_->api->open(artifact.c_str(), &options, &loaded_->model, error, sizeof error);
    }
    if (status != OPCEL_OK) 
      raise("ArtifactError", "cannot open " + artifact + ": " + (error[0] ? error : "there is no memory"));
    const opcel_description* facts = loaded_->facts = loaded_->api->describe(loaded_->model);
    loaded_->inputs = values_of(facts->inputs, facts->n_inputs, facts->symbols);
    loaded_->outputs = values_of(facts->outputs, facts->n_outputs, facts->symbols);
  }

  py::dict run(const py::dict& feeds, const py::object& outputs) {
    const std::shared_ptr<Loaded> loaded = open();
    Tensors in(loaded->inputs.size()), out(loaded->outputs.size());
    for (const Value& value : loaded->inputs) {
      PyObject* given = PyDict_GetItemWithError(feeds.ptr(), value.name.ptr());
      if (!given) {
        if (PyErr_Occurred()) throw py::error_already_set();
        raise_for_names(feeds, loaded->inputs, "input");
      }
      in.add(checked_array(given, value, "input"), value.code);
    }
    if (feeds.size() != loaded->inputs.size()) raise_for_names(feeds, loaded->inputs, "input");
    const ContextLoan context(loaded.get());
    make_outputs(*loaded, context.get(), in, outputs, &out);
    int32_t status;
    {
      const py::gil_scoped_release released;
      status = loaded->api->run(context.get(), in.data(), out.data());
    }
    if (status != OPCEL_OK) raise_for_run(status, loaded->api->last_error(context.get()));
    py::dict result;
    for (size_t i = 0; i < loaded->outputs.size(); ++i) result[loaded->outputs[i].name] = out.array(i);
    return result;
  }

  void close() { loaded_.reset(); }
  bool closed() const { return !loaded_; }

  py::list inputs() const { return facts_of(open()->inputs); }
  py::list outputs() const { return facts_of(open()->outputs); }
  uint64_t weights_bytes() const { return open()->facts->weights_bytes; }
  int64_t arena_bytes() const { return open()->facts->arena_bytes; }
  int32_t regions() const { return open()->facts->n_regions; }
  int32_t threads() const {
    const std::shared_ptr<Loaded> loaded = open();
    return loaded->pool ? loaded->pool->threads() : 1;
  }

 private:
  std::shared_ptr<Loaded> open() const {
    if (!loaded_) raise("RunError", "the model is closed");
    return loaded_;
  }

  static py::list facts_of(const std::vector<Value>& values) {
    py::list result;
    for (const Value& value : values) result.append(py::make_tuple(value.name, value.dtype, value.shape));
    return result;
  }

  /// Takes the arrays that the caller gave and makes the others.
  static void make_outputs(const Loaded& loaded, opcel_context* context, const Tensors& in, const py::object& given,
                           Tensors* out) {
    std::vector<std::vector<int64_t>> extents;
    std::vector<int64_t*> shapes;
    for (const Value& value : loaded.outputs) extents.emplace_back(value.shape.size());
    for (std::vector<int64_t>& extent : extents) shapes.push_back(extent.data());
    if (const int32_t status = loaded.api->output_shapes(context, in.data(), shapes.data()))
      raise(error_type(status), loaded.api->last_error(context));
    py::dict arrays;
    if (!given.is_none()) {
      if (!py::isinstance<py::dict>(given)) raise("FeedError", "outputs: a dict of name to NumPy array expected");
      arrays = py::reinterpret_borrow<py::dict>(given);
    }
    size_t used = 0;
    for (size_t i = 0; i < loaded.outputs.size(); ++i) {
      const Value& value = loaded.outputs[i];
      if (arrays.empty() || !arrays.contains(value.name)) {
        out->add(py::array(value.dtype, extents[i]), value.code);
        continue;
      }
      const py::array array = checked_array(arrays[value.name], value, "output");
      if (!array.writeable() || !(array.flags() & py::array::c_style) ||
          !(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_))
        raise("FeedError", "output '" + text_of(value.name) + "': a writeable, aligned, C-contiguous array expected");
      for (size_t j = 0; j < in.size() + i; ++j)
        if (overlap(array, j < in.size() ? in.array(j) : out->array(j - in.size())))
          raise("FeedError", "output '" + text_of(value.name) + "' shares memory with " +
                                 (j < in.size() ? "input '" + text_of(loaded.inputs[j].name)
                                                : "output '" + text_of(loaded.outputs[j - in.size()].name)) +
                                 "'");
      out->add(array, value.code);
      ++used;
    }
    if (used != arrays.size()) raise_for_names(arrays, loaded.outputs, "output");
  }

  static bool overlap(const py::array& one, const py::array& other) {
    return py::module_::import("numpy").attr("may_share_memory")(one, other).cast<bool>();
  }

  [[noreturn]] static void raise_for_run(int32_t status, const char* message) {
    if (status != OPCEL_REGION || !region_error) raise(error_type(status), message);
    const std::unique_ptr<py::error_already_set> cause = std::move(region_error);
    py::raise_from(*cause, py::module_::import("opcel_compiler.runtime.errors").attr("RunError").ptr(), message);
    throw py::error_already_set();
  }

  std::shared_ptr<Loaded> loaded_;
};

}  // namespace

PYBIND11_MODULE(_runtime, module) {
  module.doc() = "Opens and runs compiled models.";
  module.def("usable_cpus", &opcel::usable_cpus, "CPUs that this process may use: affinity and control-group quota.");
  py::class_<SharedPool, std::shared_ptr<SharedPool>>(module, "Pool")
      .def_property_readonly("threads", &SharedPool::threads, "Threads, the caller included.");
  module.def("pool", &SharedPool::get, py::arg("threads"),
             "The process-wide pool of `threads` threads (0: usable_cpus()), made on first use.");
  py::class_<Model>(module, "Model")
      .def(py::init<const std::string&, bool, std::shared_ptr<SharedPool>, py::object>(), py::arg("artifact"),
           py::arg("resident"), py::arg("pool").none(true), py::arg("region"))
      .def("run", &Model::run, py::arg("feeds"), py::arg("outputs") = py::none(),
           "Computes the outputs for `feeds`, one NumPy array for each input. Arrays in `outputs` are written in place "
           "(C-contiguous, of the right type and shape, sharing no memory with another); the others are new, and the "
           "caller's. Arrays may be strided; dense ones are read in place. The GIL is released meanwhile.\n\n"
           "Raises FeedError when an array does not fit the signature, RunError when the model fails.")
      .def("close", &Model::close)
      .def_property_readonly("closed", &Model::closed)
      .def_property_readonly("input_values", &Model::inputs)
      .def_property_readonly("output_values", &Model::outputs)
      .def_property_readonly("weights_bytes", &Model::weights_bytes)
      .def_property_readonly("arena_bytes", &Model::arena_bytes)
      .def_property_readonly("regions", &Model::regions)
      .def_property_readonly("threads", &Model::threads);
}
