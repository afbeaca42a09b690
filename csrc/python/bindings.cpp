// qla_runtime._core: the C door (qla/qla.h) as a Python module, and nothing more. It checks that
// arrays are what they claim to be, makes room for the results, and lets go of the GIL while the
// engine works; what the numbers mean is decided on the other side of the door, or in Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "gil.h"
#include "qla/qla.h"

namespace py = pybind11;

namespace {

constexpr std::array<const char*, QLA_NUM_STAGES> kStages = {"embed",  "qkv", "attention", "select",
                                                             "output", "ffn", "head",      "wait"};
constexpr std::array<const char*, 4> kTasks = {"span-qa", "sequence-classification",
                                               "token-classification", "embedding"};
const std::set<std::string> kResults = {"last_hidden", "logits", "kept",  "hidden_states",
                                        "scores",      "macs",   "stages"};

// ------------------------------------------------------------------------------------- errors

[[noreturn]] void raise(const char* class_name, const std::string& message) {
  const py::object type = py::module_::import("qla_runtime.errors").attr(class_name);
  // A message may quote a path or a file's bytes: never let it fail as bad UTF-8.
  const py::object text = py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(
      message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
  if (!text) throw py::error_already_set();
  PyErr_SetObject(type.ptr(), text.ptr());
  throw py::error_already_set();
}

[[noreturn]] void bad_input(const std::string& message) { raise("InputError", message); }

void check(qla_status status) {
  if (status == QLA_OK) return;
  const std::string message = qla_last_error();
  switch (status) {
    case QLA_INVALID_INPUT:
      raise("InputError", message);
    case QLA_BAD_PACKAGE:
      raise("PackageError", message);
    case QLA_UNSUPPORTED:
      raise("UnsupportedError", message);
    case QLA_OUT_OF_MEMORY:
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw py::error_already_set();
    case QLA_STOPPED:  // by a signal handler, whose exception is set already
      throw py::error_already_set();
    default:
      raise("QlaError", message);
  }
}

// Runs call(stop, stop_user) without the GIL.
template <class Call>
qla_status without_gil(Call call) {
  qla::python::WithoutGil released;
  const qla_status status = call(released.stop(), &released);
  released.end();
  return status;
}

// ------------------------------------------------------------------------------------ options

// Text for the C door, which reads up to the first NUL; `name` is for messages.
std::string c_text(const py::object& object, const char* name) {
  if (!PyUnicode_Check(object.ptr())) {
    bad_input(std::string(name) + " must be a text; got " + Py_TYPE(object.ptr())->tp_name);
  }
  // Lone surrogates are no UTF-8; escaped, they are refused as any other unknown text is.
  const auto bytes = py::reinterpret_steal<py::object>(
      PyUnicode_AsEncodedString(object.ptr(), "utf-8", "backslashreplace"));
  if (!bytes) throw py::error_already_set();
  std::string text = bytes.cast<py::bytes>();
  if (text.find('\0') != std::string::npos) {
    bad_input(std::string(name) + " holds a NUL character; remove it");
  }
  return text;
}

// A path as the bytes that the operating system knows it by.
std::string path_argument(const py::object& path) {
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path.ptr(), &encoded)) {
    return py::reinterpret_steal<py::bytes>(encoded);
  }
  py::error_already_set error;
  if (error.matches(PyExc_TypeError) || error.matches(PyExc_ValueError)) {
    const std::string shown =
        py::str(py::module_::import("qla_runtime.errors").attr("shown")(path));
    bad_input("the path is " + shown + ", which names no folder (" +
              std::string(py::str(error.value())) + "); pass the path of a package folder");
  }
  throw error;
}

// ------------------------------------------------------------------------------------- arrays

template <class T>
using Array = py::array_t<T, py::array::c_style>;

std::string dtype_name(const py::dtype& dtype) {
  return py::str(static_cast<const py::object&>(dtype));
}

[[noreturn]] void refuse_vector(const py::object& object, const char* name,
                                const py::dtype& dtype) {
  const std::string wanted = std::string(name) +
                             " must be an aligned, contiguous, one-dimensional " +
                             dtype_name(dtype) + " array; ";
  if (!py::isinstance<py::array>(object)) {
    bad_input(wanted + "got " + Py_TYPE(object.ptr())->tp_name +
              ". Convert it with numpy.ascontiguousarray(..., dtype=...)");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!array.dtype().equal(dtype)) {
    bad_input(wanted + "its dtype is " + dtype_name(array.dtype()) +
              ". Convert it on purpose with .astype(...)");
  }
  if (array.ndim() != 1) {
    bad_input(wanted + "it has " + std::to_string(array.ndim()) + " dimensions. Flatten it first");
  }
  bad_input(wanted + "it is strided or not aligned. Pass a copy of it");
}

