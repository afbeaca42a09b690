// The length configs that a package names, and the best of them that runs in time.
//
//   latency_budget PACKAGE MILLISECONDS [THREADS]
//
// Token ids are made up, as in main.cpp.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "qla/qla.hpp"

namespace {

void print(const qla::NamedConfig& config) {
  std::printf("%s: %lld MACs, %.17g of full", config.name.c_str(),
              static_cast<long long>(config.macs), config.macs_share);
  if (!config.metric.empty()) {
    std::printf(", %s %.17g on %s", config.metric.c_str(), config.accuracy, config.data.c_str());
  }
  std::printf("\n");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s PACKAGE MILLISECONDS [THREADS]\n", argv[0]);
    return 2;
  }
  try {
    qla::Options options;
    if (argc > 3) options.num_threads = std::atoi(argv[3]);
    qla::Engine engine(argv[1], options);
    for (const qla::NamedConfig& config : engine.configs()) print(config);

    const qla_model_info model = engine.info();
    qla::Batch batch;
    std::vector<std::int32_t> ids;
    for (int i = 0; i < model.max_positions; ++i) ids.push_back((5 + 31 * i) % model.vocab_size);
    batch.add(ids);

    engine.fit_costs();  // once, when the program starts
    for (int call = 0; call < 3; ++call) {
      const qla::BudgetedOutput out = engine.run(batch, qla::LatencyBudget{std::atof(argv[2])});
      std::printf("ran %s: expected %.2f ms, took %.2f ms, %s the budget\n",
                  out.config.name.c_str(), out.expected_ms, out.took_ms,
                  out.budget_met ? "within" : "over");
    }
    const qla::Output full = engine.run(batch, engine.config("full"));
    std::printf("full costs %lld MACs here\n", static_cast<long long>(full.macs[0]));
  } catch (const qla::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
