#include "engine.h"

#include <algorithm>
#include <climits>

#include "error.h"
#include "length_plan.h"

namespace qla {
namespace {

// A call is cut into chunks of about this many tokens, so that its memory does not grow with it.
// 4096 tokens of MiniLM need 35 MB of workspace.
constexpr int kChunkTokens = 4096;

constexpr int kMaxThreads = 1024;

Isa choose_isa(const char* wanted, std::string* source) {
  Isa cap;
  if (const char* error = max_isa(&cap)) throw Error(QLA_INVALID_INPUT, error);
  if (!wanted) {
    *source = "best available";
    return best_isa();
  }
  Isa isa;
  if (!parse_isa(wanted, &isa)) {
    fail(
        QLA_INVALID_INPUT,
        "isa '%s' is unknown; use one of ref, avx2, avxvnni, avx512vnni, amx, or none for the best "
        "available",
        wanted);
  }
  const IsaStatus status = isa_status(isa);
  if (!status.usable) {
    fail(QLA_UNSUPPORTED, "isa '%s' is not available here: %s; available: %s", wanted,
         status.reason, qla_available_isas());
  }
  *source = "asked for";
  return isa;
}

int choose_threads(int wanted, std::string* source) {
  if (wanted < 0 || wanted > kMaxThreads) {
    fail(QLA_INVALID_INPUT,
         "num_threads is %d; use 1 to %d, or leave it out for the share this process has", wanted,
         kMaxThreads);
  }
  if (wanted > 0) {
    *source = "asked for";
    return wanted;
  }
  const ThreadBudget budget = default_thread_budget();
  *source = budget.source;
  return std::min(budget.threads, kMaxThreads);
}

int choose_streams(int wanted) {
  if (wanted < 0 || wanted > kMaxThreads) {
    fail(QLA_INVALID_INPUT, "streams is %d; use 1 to %d", wanted, kMaxThreads);
  }
  return std::max(wanted, 1);
}

void check_sequence(const qla_batch& batch, int64_t s, const EncoderSpec& spec) {
  const int64_t first = batch.offsets[s], end = batch.offsets[s + 1];
  if (end <= first) {
    fail(QLA_INVALID_INPUT, "sequence %lld has %lld tokens; every sequence needs at least one",
         static_cast<long long>(s), static_cast<long long>(end - first));
  }
  if (end - first > spec.max_positions) {
    fail(QLA_INVALID_INPUT,
         "sequence %lld has %lld tokens, but this model has max_positions = %d; truncate it or "
         "split "
         "it into windows",
         static_cast<long long>(s), static_cast<long long>(end - first), spec.max_positions);
  }
  for (int64_t i = first; i < end; ++i) {
    if (batch.input_ids[i] < 0 || batch.input_ids[i] >= spec.vocab_size) {
      fail(QLA_INVALID_INPUT,
           "input id %d at position %lld of sequence %lld is outside the vocabulary [0, %d); was "
           "the "
           "text tokenized for another model?",
           batch.input_ids[i], static_cast<long long>(i - first), static_cast<long long>(s),
           spec.vocab_size);
    }
    if (batch.token_type_ids &&
        (batch.token_type_ids[i] < 0 || batch.token_type_ids[i] >= spec.type_vocab_size)) {
      fail(QLA_INVALID_INPUT,
           "token type id %d at position %lld of sequence %lld is outside [0, %d); leave token "
           "types "
           "out if the model has only one",
           batch.token_type_ids[i], static_cast<long long>(i - first), static_cast<long long>(s),
           spec.type_vocab_size);
    }
  }
}

void check_batch(const qla_batch& batch, const EncoderSpec& spec) {
  if (batch.num_sequences < 1 || !batch.input_ids || !batch.offsets) {
    fail(QLA_INVALID_INPUT, "the batch has %lld sequences; it needs at least one",
         static_cast<long long>(batch.num_sequences));
  }
  if (batch.num_sequences > INT_MAX / 2) {
    fail(QLA_INVALID_INPUT, "the batch has %lld sequences; at most %d in one call",
         static_cast<long long>(batch.num_sequences), INT_MAX / 2);
  }
  if (batch.offsets[0] != 0) fail(QLA_INVALID_INPUT, "offsets must begin with 0");
  for (int64_t s = 0; s < batch.num_sequences; ++s) check_sequence(batch, s, spec);
  if (batch.num_lengths < 0 || (batch.num_lengths > 0) != (batch.lengths != nullptr)) {
    fail(QLA_INVALID_INPUT, "num_lengths is %d and lengths is %s; give both, or neither",
         batch.num_lengths, batch.lengths ? "set" : "NULL");
  }
  for (int32_t i = 0; i < batch.num_lengths; ++i)
    check_length_config(batch.lengths[i], spec.layers);
  if (batch.length_index && !batch.lengths) {
    fail(QLA_INVALID_INPUT, "length_index is set, but there are no lengths for it to choose from");
  }
  if (batch.length_index) {
    for (int64_t s = 0; s < batch.num_sequences; ++s) {
      if (batch.length_index[s] < 0 || batch.length_index[s] >= batch.num_lengths) {
        fail(QLA_INVALID_INPUT,
             "length_index of sequence %lld is %d; this call has %d length configs",
             static_cast<long long>(s), batch.length_index[s], batch.num_lengths);
      }
    }
  }
}

const qla_length_config* config_of(const qla_batch& batch, int64_t s) {
  if (!batch.lengths) return nullptr;
  return &batch.lengths[batch.length_index ? batch.length_index[s] : 0];
}

// Result pointers moved on to the chunk that begins with sequence s at token t.
qla_outputs shifted(const qla_outputs& out, const Package& package, int64_t s, int64_t t) {
  const int64_t hidden = package.encoder.hidden, outputs = package.task.outputs;
  const bool per_token =
      package.task.kind == QLA_TASK_SPAN_QA || package.task.kind == QLA_TASK_TOKEN_CLASSIFICATION;
  qla_outputs moved = out;
  if (moved.last_hidden) moved.last_hidden += t * hidden;
  if (moved.logits) moved.logits += (per_token ? t : s) * outputs;
  if (moved.kept_counts) moved.kept_counts += s;
  if (moved.kept) moved.kept += t;
  if (moved.hidden_states) moved.hidden_states += t * hidden;
  if (moved.scores) moved.scores += t;
  if (moved.macs) moved.macs += s;
  return moved;
}

}  // namespace

Engine::Engine(std::unique_ptr<Package> package, const qla_options& options)
    : package_(std::move(package)),
      isa_(choose_isa(options.isa, &isa_source_)),
      pool_(choose_streams(options.streams), choose_threads(options.num_threads, &threads_source_)),
      encoder_(*package_, select_kernels(isa_), isa_) {}

void Engine::run(const qla_batch& batch, const qla_outputs& outputs) {
  const EncoderSpec& spec = package_->encoder;
  check_batch(batch, spec);
  const int layers = spec.layers;
  const int64_t total = batch.offsets[batch.num_sequences];
  const TeamPool::Lease lease(pool_);
  if (outputs.stage_seconds) std::fill_n(outputs.stage_seconds, int{QLA_NUM_STAGES}, 0.0);

  std::vector<int32_t> tokens;
  std::vector<uint8_t> keep_cls;
  for (int64_t first = 0; first < batch.num_sequences;) {
    tokens.clear();
    keep_cls.clear();
    int64_t end = first;
    while (end < batch.num_sequences &&
           (end == first || batch.offsets[end + 1] - batch.offsets[first] <= kChunkTokens)) {
      const qla_length_config* config = config_of(batch, end);
      tokens.resize(tokens.size() + static_cast<size_t>(layers) + 1);
      plan_lengths(config, layers, static_cast<int>(batch.offsets[end + 1] - batch.offsets[end]),
                   tokens.data() + (tokens.size() - static_cast<size_t>(layers) - 1));
      const bool package_default = !config || config->keep_cls < 0;
      keep_cls.push_back(package_default ? package_->task.keep_cls : config->keep_cls != 0);
      ++end;
    }
    const int64_t t = batch.offsets[first];
    Chunk chunk{};
    chunk.ids = batch.input_ids + t;
    chunk.types = batch.token_type_ids ? batch.token_type_ids + t : nullptr;
    chunk.tokens = tokens.data();
    chunk.keep_cls = keep_cls.data();
    chunk.num_sequences = static_cast<int>(end - first);
    chunk.out = shifted(outputs, *package_, first, t);
    chunk.total_tokens = total;
    chunk.total_sequences = batch.num_sequences;
    encoder_.run(lease.team(), lease.workspace(), chunk);
    first = end;
  }
}

}  // namespace qla
