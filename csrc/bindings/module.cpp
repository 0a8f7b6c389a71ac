// opcel_compiler.runtime._runtime: compiled models for Python.
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/pool.h"
#include "runtime/opcel.h"
#include "bindings/arrays.h"
#include "bindings/feeds.h"
#include "bindings/loaded.h"
#include "bindings/pool.h"
#include "bindings/regions.h"
#include "bindings/samples.h"

using namespace opcel::bindings;

namespace {

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
  define_samples(module);
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
