// The C door: turns exceptions into status codes, and nothing else. See include/qla/qla.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "caller_structs.h"
#include "cost_model.h"
#include "engine.h"
#include "error.h"
#include "named_lengths.h"
#include "package/crc32c.h"
#include "qla/qla.h"
#include "spans.h"

struct qla_engine {
  qla_engine(std::unique_ptr<qla::Package> package, const qla_options& options)
      : engine(std::move(package), options) {}
  qla::Engine engine;
  const qla::NamedLengths lengths{engine.package()};
  qla::Budgets budgets{engine, lengths};
};

namespace {

// Large enough for two long paths: package errors print the `qla convert` line to run.
thread_local char last_error[16384] = "";

qla_status report(qla_status status, const char* message) {
  strncpy(last_error, message, sizeof last_error - 1);
  return status;
}

template <typename Body>
qla_status guarded(Body body) noexcept {
  try {
    body();
    return QLA_OK;
  } catch (const qla::Error& error) {
    return report(error.code, error.what());
  } catch (const std::bad_alloc&) {
    return report(QLA_OUT_OF_MEMORY, "out of memory; pass fewer or shorter sequences in one call");
  } catch (const std::exception& error) {
    return report(QLA_INTERNAL, error.what());
  } catch (...) {
    return report(QLA_INTERNAL, "unknown exception");
  }
}

qla_options read_options(const qla_options* options) {
  return options ? qla::read_struct(options, "qla_options") : qla_options{};
}

qla::StopRequest stop_of(const qla_options& options) { return {options.stop, options.stop_user}; }

}  // namespace

qla_status qla_open(const char* folder, const qla_options* options, qla_engine** engine) {
  return guarded([&] {
    qla::require(engine, "engine");
    *engine = nullptr;
    qla::require(folder, "folder");
    const qla_options wanted = read_options(options);
    const auto place = qla::parse_weight_placement(wanted.weights);
    *engine = new qla_engine(qla::Package::open(folder, stop_of(wanted), place), wanted);
  });
}

qla_status qla_open_memory(const qla_file* files, size_t num_files, const qla_options* options,
                           qla_engine** engine) {
  return guarded([&] {
    qla::require(engine, "engine");
    *engine = nullptr;
    qla::require(files, "files");
    const qla_options wanted = read_options(options);
    const auto place = qla::parse_weight_placement(wanted.weights);
    *engine =
        new qla_engine(qla::Package::open_memory(files, num_files, stop_of(wanted), place), wanted);
  });
}

void qla_free(qla_engine* engine) { delete engine; }

qla_status qla_get_info(const qla_engine* engine, qla_model_info* info) {
  return guarded([&] {
    qla::require(engine, "engine");
    const qla::EncoderSpec& e = engine->engine.package().encoder;
    qla_model_info filled{};
    filled.layers = e.layers;
    filled.hidden = e.hidden;
    filled.heads = e.heads;
    filled.intermediate = e.intermediate;
    filled.vocab_size = e.vocab_size;
    filled.max_positions = e.max_positions;
    filled.type_vocab_size = e.type_vocab_size;
    filled.task = engine->engine.package().task.kind;
    filled.outputs = engine->engine.package().task.outputs;
    filled.logits_per_token = engine->engine.package().task.logits_per_token();
    filled.num_threads = engine->engine.num_threads();
    filled.streams = engine->engine.streams();
    qla::write_struct(filled, info, "qla_model_info");
  });
}

qla_status qla_get_text(const qla_engine* engine, qla_text which, char* buffer, size_t capacity,
                        size_t* length) {
  return guarded([&] {
    qla::require(engine, "engine");
    qla::require(length, "length");
    std::string text;
    switch (which) {
      case QLA_TEXT_CONFIG:
        text = engine->engine.package().config_json;
        break;
      case QLA_TEXT_LENGTH_CONFIGS:
        text = engine->engine.package().length_configs_json;
        break;
      case QLA_TEXT_EXPLAIN:
        text = engine->engine.explain();
        break;
      case QLA_TEXT_TOKENIZER:
        text = engine->engine.package().tokenizer_json;
        break;
      default:
        qla::fail(QLA_INVALID_INPUT, "there is no text %d", static_cast<int>(which));
    }
    *length = text.size();
    if (buffer && capacity > text.size()) memcpy(buffer, text.c_str(), text.size() + 1);
  });
}

qla_status qla_run(qla_engine* engine, const qla_batch* batch, const qla_outputs* outputs) {
  return guarded([&] {
    qla::require(engine, "engine");
    engine->engine.run(qla::read_struct(batch, "qla_batch"),
                       qla::read_struct(outputs, "qla_outputs"));
  });
}

qla_status qla_best_spans(const float* start_logits, const float* end_logits,
                          const uint8_t* is_context, const int64_t* offsets,
                          const int64_t* questions, int64_t num_questions, int32_t max_tokens,
                          int32_t* window, int32_t* first, int32_t* last, float* score) {
  return guarded([&] {
    qla::best_spans(start_logits, end_logits, is_context, offsets, questions, num_questions,
                    max_tokens, window, first, last, score);
  });
}

qla_status qla_top_spans(const qla_span_search* search, const qla_spans* spans) {
  return guarded([&] {
    qla::top_spans(qla::read_struct(search, "qla_span_search"),
                   qla::read_struct(spans, "qla_spans"));
  });
}

