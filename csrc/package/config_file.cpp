#include "package/config_file.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "package/package_files.h"
#include "package/strict_json.h"

namespace qla {
namespace {

constexpr int kMaxLayers = 64, kMaxHidden = 4096, kMaxIntermediate = 16384;
constexpr int kMaxPositions = 4096, kMaxVocab = 1 << 24, kMaxTypes = 64, kMaxLabels = 1 << 16;
constexpr int kMinLength = 8;  // tokens a model must be able to take

int read_int(const JsonEntry& entry, int lowest, int highest) {
  return static_cast<int>(entry.integer(lowest, highest));
}

int read_multiple_of_64(const JsonEntry& entry, int highest) {
  const int value = read_int(entry, 64, highest);
  if (value % 64 != 0) entry.bad("a multiple of 64");
  return value;
}

// A double that stays positive and finite as the float the kernels use.
float read_positive_float(const JsonEntry& entry) {
  const auto value = static_cast<float>(entry.number());
  if (!std::isnormal(value) || value < 0.0f || value > kLargestValue) {
    entry.bad("a positive, normal 32-bit float of at most 10000");
  }
  return value;
}

EncoderSpec read_encoder(const JsonEntry& entry) {
  entry.check_keys(
      {"norm", "activation", "positions", "position_offset", "layers", "hidden", "heads",
       "intermediate", "vocab_size", "max_positions", "type_vocab_size", "norm_eps"},
      {"word_embeddings"});
  EncoderSpec spec;
  spec.norm = static_cast<NormPlacement>(entry["norm"].one_of({"post"}));
  entry["activation"].one_of({"gelu_erf"});
  entry["positions"].one_of({"absolute"});
  spec.layers = read_int(entry["layers"], 1, kMaxLayers);
  spec.hidden = read_multiple_of_64(entry["hidden"], kMaxHidden);
  spec.heads = read_int(entry["heads"], 1, spec.hidden);
  spec.head_dim = spec.hidden / spec.heads;
  if (spec.hidden % spec.heads != 0 || (spec.head_dim != 32 && spec.head_dim != 64)) {
    entry["heads"].bad("hidden / 32 or hidden / 64 (hidden is " + std::to_string(spec.hidden) +
                       ")");
  }
  spec.intermediate = read_multiple_of_64(entry["intermediate"], kMaxIntermediate);
  spec.vocab_size = read_int(entry["vocab_size"], 1, kMaxVocab);
  spec.max_positions = read_int(entry["max_positions"], kMinLength, kMaxPositions);
  spec.position_offset = read_int(entry["position_offset"], 0, kMaxPositions);
  spec.type_vocab_size = read_int(entry["type_vocab_size"], 1, kMaxTypes);
  spec.norm_eps = read_positive_float(entry["norm_eps"]);
  if (spec.norm_eps > 0.1f) entry["norm_eps"].bad("at most 0.1");
  if (entry.has("word_embeddings")) {
    const int how = entry["word_embeddings"].one_of({"s8", "ternary"});
    spec.word_embeddings = static_cast<WordEmbeddings>(how);
  }
  return spec;
}

// The shape, the format and how activations are quantized; the rest comes from the tensors.
void read_linear_type(const JsonEntry& entry, int k, int n, Linear& linear) {
  linear.k = k;
  linear.n = n;
  linear.format = static_cast<WeightFormat>(entry["type"].one_of(kWeightFormatNames));
  linear.static_activation = entry["activation"].one_of({"per_token", "static"}) == 1;
  if (!linear.static_activation) return entry.check_keys({"type", "activation"});
  entry.check_keys({"type", "activation", "scale", "zero_point"});
  linear.input_scale = read_positive_float(entry["scale"]);
  linear.input_zero_point = read_int(entry["zero_point"], 0, 255);
}

std::vector<Layer> read_layer_types(const JsonEntry& entry, const EncoderSpec& encoder) {
  const int count = encoder.layers, hidden = encoder.hidden, wide = encoder.intermediate;
  const auto items = entry.items();
  if (items.size() != static_cast<size_t>(count)) {
    entry.bad("an array with one entry per layer (" + std::to_string(count) + ", not " +
              std::to_string(items.size()) + ")");
  }
  std::vector<Layer> layers(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].check_keys({"qkv", "output", "ffn_in", "ffn_out"});
    read_linear_type(items[i]["qkv"], hidden, 3 * hidden, layers[i].qkv);
    read_linear_type(items[i]["output"], hidden, hidden, layers[i].output);
    read_linear_type(items[i]["ffn_in"], hidden, wide, layers[i].ffn_in);
    read_linear_type(items[i]["ffn_out"], wide, hidden, layers[i].ffn_out);
  }
  return layers;
}

int read_labels(const JsonEntry& entry) {
  const size_t count = entry.size();  // asked first: items() of a hostile array takes much memory
  if (count < 1 || count > static_cast<size_t>(kMaxLabels)) {
    entry.bad("an array of 1 to " + std::to_string(kMaxLabels) + " names");
  }
  const auto items = entry.items();
  for (const JsonEntry& item : items) item.text();
  return static_cast<int>(items.size());
}

void read_span_qa(const JsonEntry& entry, int max_length) {
  entry.check_keys({"kind", "max_length", "doc_stride", "max_answer_tokens", "keep_cls"},
                   {"no_answer"});
  if (entry.has("no_answer")) entry["no_answer"].boolean();
  read_int(entry["doc_stride"], 1, max_length - 1);
  read_int(entry["max_answer_tokens"], 1, max_length);
}

// What makes a cross-encoder's score of its logit. The engine gives logits; its callers apply it.
void check_activation(const JsonEntry& entry) {
  if (!entry.has("activation")) return;
  entry["activation"].one_of({"identity", "sigmoid", "tanh", "relu", "relu6", "leaky_relu", "elu",
                              "gelu", "silu", "softplus", "softsign", "log_sigmoid", "hard_sigmoid",
                              "hard_tanh"});
}

// How vectors are compared and cut by the engine's callers; the engine gives whole ones.
void check_vector_use(const JsonEntry& entry, int hidden) {
  if (entry.has("similarity")) {
    entry["similarity"].one_of({"cosine", "dot", "euclidean", "manhattan"});
  }
  if (entry.has("truncate_dim")) read_int(entry["truncate_dim"], 1, hidden);
  if (!entry.has("matryoshka_dims")) return;
  const JsonEntry widths = entry["matryoshka_dims"];
  const size_t count = widths.size();
  if (count < 1 || count > static_cast<size_t>(hidden)) {
    widths.bad("an array of 1 to " + std::to_string(hidden) + " widths");
  }
  for (const JsonEntry& item : widths.items()) read_int(item, 1, hidden);
}

// The texts that callers put before inputs, by name, and the name of the usual one.
void check_prompts(const JsonEntry& config) {
  std::set<std::string> names;
  if (config.has("prompts")) {
    for (const auto& [name, prompt] : config["prompts"].members()) {
      prompt.text();
      names.insert(name);
    }
  }
  if (!config.has("default_prompt")) return;
  const JsonEntry chosen = config["default_prompt"];
  if (names.count(chosen.text()) == 0) chosen.bad("the name of a prompt");
}

TaskSpec read_task(const JsonEntry& entry, const EncoderSpec& encoder) {
  TaskSpec task;
  task.kind = static_cast<qla_task>(entry["kind"].one_of(
      {"span-qa", "sequence-classification", "token-classification", "embedding"}));
  task.keep_cls = entry["keep_cls"].boolean();
  task.max_length = read_int(entry["max_length"], kMinLength, encoder.max_positions);
  switch (task.kind) {
    case QLA_TASK_SPAN_QA:
      read_span_qa(entry, task.max_length);
      task.outputs = 2;
      break;
    case QLA_TASK_SEQUENCE_CLASSIFICATION:
      entry.check_keys({"kind", "max_length", "keep_cls", "pooler", "labels", "problem"},
                       {"activation"});
      check_activation(entry);
      task.has_pooler = entry["pooler"].one_of({"none", "dense_tanh"}) == 1;
      task.outputs = read_labels(entry["labels"]);
      if (entry["problem"].one_of({"single_label", "multi_label", "regression"}) == 0 &&
          task.outputs < 2) {
        entry["problem"].bad("multi_label or regression where there is one label");
      }
      break;
    case QLA_TASK_TOKEN_CLASSIFICATION:
      entry.check_keys({"kind", "max_length", "keep_cls", "labels"});
      task.outputs = read_labels(entry["labels"]);
      break;
    case QLA_TASK_EMBEDDING:
      entry.check_keys({"kind", "max_length", "keep_cls", "pooling", "normalize"},
                       {"similarity", "truncate_dim", "matryoshka_dims"});
      check_vector_use(entry, encoder.hidden);
      task.mean_pooling = entry["pooling"].one_of({"mean", "cls"}) == 0;
      task.normalize = entry["normalize"].boolean();
      task.outputs = encoder.hidden;
      break;
  }
  return task;
}

// How texts become tokens, where tokenizer.json cannot say it. The callers that tokenize read it.
void check_text_rules(const JsonEntry& entry) {
  entry.check_keys({}, {"truncation_side", "token_types", "split_special_tokens"});
  if (entry.has("truncation_side")) entry["truncation_side"].one_of({"right", "left"});
  for (const char* key : {"token_types", "split_special_tokens"}) {
    if (entry.has(key)) entry[key].boolean();
  }
}

}  // namespace

ConfigFile read_config_file(std::string_view text) {
  const nlohmann::json root = parse_json(text, kConfigFile, kMaxConfigSize);
  const JsonEntry config(root, kConfigFile);
  config.check_version();
  config.check_keys({"format_version", "name", "encoder", "linears", "task"},
                    {"text", "prompts", "default_prompt"});
  check_prompts(config);
  ConfigFile file;
  file.name = config["name"].text();
  file.encoder = read_encoder(config["encoder"]);
  file.layers = read_layer_types(config["linears"], file.encoder);
  file.task = read_task(config["task"], file.encoder);
  if (config.has("text")) check_text_rules(config["text"]);
  return file;
}

}  // namespace qla
