// The C door: turns exceptions into status codes, and nothing else. See include/qla/qla.h.
#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "crc32c.h"
#include "engine.h"
#include "error.h"
#include "qla/qla.h"
#include "spans.h"

struct qla_engine {
  qla_engine(std::unique_ptr<qla::Package> package, const qla_options& options)
      : engine(std::move(package), options) {}
  qla::Engine engine;
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

void require(const void* pointer, const char* name) {
  if (!pointer) qla::fail(QLA_INVALID_INPUT, "%s is NULL", name);
}

// A caller compiled against an older header passes a shorter struct: what it lacks is zero.
template <typename T>
T read_struct(const T* from, const char* name) {
  require(from, name);
  if (from->struct_size < sizeof(size_t) || from->struct_size > 4096) {
    qla::fail(QLA_INVALID_INPUT, "%s.struct_size is %zu; set it to sizeof(%s)", name,
              from->struct_size, name);
  }
  T copy{};
  memcpy(static_cast<void*>(&copy), from, std::min(sizeof copy, from->struct_size));
  return copy;
}

qla_options read_options(const qla_options* options) {
  return options ? read_struct(options, "qla_options")
                 : qla_options{sizeof(qla_options), 0, 1, nullptr};
}

}  // namespace

qla_status qla_open(const char* folder, const qla_options* options, qla_engine** engine) {
  return guarded([&] {
    require(engine, "engine");
    *engine = nullptr;
    require(folder, "folder");
    const qla_options wanted = read_options(options);
    *engine = new qla_engine(qla::Package::open(folder), wanted);
  });
}

qla_status qla_open_memory(const qla_file* files, size_t num_files, const qla_options* options,
                           qla_engine** engine) {
  return guarded([&] {
    require(engine, "engine");
    *engine = nullptr;
    require(files, "files");
    const qla_options wanted = read_options(options);
    *engine = new qla_engine(qla::Package::open_memory(files, num_files), wanted);
  });
}

void qla_free(qla_engine* engine) { delete engine; }

qla_status qla_get_info(const qla_engine* engine, qla_model_info* info) {
  return guarded([&] {
    require(engine, "engine");
    const size_t size = read_struct(info, "qla_model_info").struct_size;
    const qla::EncoderSpec& e = engine->engine.package().encoder;
    qla_model_info filled{};
    filled.struct_size = size;
    filled.layers = e.layers;
    filled.hidden = e.hidden;
    filled.heads = e.heads;
    filled.intermediate = e.intermediate;
    filled.vocab_size = e.vocab_size;
    filled.max_positions = e.max_positions;
    filled.type_vocab_size = e.type_vocab_size;
    filled.task = engine->engine.package().task.kind;
    filled.outputs = engine->engine.package().task.outputs;
    filled.num_threads = engine->engine.num_threads();
    filled.streams = engine->engine.streams();
    memcpy(static_cast<void*>(info), &filled, std::min(sizeof filled, size));
  });
}

qla_status qla_get_text(const qla_engine* engine, qla_text which, char* buffer, size_t capacity,
                        size_t* length) {
  return guarded([&] {
    require(engine, "engine");
    require(length, "length");
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
      default:
        qla::fail(QLA_INVALID_INPUT, "there is no text %d", static_cast<int>(which));
    }
    *length = text.size();
    if (buffer && capacity > text.size()) memcpy(buffer, text.c_str(), text.size() + 1);
  });
}

qla_status qla_run(qla_engine* engine, const qla_batch* batch, const qla_outputs* outputs) {
  return guarded([&] {
    require(engine, "engine");
    engine->engine.run(read_struct(batch, "qla_batch"), read_struct(outputs, "qla_outputs"));
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
    qla::top_spans(read_struct(search, "qla_span_search"), read_struct(spans, "qla_spans"));
  });
}

uint32_t qla_crc32c(const void* data, size_t size) { return qla::crc32c(data, size); }

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
