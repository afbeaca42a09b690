// Engine::explain(): which kernel runs, why, on how many threads, and where that number came from.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "engine.h"

namespace qla {
namespace {

__attribute__((format(printf, 2, 3))) void add(std::string* text, const char* format, ...) {
  char line[512];
  va_list args;
  va_start(args, format);
  vsnprintf(line, sizeof line, format, args);
  va_end(args);
  *text += line;
}

const char* task_name(qla_task task) {
  switch (task) {
    case QLA_TASK_SPAN_QA:
      return "span-qa";
    case QLA_TASK_SEQUENCE_CLASSIFICATION:
      return "sequence-classification";
    case QLA_TASK_TOKEN_CLASSIFICATION:
      return "token-classification";
    case QLA_TASK_EMBEDDING:
      return "embedding";
  }
  return "unknown";
}

void add_isas(std::string* text, Isa chosen, const std::string& source) {
  add(text, "instruction sets\n");
  for (Isa isa : kAllIsas) {
    add(text, "  %-11s %s%s\n", isa_name(isa), isa_status(isa).reason,
        isa == chosen ? "   <- chosen" : "");
  }
  add(text, "  chosen because: %s\n", source.c_str());
  if (chosen == Isa::kRef || chosen == Isa::kAvx2) {
    add(text, "  no VNNI or AMX in use: INT8 gains less over FP32 here\n");
  }
}

// Whether some linear layer is of the format whose GEMM this is; other operations always run.
bool runs(const Package& package, const char* operation) {
  for (WeightFormat format : kAllWeightFormats) {
    if (strcmp(operation, weight_format(format).gemm) != 0) continue;
    for (const Layer& layer : package.weights.layers) {
      for (const Linear* linear : layer.linears()) {
        if (linear->format == format) return true;
      }
    }
    return false;
  }
  return true;
}

void add_kernels(std::string* text, Isa isa, const Package& package) {
  KernelInfo lines[16];
  const int count = selected_kernels(isa, lines, 16);
  add(text, "kernels\n");
  for (int i = 0; i < count; ++i) {
    if (!runs(package, lines[i].operation)) continue;
    add(text, "  %-14s %-22s %s\n", lines[i].operation, lines[i].name, lines[i].instructions);
  }
}

void add_linears(std::string* text, const Package& package) {
  int fixed = 0, total = 0, of_format[kWeightFormats] = {};
  for (const Layer& layer : package.weights.layers) {
    for (const Linear* linear : layer.linears()) {
      fixed += linear->static_activation;
      ++of_format[static_cast<int>(linear->format)];
      ++total;
    }
  }
  // "w8a8", or "8 w8a8 + 16 w2a8"
  std::string formats;
  for (int i = 0; i < kWeightFormats; ++i) {
    if (of_format[i] == 0) continue;
    if (!formats.empty()) formats += " + ";
    if (of_format[i] < total) formats += std::to_string(of_format[i]) + " ";
    formats += kWeightFormatNames.begin()[i];
  }
  add(text, "  linear layers %d, %s: %d with per-token activation scales, %d static\n", total,
      formats.c_str(), total - fixed, fixed);
  if (package.encoder.word_embeddings == WordEmbeddings::kTernary) {
    *text += "  word embeddings ternary, two bits a value\n";
  }
}

}  // namespace

std::string Engine::explain() const {
  const Package& p = *package_;
  const EncoderSpec& e = p.encoder;
  std::string text;
  add(&text, "qla_runtime %s\n", qla_version());
  text += "package\n  " + p.name + " from " + p.source + "\n";
  add(&text, "  task %s, %d layers, hidden %d, %d heads of %d, feed-forward %d, vocabulary %d\n",
      task_name(p.task.kind), e.layers, e.hidden, e.heads, e.head_dim, e.intermediate,
      e.vocab_size);
  add(&text, "  up to %d tokens a sequence, %.1f MB of tensors%s\n", e.max_positions,
      static_cast<double>(p.weight_bytes) / 1e6, p.source == "memory" ? "" : ", mapped and shared");
  text += "  weights: " + p.weight_place + "\n";
  add_linears(&text, p);
  add_isas(&text, isa_, isa_source_);
  add_kernels(&text, isa_, p);
  add(&text, "threads\n  %d per call (%s), %d stream%s, no pinning, workers sleep after %d us\n",
      num_threads(), threads_source_.c_str(), streams(), streams() == 1 ? "" : "s",
      kSpinMicroseconds);
  return text;
}

}  // namespace qla
