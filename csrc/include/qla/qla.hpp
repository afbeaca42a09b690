// qla.hpp - qla.h for C++17: handles that free themselves, errors as exceptions, results in
// vectors. Header only: it uses nothing of the library but the C functions.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "qla/qla.h"

namespace qla {
// Inline, so that users write qla::Engine and the library's own names stay apart from these.
inline namespace v0 {

class Error : public std::runtime_error {
 public:
  Error(qla_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  qla_status status() const noexcept { return status_; }

 private:
  qla_status status_;
};

// Turns a status other than QLA_OK into an Error with the message that belongs to it.
inline void check(qla_status status) {
  if (status != QLA_OK) throw Error(status, qla_last_error());
}

struct Options {
  std::int32_t num_threads = 0;  // 0: as many as affinity, cgroup quota and OMP_NUM_THREADS allow
  std::int32_t streams = 1;
  std::string isa;      // empty: the best there is
  std::string weights;  // "mapped", "resident" or "auto"; empty: auto (see qla_options)
};

// How many tokens each layer keeps; see docs/architecture.md, "Length semantics".
struct LengthConfig {
  qla_length_rule rule = QLA_LENGTH_RATIO;
  std::vector<double> values;  // one per layer, not rising
  std::int32_t keep_cls = -1;  // -1: as the package says
};

// One of the package's own configs. Engine::run takes it where it takes a LengthConfig.
struct NamedConfig : LengthConfig {
  std::string name;
  bool in_frontier = false;  // not named by the package, but found worth having by its search
  std::int64_t macs = 0;     // of one sequence of the package's max_length tokens
  double macs_share = 1.0;   // of keeping every token
  std::string metric, data;  // what was measured with it, on which data; empty: nothing was
  double accuracy = 0.0;     // its value
};

// The best of the package's configs that is predicted to run in time.
struct LatencyBudget {
  double milliseconds;
};

// Token ids of several sequences, one behind the other.
class Batch {
 public:
  // Without token types, those of this sequence are 0.
  void add(const std::vector<std::int32_t>& ids, const std::vector<std::int32_t>& types = {}) {
    if (!types.empty() && types.size() != ids.size()) {
      throw Error(QLA_INVALID_INPUT, "a sequence has " + std::to_string(ids.size()) + " ids and " +
                                         std::to_string(types.size()) + " token types");
    }
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    types_.insert(types_.end(), types.begin(), types.end());
    types_.resize(ids_.size());
    offsets_.push_back(static_cast<std::int64_t>(ids_.size()));
  }

  std::size_t sequences() const noexcept { return offsets_.size() - 1; }
  std::size_t tokens() const noexcept { return ids_.size(); }
  const std::vector<std::int64_t>& offsets() const noexcept { return offsets_; }

  // A view for the C functions; this batch must outlive it.
  qla_batch view() const noexcept {
    qla_batch batch{};
    batch.struct_size = sizeof batch;
    batch.input_ids = ids_.data();
    batch.token_type_ids = types_.data();
    batch.offsets = offsets_.data();
    batch.num_sequences = static_cast<std::int64_t>(sequences());
    return batch;
  }

 private:
  std::vector<std::int32_t> ids_, types_;
  std::vector<std::int64_t> offsets_{0};
};

struct Output {
  std::vector<float> last_hidden;         // (tokens, hidden)
  std::vector<float> logits;              // (tokens or sequences, outputs): logits_per_token
  std::vector<std::int64_t> macs;         // (sequences)
  std::vector<std::int32_t> kept_counts;  // (layers, sequences)
};

// What a budget led to.
struct BudgetedOutput : Output {
  NamedConfig config;  // that ran
  double expected_ms = 0.0;
  double took_ms = 0.0;     // of Engine::run
  bool budget_met = false;  // whether that was within the budget
};

class Engine {
 public:
  explicit Engine(const std::string& folder, const Options& options = {}) {
    const qla_options plain = plain_options(options);
    qla_engine* engine = nullptr;
    check(qla_open(folder.c_str(), &plain, &engine));
    engine_.reset(engine);
  }

  // model.safetensors must be aligned to 64 bytes and outlive the engine; the rest is copied.
  explicit Engine(const std::vector<qla_file>& files, const Options& options = {}) {
    const qla_options plain = plain_options(options);
    qla_engine* engine = nullptr;
    check(qla_open_memory(files.data(), files.size(), &plain, &engine));
    engine_.reset(engine);
  }

  qla_model_info info() const {
    qla_model_info info{};
    info.struct_size = sizeof info;
    check(qla_get_info(engine_.get(), &info));
    return info;
  }

  std::string config() const { return text(QLA_TEXT_CONFIG); }
  std::string length_configs() const { return text(QLA_TEXT_LENGTH_CONFIGS); }
  std::string explain() const { return text(QLA_TEXT_EXPLAIN); }
  std::string tokenizer() const { return text(QLA_TEXT_TOKENIZER); }

  // Keeps every token. Several threads may call at once.
  Output run(const Batch& batch) { return run(batch.view(), batch); }

  // Every sequence under the same config.
  Output run(const Batch& batch, const LengthConfig& length) {
    return run(batch, {length}, std::vector<std::int32_t>(batch.sequences(), 0));
  }

  // Sequence i under lengths[index[i]].
  Output run(const Batch& batch, const std::vector<LengthConfig>& lengths,
             const std::vector<std::int32_t>& index) {
    if (index.size() != batch.sequences()) {
      throw Error(QLA_INVALID_INPUT, "the batch has " + std::to_string(batch.sequences()) +
                                         " sequences, the length index " +
                                         std::to_string(index.size()) + " entries");
    }
    std::vector<qla_length_config> plain;
    for (const LengthConfig& length : lengths) {
      plain.push_back({length.rule, length.keep_cls, length.values.data(),
                       static_cast<std::int32_t>(length.values.size())});
    }
    qla_batch view = batch.view();
    view.lengths = plain.data();
    view.num_lengths = static_cast<std::int32_t>(plain.size());
    view.length_index = index.data();
    return run(view, batch);
  }

  // Under the best config predicted to run in time. Call fit_costs() once before.
  BudgetedOutput run(const Batch& batch, LatencyBudget budget) {
    const auto began = std::chrono::steady_clock::now();
    qla_config_info info = empty_info();
    BudgetedOutput out;
    check(qla_choose_config(engine_.get(), batch.offsets().data(),
                            static_cast<std::int64_t>(batch.sequences()), budget.milliseconds,
                            &info, &out.expected_ms));
    out.config = named(info);
    const auto chosen = std::chrono::steady_clock::now();
    static_cast<Output&>(out) = run(batch, out.config);
    const auto ended = std::chrono::steady_clock::now();
    using Milliseconds = std::chrono::duration<double, std::milli>;
    check(qla_saw_call(engine_.get(), out.expected_ms, Milliseconds(ended - chosen).count()));
    out.took_ms = Milliseconds(ended - began).count();
    out.budget_met = out.took_ms <= budget.milliseconds;
    return out;
  }

  // Measures what calls take here, in about half a second for a model like MiniLM, best on a quiet
  // machine. Budgets follow the machine's pace from then on; calling it again begins anew.
  void fit_costs() { check(qla_fit_costs(engine_.get())); }

  // The package's configs: those it names, then its frontier.
  std::vector<NamedConfig> configs() const {
    std::int32_t count = 0;
    check(qla_config_count(engine_.get(), &count));
    std::vector<NamedConfig> configs;
    for (std::int32_t i = 0; i < count; ++i) {
      qla_config_info info = empty_info();
      check(qla_get_config(engine_.get(), i, &info));
      configs.push_back(named(info));
    }
    return configs;
  }

  // By name: "full", "balanced", "frontier-1". The error for another one lists the names.
  NamedConfig config(const std::string& name) const {
    qla_config_info info = empty_info();
    check(qla_find_config(engine_.get(), name.c_str(), &info));
    return named(info);
  }

  // The C function itself, for results that Output does not hold.
  void run(const qla_batch& batch, const qla_outputs& outputs) {
    check(qla_run(engine_.get(), &batch, &outputs));
  }

  qla_engine* get() const noexcept { return engine_.get(); }

 private:
  struct Free {
    void operator()(qla_engine* engine) const noexcept { qla_free(engine); }
  };

  static qla_options plain_options(const Options& options) {
    qla_options plain{};
    plain.struct_size = sizeof plain;
    plain.num_threads = options.num_threads;
    plain.streams = options.streams;
    plain.isa = options.isa.empty() ? nullptr : options.isa.c_str();
    plain.weights = options.weights.empty() ? nullptr : options.weights.c_str();
    return plain;
  }

  static qla_config_info empty_info() {
    qla_config_info info{};
    info.struct_size = sizeof info;
    return info;
  }

  static NamedConfig named(const qla_config_info& info) {
    NamedConfig config;
    config.rule = static_cast<qla_length_rule>(info.length.rule);
    config.values.assign(info.length.values, info.length.values + info.length.num_values);
    config.keep_cls = info.length.keep_cls;
    config.name = info.name;
    config.in_frontier = info.in_frontier != 0;
    config.macs = info.macs;
    config.macs_share = info.macs_share;
    if (info.metric) config.metric = info.metric;
    if (info.data) config.data = info.data;
    config.accuracy = info.accuracy;
    return config;
  }

  std::string text(qla_text which) const {
    std::size_t length = 0;
    check(qla_get_text(engine_.get(), which, nullptr, 0, &length));
    std::string text(length + 1, '\0');  // with room for the closing NUL
    check(qla_get_text(engine_.get(), which, &text[0], text.size(), &length));
    text.resize(length);
    return text;
  }

  Output run(const qla_batch& view, const Batch& batch) {
    const qla_model_info model = info();
    const auto size = [](std::int32_t n) { return static_cast<std::size_t>(n); };
    const std::size_t logit_rows = model.logits_per_token ? batch.tokens() : batch.sequences();
    Output out;
    out.last_hidden.resize(batch.tokens() * size(model.hidden));
    out.logits.resize(logit_rows * size(model.outputs));
    out.macs.resize(batch.sequences());
    out.kept_counts.resize(size(model.layers) * batch.sequences());

    qla_outputs plain{};
    plain.struct_size = sizeof plain;
    plain.last_hidden = out.last_hidden.data();
    plain.logits = out.logits.data();
    plain.macs = out.macs.data();
    plain.kept_counts = out.kept_counts.data();
    run(view, plain);
    return out;
  }

  std::unique_ptr<qla_engine, Free> engine_;
};

// An answer of span QA: tokens first..last of a window (its number in the whole batch).
struct Span {
  std::int32_t window, first, last;
  float score;
};

struct Answers {
  std::vector<Span> spans;  // best first
  float null_score;         // the probability that no window holds an answer
};

// The best answers of each question, by qla_top_spans; fills in search.struct_size.
inline std::vector<Answers> top_spans(qla_span_search search) {
  search.struct_size = sizeof search;
  const std::size_t questions = search.num_questions > 0 ? search.num_questions : 0;
  const std::size_t each = search.top_k > 0 ? search.top_k : 0;
  std::vector<std::int32_t> counts(questions), window(questions * each), first(questions * each),
      last(questions * each);
  std::vector<float> score(questions * each), null_score(questions);
  const qla_spans spans{sizeof(qla_spans), counts.data(), window.data(),    first.data(),
                        last.data(),       score.data(),  null_score.data()};
  check(qla_top_spans(&search, &spans));
  std::vector<Answers> answers(questions);
  for (std::size_t q = 0; q < questions; ++q) {
    answers[q].null_score = null_score[q];
    for (std::size_t i = q * each; i < q * each + static_cast<std::size_t>(counts[q]); ++i) {
      answers[q].spans.push_back({window[i], first[i], last[i], score[i]});
    }
  }
  return answers;
}

}  // namespace v0
}  // namespace qla
