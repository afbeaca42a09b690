#include "engine.h"

#include <algorithm>
#include <array>

#include "batch_check.h"
#include "error.h"
#include "lengths.h"
#include "package/strict_json.h"
#include "stop.h"

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
    fail(QLA_INVALID_INPUT,
         "isa %s is unknown; use one of ref, avx2, avxvnni, avx512vnni, amx, or none for the best "
         "available",
         quote(wanted).c_str());
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

const qla_length_config* config_of(const qla_batch& batch, int64_t s) {
  if (!batch.lengths) return nullptr;
  return &batch.lengths[batch.length_index ? batch.length_index[s] : 0];
}

// Result pointers moved on to the chunk that begins with sequence s at token t.
qla_outputs shifted(const qla_outputs& out, const Package& package, int64_t s, int64_t t) {
  const int64_t hidden = package.encoder.hidden, outputs = package.task.outputs;
  qla_outputs moved = out;
  if (moved.last_hidden) moved.last_hidden += t * hidden;
  if (moved.logits) moved.logits += (package.task.logits_per_token() ? t : s) * outputs;
  if (moved.kept_counts) moved.kept_counts += s;
  if (moved.kept) moved.kept += t;
  if (moved.hidden_states) moved.hidden_states += t * hidden;
  if (moved.scores) moved.scores += t;
  if (moved.macs) moved.macs += s;
  return moved;
}

// To as many entries as the caller has room for.
void report_stages(const std::array<double, QLA_NUM_STAGES>& seconds, const qla_outputs& outputs) {
  constexpr int64_t kStagesWithoutACount = 8;  // callers that do not know num_stages have these
  const int64_t room = outputs.num_stages > 0 ? outputs.num_stages : kStagesWithoutACount;
  const int64_t known = std::min<int64_t>(room, QLA_NUM_STAGES);
  std::copy_n(seconds.begin(), known, outputs.stage_seconds);
  std::fill(outputs.stage_seconds + known, outputs.stage_seconds + room, 0.0);
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
  check_outputs(outputs);
  const int layers = spec.layers;
  const int64_t total = batch.offsets[batch.num_sequences];
  const StopRequest stop(batch.stop, batch.stop_user);
  const TeamPool::Lease lease(pool_, stop);

  std::array<double, QLA_NUM_STAGES> stage_seconds{};
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
      count_tokens(config, layers, static_cast<int>(batch.offsets[end + 1] - batch.offsets[end]),
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
    chunk.out.stage_seconds = outputs.stage_seconds ? stage_seconds.data() : nullptr;
    chunk.total_tokens = total;
    chunk.total_sequences = batch.num_sequences;
    chunk.stop = &stop;
    encoder_.run(lease.team(), lease.workspace(), chunk);
    first = end;
  }
  if (outputs.stage_seconds) report_stages(stage_seconds, outputs);
}

}  // namespace qla