// Exactly this dtype and layout: a silent cast of floats to ids, or a silent copy of a large array,
// would hide the caller's mistake.
template <class T>
Array<T> vector_argument(const py::object& object, const char* name) {
  if (py::isinstance<Array<T>>(object)) {
    auto array = py::reinterpret_borrow<Array<T>>(object);
    const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    if (array.ndim() == 1 && aligned) return array;
  }
  refuse_vector(object, name, py::dtype::of<T>());
}

void check_size(const py::array& array, const char* name, py::ssize_t size, const char* because) {
  if (array.size() == size) return;
  bad_input(std::string(name) + " has " + std::to_string(array.size()) + " entries; it needs " +
            std::to_string(size) + ", " + because);
}

// The C door sees pointers only, so that the ranges stay inside the array is checked here.
void check_offsets(const Array<std::int64_t>& offsets, const char* name, py::ssize_t end) {
  const std::int64_t* begin = offsets.data();
  if (offsets.size() < 1 || begin[0] != 0 || begin[offsets.size() - 1] != end ||
      !std::is_sorted(begin, begin + offsets.size())) {
    bad_input(std::string(name) + " must rise from 0 to " + std::to_string(end) +
              ", the number of entries that it divides; check the last sequence's end");
  }
}

template <class T>
Array<T> room(std::vector<py::ssize_t> shape) {
  return Array<T>(std::move(shape));
}

// ------------------------------------------------------------------------------------- engine

using LengthTuple = std::tuple<std::int32_t, std::vector<double>, std::int32_t>;

// What `want` asks for, as the engine fills it. Unasked arrays stay absent.
class Results {
 public:
  Results(const std::set<std::string>& want, const qla_model_info& info, py::ssize_t tokens,
          py::ssize_t sequences) {
    const py::ssize_t layers = info.layers, hidden = info.hidden;
    const py::ssize_t logit_rows = info.logits_per_token ? tokens : sequences;
    pointers_.struct_size = sizeof pointers_;
    if (want.count("last_hidden")) {
      pointers_.last_hidden = add<float>("last_hidden", {tokens, hidden});
    }
    if (want.count("logits")) {
      pointers_.logits = add<float>("logits", {logit_rows, info.outputs});
    }
    if (want.count("kept")) {
      pointers_.kept_counts = add<std::int32_t>("kept_counts", {layers, sequences});
      pointers_.kept = add<std::int32_t>("kept", {layers, tokens});
    }
    if (want.count("hidden_states")) {
      pointers_.hidden_states = add<float>("hidden_states", {layers + 1, tokens, hidden});
    }
    if (want.count("scores")) pointers_.scores = add<float>("scores", {layers, tokens});
    if (want.count("macs")) pointers_.macs = add<std::int64_t>("macs", {sequences});
    if (want.count("stages")) {
      pointers_.stage_seconds = add<double>("stages", {py::ssize_t{QLA_NUM_STAGES}});
      pointers_.num_stages = QLA_NUM_STAGES;
    }
  }

  const qla_outputs* pointers() const { return &pointers_; }
  py::dict take() { return std::move(arrays_); }

 private:
  template <class T>
  T* add(const char* name, std::vector<py::ssize_t> shape) {
    Array<T> array = room<T>(std::move(shape));
    arrays_[name] = array;
    return array.mutable_data();
  }

  qla_outputs pointers_{};
  py::dict arrays_;
};

class Engine {
 public:
  Engine(const py::object& path, std::int32_t num_threads, std::int32_t streams,
         const py::object& isa, const py::object& weights) {
    const std::string folder = path_argument(path);
    const std::string isa_text = isa.is_none() ? "" : c_text(isa, "isa");
    const std::string weights_text = weights.is_none() ? "" : c_text(weights, "weights");
    qla_options options{};
    options.struct_size = sizeof options;
    options.num_threads = num_threads;
    options.streams = streams;
    options.isa = isa.is_none() ? nullptr : isa_text.c_str();
    options.weights = weights.is_none() ? nullptr : weights_text.c_str();
    qla_engine* opened = nullptr;
    check(without_gil([&](qla_stop stop, void* user) {
      options.stop = stop;
      options.stop_user = user;
      return qla_open(folder.c_str(), &options, &opened);
    }));
    engine_.reset(opened, qla_free);
    info_.struct_size = sizeof info_;
    check(qla_get_info(opened, &info_));
  }

  // The package is unmapped and the threads end, once no call is running any more.
  void close() {
    std::shared_ptr<qla_engine> last;
    last.swap(engine_);
    without_gil([&](qla_stop, void*) {
      last.reset();
      return QLA_OK;
    });
  }