uint32_t qla_crc32c(const void* data, size_t size) { return qla::crc32c(data, data ? size : 0); }

const char* qla_available_isas(void) {
  thread_local char text[64];
  text[0] = '\0';
  for (qla::Isa isa : qla::kAllIsas) {
    if (!qla::isa_status(isa).usable) continue;
    if (text[0]) strcat(text, " ");
    strcat(text, qla::isa_name(isa));
  }
  return text;
}

const char* qla_last_error(void) { return last_error; }

#define QLA_TEXT_OF_(x) #x
#define QLA_TEXT_OF(x) QLA_TEXT_OF_(x)

const char* qla_version(void) {
  return QLA_TEXT_OF(QLA_VERSION_MAJOR) "." QLA_TEXT_OF(QLA_VERSION_MINOR) "." QLA_TEXT_OF(
      QLA_VERSION_PATCH);
}

namespace {

void fill(const qla::NamedLength& length, qla_config_info* info) {
  const qla_config_info filled = {sizeof filled,
                                  length.name.c_str(),
                                  length.plain(),
                                  length.in_frontier,
                                  length.macs,
                                  length.macs_share,
                                  length.measured ? length.metric.c_str() : nullptr,
                                  length.measured ? length.accuracy : 0.0,
                                  length.measured ? length.data.c_str() : nullptr};
  qla::write_struct(filled, info, "qla_config_info");
}

// The lengths of a call's sequences, from their offsets.
std::vector<int64_t> sequence_lengths(const int64_t* offsets, int64_t count, int max_positions) {
  qla::require(offsets, "offsets");
  if (count < 1) {
    qla::fail(QLA_INVALID_INPUT, "num_sequences is %lld; it must be at least 1",
              static_cast<long long>(count));
  }
  std::vector<int64_t> lengths;
  for (int64_t i = 0; i < count; ++i) {
    // Without a difference, which could overflow.
    if (offsets[i] < 0 || offsets[i + 1] <= offsets[i] ||
        offsets[i + 1] - offsets[i] > max_positions) {
      qla::fail(QLA_INVALID_INPUT,
                "offsets %lld to %lld of sequence %lld do not hold 1 to %d tokens",
                static_cast<long long>(offsets[i]), static_cast<long long>(offsets[i + 1]),
                static_cast<long long>(i), max_positions);
    }
    lengths.push_back(offsets[i + 1] - offsets[i]);
  }
  return lengths;
}

double checked_milliseconds(double value, const char* name, bool zero_too) {
  if (!std::isfinite(value) || value < 0.0 || (value == 0.0 && !zero_too)) {
    qla::fail(QLA_INVALID_INPUT, "%s is %g; it must be a finite number of milliseconds, %s", name,
              value, zero_too ? "0 or more" : "more than 0");
  }
  return value;
}

std::string names_of(const qla::NamedLengths& lengths) {
  std::string names;
  for (const qla::NamedLength& length : lengths.all()) {
    if (!names.empty()) names += ", ";
    names += length.name;
  }
  return names;
}

}  // namespace

qla_status qla_config_count(const qla_engine* engine, int32_t* count) {
  return guarded([&] {
    *qla::require(count, "count") =
        static_cast<int32_t>(qla::require(engine, "engine")->lengths.all().size());
  });
}

qla_status qla_get_config(const qla_engine* engine, int32_t index, qla_config_info* info) {
  return guarded([&] {
    const auto& all = qla::require(engine, "engine")->lengths.all();
    if (index < 0 || static_cast<size_t>(index) >= all.size()) {
      qla::fail(QLA_INVALID_INPUT, "there is no config %d; this package has %zu, from 0", index,
                all.size());
    }
    fill(all[static_cast<size_t>(index)], info);
  });
}

qla_status qla_find_config(const qla_engine* engine, const char* name, qla_config_info* info) {
  return guarded([&] {
    const qla::NamedLengths& lengths = qla::require(engine, "engine")->lengths;
    const qla::NamedLength* found = lengths.find(qla::require(name, "name"));
    if (!found) {
      qla::fail(QLA_INVALID_INPUT, "this package has no config '%.100s'; it has %.700s", name,
                names_of(lengths).c_str());
    }
    fill(*found, info);
  });
}

qla_status qla_fit_costs(qla_engine* engine) {
  return guarded([&] { qla::require(engine, "engine")->budgets.fit(); });
}

qla_status qla_choose_config(const qla_engine* engine, const int64_t* offsets,
                             int64_t num_sequences, double milliseconds, qla_config_info* info,
                             double* expected) {
  return guarded([&] {
    qla::require(engine, "engine");
    qla::require(expected, "expected");
    const double seconds = 1e-3 * checked_milliseconds(milliseconds, "milliseconds", true);
    const auto lengths =
        sequence_lengths(offsets, num_sequences, engine->engine.package().encoder.max_positions);
    const qla::Budgets::Choice choice = engine->budgets.choose(lengths, seconds);
    fill(*choice.length, info);
    *expected = 1e3 * choice.seconds;
  });
}

qla_status qla_saw_call(qla_engine* engine, double expected, double took) {
  return guarded([&] {
    qla::require(engine, "engine")
        ->budgets.saw(checked_milliseconds(expected, "expected", false),
                      checked_milliseconds(took, "took", false));
  });
}
