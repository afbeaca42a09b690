#include "cost_model.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <thread>

#include "error.h"
#include "lengths.h"

namespace qla {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kFitSeconds = 0.6;  // no new round of measured calls begins later than this
constexpr int kMaxRounds = 9;
constexpr auto kRest =
    std::chrono::microseconds(500);  // before each: budgets speak of an idle engine
constexpr double kMinMargin = 0.10, kMaxMargin = 0.5;
constexpr double kPaceShare = 0.1;   // of the way to what the latest call says
constexpr double kLeastPace = 1e-3;  // a clock that stands still must not end in a division by zero
constexpr double kPaceLow = 0.5, kPaceHigh = 2.0;  // what one call may say against the pace so far

// A call to be measured, over made-up ids.
struct Shape {
  std::vector<double> values;  // ratios
  std::vector<int64_t> lengths;
};

// Calls that tell the prices apart: short and long, one and many sequences, dropping and not.
std::vector<Shape> shapes(int longest, int layers) {
  const std::vector<double> full(static_cast<size_t>(layers), 1.0);
  std::vector<double> steep;
  for (int i = 1; i <= layers; ++i) steep.push_back(1.0 - 0.9 * i / layers);
  const int64_t few = std::min(8, longest), eighth = std::max(2, longest / 8),
                quarter = std::max(2, longest / 4), half = std::max(2, longest / 2), all = longest;
  return {{full, {few}},
          {full, std::vector<int64_t>(16, few)},
          {full, {eighth}},
          {full, std::vector<int64_t>(3, quarter)},
          {steep, std::vector<int64_t>(3, quarter)},
          {full, {half}},
          {steep, {half}},
          {steep, {all}},
          {full, {all}}};
}

qla_length_config ratios(const std::vector<double>& values) {
  return {QLA_LENGTH_RATIO, -1, values.data(), static_cast<int32_t>(values.size())};
}

class MeasuredCall {
 public:
  MeasuredCall(const MeasuredCall&) = delete;  // config_ points into shape_
  MeasuredCall(Engine& engine, Shape shape)
      : engine_(engine), shape_(std::move(shape)), config_(ratios(shape_.values)) {
    offsets_.push_back(0);
    for (const int64_t length : shape_.lengths) offsets_.push_back(offsets_.back() + length);
    const int64_t vocabulary = engine.package().encoder.vocab_size;
    for (int64_t i = 0; i < offsets_.back(); ++i) {
      ids_.push_back(static_cast<int32_t>(i * 7919 % vocabulary));
    }
    const TaskSpec& task = engine.package().task;
    logits_.resize((task.logits_per_token() ? ids_.size() : shape_.lengths.size()) *
                   static_cast<size_t>(task.outputs));
  }

  double seconds() {
    qla_batch batch{};
    batch.struct_size = sizeof batch;
    batch.input_ids = ids_.data();
    batch.offsets = offsets_.data();
    batch.num_sequences = static_cast<int64_t>(shape_.lengths.size());
    batch.lengths = &config_;
    batch.num_lengths = 1;
    qla_outputs outputs{};
    outputs.struct_size = sizeof outputs;
    outputs.logits = logits_.data();
    std::this_thread::sleep_for(kRest);
    const auto began = Clock::now();
    engine_.run(batch, outputs);
    return std::chrono::duration<double>(Clock::now() - began).count();
  }

  Counts counts() const { return count_call(engine_.package().encoder, config_, shape_.lengths); }

 private:
  Engine& engine_;
  const Shape shape_;
  const qla_length_config config_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

std::vector<double> median_seconds(std::deque<MeasuredCall>& calls) {
  const auto began = Clock::now();
  calls.back().seconds();  // so that its memory is there
  std::vector<std::vector<double>> times(calls.size());
  for (int round = 0; round < kMaxRounds; ++round) {
    if (round > 0 && Clock::now() - began > std::chrono::duration<double>(kFitSeconds)) break;
    for (size_t i = 0; i < calls.size(); ++i) times[i].push_back(calls[i].seconds());
  }
  std::vector<double> medians;
  for (std::vector<double>& of_call : times) {
    const auto middle = of_call.begin() + static_cast<std::ptrdiff_t>(of_call.size() / 2);
    std::nth_element(of_call.begin(), middle, of_call.end());
    medians.push_back(std::max(*middle, 1e-9));
  }
  return medians;
}

// Solves the normal equations of the chosen columns; false where they depend on each other.
bool least_squares(const std::vector<Counts>& a, unsigned chosen, Counts* x) {
  int columns[kCounts], n = 0;
  for (int i = 0; i < kCounts; ++i) {
    if (chosen >> i & 1) columns[n++] = i;
  }
  long double m[kCounts][kCounts + 1] = {};
  for (const Counts& row : a) {
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j)
        m[i][j] += static_cast<long double>(row[columns[i]]) * row[columns[j]];
      m[i][n] += row[columns[i]];
    }
  }
  for (int i = 0; i < n; ++i) {
    int pivot = i;
    for (int r = i + 1; r < n; ++r) {
      if (std::fabs(m[r][i]) > std::fabs(m[pivot][i])) pivot = r;
    }
    if (!(std::fabs(m[pivot][i]) > 1e-15L)) return false;
    std::swap(m[i], m[pivot]);
    for (int r = 0; r < n; ++r) {
      if (r == i) continue;
      const long double factor = m[r][i] / m[i][i];
      for (int j = i; j <= n; ++j) m[r][j] -= factor * m[i][j];
    }
  }
  *x = {};
  for (int i = 0; i < n; ++i) (*x)[columns[i]] = static_cast<double>(m[i][n] / m[i][i]);
  return true;
}

