// What calls take on this machine, for latency budgets: the model of
// qla_runtime/lengths/cost_model.py, kept in memory alone.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine.h"
#include "named_lengths.h"

namespace qla {

// Calls, sequences, rows, linear MACs, attention MACs.
constexpr int kCounts = 5;
using Counts = std::array<double, kCounts>;

// Of a call over sequences of these lengths under one config.
Counts count_call(const EncoderSpec& spec, const qla_length_config& config,
                  const std::vector<int64_t>& lengths);

// The x without a negative entry that minimizes |a x - 1|, each row of `a` one measured call.
Counts non_negative_least_squares(const std::vector<Counts>& a);

struct CostModel {
  Counts prices{};                            // seconds per unit of each count
  double margin = 0.0;                        // share to add where a prediction must hold
  std::unique_ptr<const CostModel> previous;  // kept until the engine ends: others may read it

  double seconds(const Counts& counts) const;
};

// The fit of an engine and the machine's pace. Safe to use from several threads, without a lock:
// a child forked while another thread holds one would wait for ever.
class Budgets {
 public:
  Budgets(Engine& engine, const NamedLengths& lengths) : engine_(engine), lengths_(lengths) {}
  ~Budgets();

  // Measures some calls and begins anew with what they took.
  void fit();

  struct Choice {
    const NamedLength* length;
    double seconds;  // expected
  };

  // The first of the lengths' best_first() predicted, with the margin and at the present pace, to
  // run in `seconds`; else the fastest. Throws qla::Error(QLA_INVALID_INPUT) before the first fit.
  Choice choose(const std::vector<int64_t>& tokens, double seconds) const;

  // A chosen call took so long where `expected` seconds had been expected.
  void saw(double expected, double took);

  double pace() const { return pace_; }

 private:
  Engine& engine_;
  const NamedLengths& lengths_;
  std::atomic<const CostModel*> model_{nullptr};
  std::atomic<double> pace_{1.0};
};

}  // namespace qla
