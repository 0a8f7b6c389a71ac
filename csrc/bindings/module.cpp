// opcel_compiler.runtime._runtime: compiled models for Python.
#include <fcntl.h>
#include <pybind11/pybind11.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/pool.h"
#include "runtime/opcel.h"
#include "bindings/arrays.h"
#include "bindings/results.h"

using namespace opcel::bindings;

namespace {

/// Threads that live as long as the process, so that every model of a thread count shares them.
class SharedPool {
 public:
  static std::shared_ptr<SharedPool> get(int32_t threads, bool pin) {
    static auto* mutex = new std::mutex;
    static auto* pools = new std::map<std::pair<int32_t, bool>, std::shared_ptr<SharedPool>>;
    if (threads <= 0) threads = opcel::usable_cpus();
    const std::lock_guard<std::mutex> lock(*mutex);
    std::shared_ptr<SharedPool>& pool = (*pools)[{threads, pin}];
    if (!pool) pool = std::make_shared<SharedPool>(threads, pin);
    return pool;
  }

  SharedPool(int32_t threads, bool pin) : pool_(opcel::Pool::create(threads, pin)) {
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

/// What a region callback raised, for the run on this thread to chain to.
thread_local std::unique_ptr<py::error_already_set> region_error;

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

/// The code of an artifact, loaded once however often the artifact is opened.
///
/// The loader takes a library that it has seen under some path for the same one, also when an artifact has taken the place
/// of another that is still open. So it is given the name of a descriptor that stays open as long as the library.
class Library {
 public:
  static std::shared_ptr<Library> open(const std::string& artifact) {
    static auto* mutex = new std::mutex;
    static auto* known = new std::map<std::pair<dev_t, ino_t>, std::weak_ptr<Library>>;
    const std::lock_guard<std::mutex> lock(*mutex);
    struct stat facts {};
    if (stat((artifact + "/model.so").c_str(), &facts) == 0) {
      if (std::shared_ptr<Library> found = (*known)[{facts.st_dev, facts.st_ino}].lock()) return found;
    }
    auto library = std::make_shared<Library>(artifact);
    (*known)[{facts.st_dev, facts.st_ino}] = library;
    return library;
  }

  explicit Library(const std::string& artifact) : folder_(::open(artifact.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {
    char error[1024] = "";
    const std::string name = folder_ < 0 ? artifact : "/proc/self/fd/" + std::to_string(folder_);
    api_ = opcel_load(name.c_str(), &handle_, error, sizeof error);
    if (!api_) reason_ = error;
  }
  Library(const Library&) = delete;
  ~Library() {
    if (handle_) dlclose(handle_);
    if (folder_ >= 0) ::close(folder_);
  }

  /// Null when it could not be loaded; reason() then says why.
  const opcel_api* api() const { return api_; }
  const std::string& reason() const { return reason_; }

 private:
  int folder_;
  void* handle_ = nullptr;
  const opcel_api* api_ = nullptr;
  std::string reason_;
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

class Model {
 public:
  Model(const std::string& artifact, bool resident, std::shared_ptr<SharedPool> pool, py::object region)
      : loaded_(std::make_shared<Loaded>()) {
    char error[1024] = "";
    loaded_->library = Library::open(artifact);
    loaded_->api = loaded_->library->api();
    if (!loaded_->api) raise("ArtifactError", "cannot open " + artifact + ": " + loaded_->library->reason());
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
    const Loan loan(loaded.get());
    Call& call = *loan;
    take_inputs(*loaded, feeds, &call);
    if (const int32_t status = loaded->api->output_shapes(call.context, call.inputs.data(), call.shapes.data()))
      raise(error_type(status), loaded->api->last_error(call.context));
    make_outputs(*loaded, outputs, &call);
    PyThreadState* const released = PyEval_SaveThread();
    const int32_t status = loaded->api->run(call.context, call.inputs.data(), call.outputs.data());
    PyEval_RestoreThread(released);
    if (status != OPCEL_OK) raise_for_run(status, loaded->api->last_error(call.context));
    take_results(*loaded, &call);
    py::dict result;
    for (size_t i = 0; i < loaded->outputs.size(); ++i)
      if (PyDict_SetItem(result.ptr(), loaded->outputs[i].name.ptr(), call.arrays[loaded->inputs.size() + i].ptr()) < 0)
        throw py::error_already_set();
    return result;
  }

  /// Seconds of each step, summed over `runs` runs.
  py::list profile(const py::dict& feeds, int32_t runs, const py::object& outputs) {
    const std::shared_ptr<Loaded> loaded = open();
    if (!OPCEL_HAS(loaded->api, profile) || !OPCEL_HAS(loaded->facts, n_steps))
      raise("RunError", "the artifact was compiled before steps could be timed; compile the model again");
    if (runs < 1) raise("FeedError", "runs is at least 1");
    const Loan loan(loaded.get());
    Call& call = *loan;
    take_inputs(*loaded, feeds, &call);
    if (const int32_t status = loaded->api->output_shapes(call.context, call.inputs.data(), call.shapes.data()))
      raise(error_type(status), loaded->api->last_error(call.context));
    make_outputs(*loaded, outputs, &call);
    std::vector<double> seconds(static_cast<size_t>(loaded->facts->n_steps));
    PyThreadState* const released = PyEval_SaveThread();
    const int32_t status =
        loaded->api->profile(call.context, call.inputs.data(), call.outputs.data(), runs, seconds.data());
    PyEval_RestoreThread(released);
    if (status != OPCEL_OK) raise_for_run(status, loaded->api->last_error(call.context));
    py::list result;
    for (const double value : seconds) result.append(value);
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

  static void take_inputs(const Loaded& loaded, const py::dict& feeds, Call* call) {
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
  static int32_t past_of(const Loaded& loaded, size_t output) {
    if (!OPCEL_HAS(loaded.facts, states)) return -1;
    for (int32_t i = 0; i < loaded.facts->n_states; ++i)
      if (loaded.facts->states[i].output == static_cast<int32_t>(output)) return loaded.facts->states[i].input;
    return -1;
  }

  /// Takes the arrays that the caller gave and makes the others.
  static void make_outputs(const Loaded& loaded, const py::object& given, Call* call) {
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
  static void take_results(const Loaded& loaded, Call* call) {
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

  static void check_apart(const Loaded& loaded, const Call& call, size_t output, const Value& other,
                          const opcel_tensor& tensor) {
    const Value& value = loaded.outputs[output];
    if (call.outputs[output].data && tensor.data && overlap(call.outputs[output], tensor, value.item, other.item))
      raise("FeedError", "output '" + text_of(value.name) + "' shares memory with '" + text_of(other.name) + "'");
  }

  [[noreturn]] static void raise_for_run(int32_t status, const char* message) {
    if (status != OPCEL_REGION || !region_error) raise(error_type(status), message);
    const std::unique_ptr<py::error_already_set> cause = std::move(region_error);
    py::raise_from(*cause, py::module_::import("opcel_compiler.runtime.errors").attr("RunError").ptr(), message);
    throw py::error_already_set();
  }

  std::shared_ptr<Loaded> loaded_;
};

const char kRunText[] =
    "run(feeds, outputs=None)\n--\n\n"
    "Computes the outputs for `feeds`, one NumPy array for each input. Arrays in `outputs` are written in place "
    "(C-contiguous, of the right type and shape, sharing no memory with another); the others are new, and the "
    "caller's. Arrays may be strided; dense ones are read in place. The GIL is released meanwhile.\n\n"
    "Raises FeedError when an array does not fit the signature, RunError when the model fails.";

/// Model.run without pybind11's dispatch, which would take longer than a small network.
PyObject* run_entry(PyObject* self, PyObject* const* arguments, Py_ssize_t count, PyObject* names) {
  PyObject* given[2] = {nullptr, Py_None};
  bool good = count <= 2;
  for (Py_ssize_t i = 0; good && i < count; ++i) given[i] = arguments[i];
  for (Py_ssize_t i = 0; good && names && i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* name = PyTuple_GET_ITEM(names, i);
    const int at = PyUnicode_CompareWithASCIIString(name, "feeds") == 0     ? 0
                   : PyUnicode_CompareWithASCIIString(name, "outputs") == 0 ? 1
                                                                            : 2;
    good = at < 2 && at >= count;
    if (good) given[at] = arguments[count + i];
  }
  if (!good || !given[0] || !PyDict_Check(given[0])) {
    PyErr_SetString(PyExc_TypeError, "run(feeds, outputs=None) takes a dict of input name to NumPy array");
    return nullptr;
  }
  try {
    // The descriptor has checked the type; py::cast would look it up again.
    void* model = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder().value_ptr();
    if (!model) raise("RunError", "the model was never opened");
    const auto feeds = py::reinterpret_borrow<py::dict>(given[0]);
    const auto outputs = py::reinterpret_borrow<py::object>(given[1]);
    return static_cast<Model*>(model)->run(feeds, outputs).release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyMethodDef run_method = {"run", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(run_entry)),
                          METH_FASTCALL | METH_KEYWORDS, kRunText};

}  // namespace

PYBIND11_MODULE(_runtime, module) {
  module.doc() = "Opens and runs compiled models.";
  module.def("usable_cpus", &opcel::usable_cpus, "CPUs that this process may use: affinity and control-group quota.");
  py::class_<SharedPool, std::shared_ptr<SharedPool>>(module, "Pool")
      .def_property_readonly("threads", &SharedPool::threads, "Threads, the caller included.");
  module.def("pool", &SharedPool::get, py::arg("threads"), py::arg("pin") = false,
             "The process-wide pool of `threads` threads (0: usable_cpus()), made on first use. `pin`: each of its threads "
             "but the caller's stays on one CPU.");
  py::class_<Model> model(module, "Model");
  model
      .def(py::init<const std::string&, bool, std::shared_ptr<SharedPool>, py::object>(), py::arg("artifact"),
           py::arg("resident"), py::arg("pool").none(true), py::arg("region"))
      .def("close", &Model::close)
      .def("profile", &Model::profile, py::arg("feeds"), py::arg("runs") = 1, py::arg("outputs") = py::none(),
           "Runs the model `runs` times and gives the seconds of each step of the program, summed over the runs, as "
           "the calling thread sees them. Raises like run, and RunError for an artifact that cannot tell.")
      .def_property_readonly("closed", &Model::closed)
      .def_property_readonly("input_values", &Model::inputs)
      .def_property_readonly("output_values", &Model::outputs)
      .def_property_readonly("weights_bytes", &Model::weights_bytes)
      .def_property_readonly("arena_bytes", &Model::arena_bytes)
      .def_property_readonly("regions", &Model::regions)
      .def_property_readonly("threads", &Model::threads);
  model.attr("run") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(model.ptr()), &run_method));
}
