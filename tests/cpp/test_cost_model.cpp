// The cost model's arithmetic. What it measures and chooses is in tests/test_cpp_lengths.py.
#include <gtest/gtest.h>

#include <random>

#include "cost_model.h"
#include "lengths.h"

namespace qla {
namespace {

EncoderSpec two_layers() {
  EncoderSpec spec;
  spec.layers = 2;
  spec.hidden = 64;
  spec.intermediate = 128;
  return spec;
}

TEST(CostModel, CountsAreThoseOfCountMacs) {
  const EncoderSpec spec = two_layers();
  TaskSpec task;
  task.kind = QLA_TASK_EMBEDDING;
  task.mean_pooling = false;
  const double values[] = {0.5, 0.25};
  const qla_length_config config{QLA_LENGTH_RATIO, -1, values, 2};
  const std::vector<int64_t> lengths{3, 40, 40};
  int64_t macs = 0;
  double saved = 0.0;  // dropped rows are not projected, which count_macs, like the papers, ignores
  for (const int64_t length : lengths) {
    int32_t tokens[3];
    count_tokens(&config, 2, static_cast<int>(length), tokens);
    macs += count_macs(spec, task, tokens);
    saved += 64.0 * 64.0 * (tokens[0] - tokens[2]);
  }
  const Counts counts = count_call(spec, config, lengths);
  EXPECT_EQ(counts[0], 1.0);
  EXPECT_EQ(counts[1], 3.0);
  EXPECT_EQ(64 * counts[2] + counts[3] + counts[4], static_cast<double>(macs) - saved);
}

TEST(CostModel, FitsFindThePrices) {
  const Counts prices{3e-4, 2e-5, 1e-6, 2e-12, 8e-12};
  const EncoderSpec spec = two_layers();
  const double full[] = {1.0, 1.0}, steep[] = {0.5, 0.1};
  std::vector<Counts> rows;
  for (const double* values : {full, steep}) {
    const qla_length_config config{QLA_LENGTH_RATIO, -1, values, 2};
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>{8}, std::vector<int64_t>(16, 8), std::vector<int64_t>{48, 96},
          std::vector<int64_t>{384}}) {
      Counts row = count_call(spec, config, lengths);
      double seconds = 0.0;
      for (int i = 0; i < kCounts; ++i) seconds += prices[i] * row[i];
      for (double& count : row) count /= seconds;
      rows.push_back(row);
    }
  }
  const Counts found = non_negative_least_squares(rows);
  for (int i = 0; i < kCounts; ++i) EXPECT_NEAR(found[i] / prices[i], 1.0, 1e-6) << i;
}

// Karush, Kuhn and Tucker: no entry is negative, none at zero should grow, the others are
// stationary.
TEST(CostModel, LeastSquaresAreOptimal) {
  std::mt19937 random(0);
  std::normal_distribution<double> normal;
  for (int round = 0; round < 20; ++round) {
    std::vector<Counts> a(9);
    for (Counts& row : a) {
      for (double& value : row) value = normal(random);
    }
    const Counts x = non_negative_least_squares(a);
    Counts gradient{};
    for (const Counts& row : a) {
      double error = -1.0;
      for (int i = 0; i < kCounts; ++i) error += row[i] * x[i];
      for (int i = 0; i < kCounts; ++i) gradient[i] += row[i] * error;
    }
    for (int i = 0; i < kCounts; ++i) {
      EXPECT_GE(x[i], 0.0);
      EXPECT_GT(gradient[i], -1e-9);
      if (x[i] > 0.0) EXPECT_LT(gradient[i], 1e-9);
    }
  }
}

TEST(CostModel, NothingToGainIsZero) {
  EXPECT_EQ(non_negative_least_squares({{-1, -1, -1, -1, -1}, {-2, -1, -1, -1, -1}}), Counts{});
}

}  // namespace
}  // namespace qla