  bool closed() const { return engine_ == nullptr; }

  py::dict info() const {
    py::dict info;
    info["layers"] = info_.layers;
    info["hidden"] = info_.hidden;
    info["heads"] = info_.heads;
    info["intermediate"] = info_.intermediate;
    info["vocab_size"] = info_.vocab_size;
    info["max_positions"] = info_.max_positions;
    info["type_vocab_size"] = info_.type_vocab_size;
    info["task"] = kTasks.at(static_cast<std::size_t>(info_.task));
    info["outputs"] = info_.outputs;
    info["logits_per_token"] = info_.logits_per_token != 0;
    info["num_threads"] = info_.num_threads;
    info["streams"] = info_.streams;
    return info;
  }

  py::str text(qla_text which) const { return py::str(content(which)); }

  py::bytes tokenizer_json() const { return py::bytes(content(QLA_TEXT_TOKENIZER)); }

  py::dict run(const py::object& ids, const py::object& offsets, const py::object& type_ids,
               const std::vector<LengthTuple>& lengths, const py::object& length_index,
               const py::iterable& want) {
    const auto engine = open_engine();  // kept alive for this call, whoever closes it meanwhile
    const auto id_array = vector_argument<std::int32_t>(ids, "ids");
    const auto offset_array = vector_argument<std::int64_t>(offsets, "offsets");
    check_offsets(offset_array, "offsets", id_array.size());
    const py::ssize_t tokens = id_array.size(), sequences = offset_array.size() - 1;
    const std::set<std::string> names = checked_names(want);

    qla_batch batch{};
    batch.struct_size = sizeof batch;
    batch.input_ids = id_array.data();
    batch.offsets = offset_array.data();
    batch.num_sequences = sequences;

    Array<std::int32_t> type_array, index_array;
    if (!type_ids.is_none()) {
      type_array = vector_argument<std::int32_t>(type_ids, "type_ids");
      check_size(type_array, "type_ids", tokens, "one per token");
      batch.token_type_ids = type_array.data();
    }
    if (!length_index.is_none()) {
      index_array = vector_argument<std::int32_t>(length_index, "length_index");
      check_size(index_array, "length_index", sequences, "one per sequence");
      batch.length_index = index_array.data();
    }
    std::vector<qla_length_config> configs;
    configs.reserve(lengths.size());
    for (const auto& [rule, values, keep_cls] : lengths) {
      configs.push_back({rule, keep_cls, values.data(), static_cast<std::int32_t>(values.size())});
    }
    batch.lengths = configs.empty() ? nullptr : configs.data();
    batch.num_lengths = static_cast<std::int32_t>(configs.size());

    Results results(names, info_, tokens, sequences);
    check(without_gil([&](qla_stop stop, void* user) {
      batch.stop = stop;
      batch.stop_user = user;
      return qla_run(engine.get(), &batch, results.pointers());
    }));
    return results.take();
  }

 private:
  std::string content(qla_text which) const {
    const auto engine = open_engine();
    std::size_t length = 0;
    check(qla_get_text(engine.get(), which, nullptr, 0, &length));
    std::string buffer(length + 1, '\0');
    check(qla_get_text(engine.get(), which, buffer.data(), buffer.size(), &length));
    buffer.resize(length);
    return buffer;
  }

  static std::set<std::string> checked_names(const py::iterable& want) {
    std::set<std::string> names;
    for (const py::handle& item : want) {
      const std::string name = py::str(item);
      if (!kResults.count(name)) bad_input("want holds '" + name + "', which run() cannot give");
      names.insert(name);
    }
    return names;
  }

  std::shared_ptr<qla_engine> open_engine() const {
    if (!engine_) bad_input("the engine is closed; open another one with Engine(path)");
    return engine_;
  }

  std::shared_ptr<qla_engine> engine_;  // null once closed
  qla_model_info info_{};
};

// --------------------------------------------------------------------------- module functions

// (T, 2) float32, as run() gives the logits of span QA.
Array<float> logits_argument(const py::object& object) {
  if (py::isinstance<Array<float>>(object)) {
    auto array = py::reinterpret_borrow<Array<float>>(object);
    const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) == 0;
    if (array.ndim() == 2 && array.shape(1) == 2 && aligned) return array;
  }
  bad_input("logits must be an aligned, contiguous float32 array of shape (tokens, 2)");
}

