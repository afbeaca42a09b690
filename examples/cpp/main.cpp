// Three sequences of different lengths in one call, each layer keeping fewer tokens than the last.
//
//   ragged_batch PACKAGE [THREADS]
//
// Token ids come from the package's tokenizer.json in real life (any Hugging Face tokenizers
// binding reads it); here they are made up, so that the program needs nothing but libqla.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "qla/qla.hpp"

namespace {

std::vector<std::int32_t> made_up_ids(int sequence, int length, int vocab_size) {
  std::vector<std::int32_t> ids;
  for (int i = 0; i < length; ++i) ids.push_back((5 + 17 * sequence + 31 * i) % vocab_size);
  return ids;
}

// The first layer keeps nearly everything, the last one a quarter.
qla::LengthConfig falling(int layers) {
  qla::LengthConfig config;
  for (int i = 1; i <= layers; ++i) config.values.push_back(1.0 - 0.75 * i / layers);
  return config;
}

void print(const qla_model_info& model, const qla::Batch& batch, const qla::Output& out) {
  for (std::size_t s = 0; s < batch.sequences(); ++s) {
    const std::int64_t first = batch.offsets()[s], count = batch.offsets()[s + 1] - first;
    std::printf("sequence %zu: %lld tokens, %lld MACs, kept", s, static_cast<long long>(count),
                static_cast<long long>(out.macs[s]));
    for (int layer = 0; layer < model.layers; ++layer) {
      std::printf(" %d", out.kept_counts[layer * batch.sequences() + s]);
    }
    const float* logits = &out.logits[(model.logits_per_token ? first : s) * model.outputs];
    std::printf("\n  %slogits", model.logits_per_token ? "first token's " : "");
    for (int i = 0; i < model.outputs && i < 4; ++i) std::printf(" %.9g", logits[i]);
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s PACKAGE [THREADS]\n", argv[0]);
    return 2;
  }
  try {
    qla::Options options;
    if (argc > 2) options.num_threads = std::atoi(argv[2]);
    qla::Engine engine(argv[1], options);
    const qla_model_info model = engine.info();
    qla::Batch batch;
    for (int s = 0; s < 3; ++s) {
      batch.add(made_up_ids(s, model.max_positions >> s, model.vocab_size));
    }
    print(model, batch, engine.run(batch, falling(model.layers)));
  } catch (const qla::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