double squared_error(const std::vector<Counts>& a, const Counts& x) {
  double sum = 0.0;
  for (const Counts& row : a) {
    double error = -1.0;
    for (int i = 0; i < kCounts; ++i) error += row[i] * x[i];
    sum += error * error;
  }
  return sum;
}

}  // namespace

Counts count_call(const EncoderSpec& spec, const qla_length_config& config,
                  const std::vector<int64_t>& lengths) {
  const double d = spec.hidden, f = spec.intermediate;
  Counts counts{1.0, static_cast<double>(lengths.size()), 0.0, 0.0, 0.0};
  std::vector<int32_t> tokens(static_cast<size_t>(spec.layers) + 1);
  for (const int64_t length : lengths) {
    count_tokens(&config, spec.layers, static_cast<int>(length), tokens.data());
    counts[2] += tokens[0];
    for (int i = 0; i < spec.layers; ++i) {
      const double before = tokens[i], after = tokens[i + 1];
      counts[2] += before + after;
      // The engine projects attention's output for kept rows only.
      counts[3] += 3 * before * d * d + after * d * (d + 2 * f);
      counts[4] += 2 * before * before * d;
    }
  }
  return counts;
}

// Where the optimum is not zero it is a plain least-squares solution of those columns alone; with
// five columns all subsets can be tried.
Counts non_negative_least_squares(const std::vector<Counts>& a) {
  Counts scale{};
  for (const Counts& row : a) {
    for (int i = 0; i < kCounts; ++i) scale[i] = std::max({scale[i], std::fabs(row[i]), 1e-300});
  }
  std::vector<Counts> scaled = a;  // counts differ by nine orders of magnitude
  for (Counts& row : scaled) {
    for (int i = 0; i < kCounts; ++i) row[i] /= scale[i];
  }
  Counts best{};
  double least = static_cast<double>(a.size());
  for (unsigned chosen = 1; chosen < 1u << kCounts; ++chosen) {
    Counts x;
    if (!least_squares(scaled, chosen, &x)) continue;
    if (std::any_of(x.begin(), x.end(), [](double price) { return !(price >= 0.0); })) continue;
    const double error = squared_error(scaled, x);
    if (error < least) {
      best = x;
      least = error;
    }
  }
  for (int i = 0; i < kCounts; ++i) best[i] /= scale[i];
  return best;
}

double CostModel::seconds(const Counts& counts) const {
  double sum = 0.0;
  for (int i = 0; i < kCounts; ++i) sum += prices[i] * counts[i];
  return sum;
}

Budgets::~Budgets() { delete model_.load(); }

void Budgets::fit() {
  std::deque<MeasuredCall> calls;
  for (Shape& shape : shapes(engine_.package().task.max_length, engine_.package().encoder.layers)) {
    calls.emplace_back(engine_, std::move(shape));
  }
  const std::vector<double> took = median_seconds(calls);

  std::vector<Counts> relative;  // divided by the times: short calls count as much as long ones
  for (size_t i = 0; i < calls.size(); ++i) {
    relative.push_back(calls[i].counts());
    for (double& count : relative.back()) count /= took[i];
  }
  auto model = std::make_unique<CostModel>();
  model->prices = non_negative_least_squares(relative);
  model->margin = kMinMargin;
  for (const Counts& counts : relative) {
    const double short_by = 1.0 / std::max(model->seconds(counts), 1e-12) - 1.0;
    model->margin = std::min(kMaxMargin, std::max(model->margin, short_by));
  }
  CostModel* published = model.get();
  const CostModel* old = model_.load();
  do {
    published->previous.release();
    published->previous.reset(old);
  } while (!model_.compare_exchange_weak(old, published));
  model.release();
  pace_ = 1.0;
}

Budgets::Choice Budgets::choose(const std::vector<int64_t>& tokens, double seconds) const {
  const CostModel* model = model_;
  if (!model) {
    fail(QLA_INVALID_INPUT,
         "a latency budget needs to know what calls take here; call qla_fit_costs once before");
  }
  const double pace = pace_;
  const NamedLength* fastest = nullptr;
  double shortest = 0.0;
  for (const NamedLength* length : lengths_.best_first()) {
    const double expected =
        model->seconds(count_call(engine_.package().encoder, length->plain(), tokens));
    if (pace * (1.0 + model->margin) * expected <= seconds) return {length, expected};
    const bool faster =
        !fastest || expected < shortest || (expected == shortest && length->macs < fastest->macs);
    if (faster) {
      fastest = length;
      shortest = expected;
    }
  }
  return {fastest, shortest};
}

// Two threads may overwrite each other's: a lost update is forgotten.
void Budgets::saw(double expected, double took) {
  const double pace = pace_;
  const double change = std::clamp(took / (expected * pace), kPaceLow, kPaceHigh);
  pace_ = std::max(kLeastPace, pace * (1.0 + kPaceShare * (change - 1.0)));
}

}  // namespace qla