py::tuple top_spans(const py::object& logits, const py::object& is_context,
                    const py::object& offsets, const py::object& questions,
                    const py::object& positions, std::int32_t max_tokens, std::int32_t top_k,
                    std::int32_t score_rule) {
  const auto pairs = logits_argument(logits);
  const auto context = vector_argument<std::uint8_t>(is_context, "is_context");
  const auto windows = vector_argument<std::int64_t>(offsets, "offsets");
  const auto owners = vector_argument<std::int64_t>(questions, "questions");
  const auto places = vector_argument<std::int64_t>(positions, "positions");
  check_size(context, "is_context", pairs.shape(0), "one per token");
  check_offsets(windows, "offsets", pairs.shape(0));
  check_offsets(owners, "questions", windows.size() - 1);
  check_size(places, "positions", windows.size() - 1, "one per window");

  qla_span_search search{};
  search.struct_size = sizeof search;
  search.start_logits = pairs.data();
  search.end_logits = pairs.data() + 1;
  search.logit_stride = 2;
  search.is_context = context.data();
  search.offsets = windows.data();
  search.questions = owners.data();
  search.num_questions = owners.size() - 1;
  search.positions = places.data();
  search.max_tokens = max_tokens;
  search.top_k = top_k;
  search.score = score_rule;

  const py::ssize_t count = owners.size() - 1, each = std::clamp<py::ssize_t>(top_k, 0, 1024);
  auto counts = room<std::int32_t>({count}), window = room<std::int32_t>({count, each}),
       first = room<std::int32_t>({count, each}), last = room<std::int32_t>({count, each});
  auto score = room<float>({count, each}), null_score = room<float>({count});
  // Pointers first: mutable_data() belongs to Python, the call below does not hold its lock.
  const qla_spans spans{sizeof(qla_spans),        counts.mutable_data(), window.mutable_data(),
                        first.mutable_data(),     last.mutable_data(),   score.mutable_data(),
                        null_score.mutable_data()};
  check(without_gil([&](qla_stop, void*) { return qla_top_spans(&search, &spans); }));
  return py::make_tuple(counts, window, first, last, score, null_score);
}

std::uint32_t crc32c(const py::buffer& buffer) {
  Py_buffer view;
  if (PyObject_GetBuffer(buffer.ptr(), &view, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  const std::uint32_t sum = qla_crc32c(view.buf, static_cast<std::size_t>(view.len));
  PyBuffer_Release(&view);
  return sum;
}

std::vector<std::string> available_isas() {
  const std::string text = qla_available_isas();
  std::vector<std::string> names;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find(' ', begin), text.size());
    if (end > begin) names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  // What instruction sets there are is found out now, under the import lock: a fork in the middle
  // of it would leave the child waiting for a thread that it lacks.
  qla_available_isas();
  // So is numpy's C interface. pybind11 would fetch it at the first call, and lets go of the GIL in
  // a way that aborts the process where another thread has ended the interpreter meanwhile.
  py::dtype::of<float>();
  const py::object main_thread = py::module_::import("threading").attr("main_thread")();
  qla::python::remember_main_thread(main_thread.attr("ident").cast<unsigned long>());
  module.doc() = "The C door of qla_runtime (qla/qla.h): one engine, its results as numpy arrays.";

  py::class_<Engine>(module, "Engine")
      .def(py::init<const py::object&, std::int32_t, std::int32_t, const py::object&,
                    const py::object&>(),
           py::arg("path"), py::arg("num_threads") = 0, py::arg("streams") = 1,
           py::arg("isa") = py::none(), py::arg("weights") = py::none())
      .def_property_readonly("info", &Engine::info)
      .def_property_readonly("config_json",
                             [](const Engine& engine) { return engine.text(QLA_TEXT_CONFIG); })
      .def_property_readonly(
          "length_configs_json",
          [](const Engine& engine) { return engine.text(QLA_TEXT_LENGTH_CONFIGS); })
      .def("tokenizer_json", &Engine::tokenizer_json)
      .def("explain", [](const Engine& engine) { return engine.text(QLA_TEXT_EXPLAIN); })
      .def("close", &Engine::close)
      .def_property_readonly("closed", &Engine::closed)
      .def("run", &Engine::run, py::arg("ids"), py::arg("offsets"), py::arg("type_ids"),
           py::arg("lengths"), py::arg("length_index"), py::arg("want"));

  module.def("top_spans", &top_spans, py::arg("logits"), py::arg("is_context"), py::arg("offsets"),
             py::arg("questions"), py::arg("positions"), py::arg("max_tokens"), py::arg("top_k"),
             py::arg("score"));
  module.def("crc32c", &crc32c, py::arg("buffer"));
  module.def("available_isas", &available_isas);
  module.def("version", [] { return std::string(qla_version()); });

  py::tuple stages(kStages.size());
  for (std::size_t i = 0; i < kStages.size(); ++i) stages[i] = py::str(kStages[i]);
  module.attr("STAGES") = stages;
}
