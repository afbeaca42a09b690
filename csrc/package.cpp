#include "package.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "error.h"
#include "last_level_cache.h"
#include "package_files.h"
#include "safetensors.h"
#include "strict_json.h"

namespace qla {

struct Package::Mapping {
  FileBytes weights, tokenizer;
};

namespace {

constexpr int kMaxLayers = 64, kMaxHidden = 4096, kMaxIntermediate = 16384;
constexpr int kMaxPositions = 4096, kMaxVocab = 1 << 24, kMaxTypes = 64, kMaxLabels = 1 << 16;
constexpr int kMinLength = 8;  // tokens a model must be able to take

int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

int read_int(const JsonEntry& entry, int lowest, int highest) {
  return static_cast<int>(entry.integer(lowest, highest));
}

// Weights, biases and scales within this keep every later value finite: no path meets a NaN or an
// infinity, about which instruction sets disagree.
constexpr float kLargestValue = 1e4f;

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

// ---- config.json
// ---------------------------------------------------------------------------------

EncoderSpec read_encoder(const JsonEntry& entry) {
  entry.check_keys({"norm", "activation", "positions", "position_offset", "layers", "hidden",
                    "heads", "intermediate", "vocab_size", "max_positions", "type_vocab_size",
                    "norm_eps"});
  entry["norm"].one_of({"post"});
  entry["activation"].one_of({"gelu_erf"});
  entry["positions"].one_of({"absolute"});

  EncoderSpec spec;
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
  return spec;
}

// How the layer's activations are quantized; the rest of `linear` comes from the tensors.
void read_linear_type(const JsonEntry& entry, Linear& linear) {
  linear.format = static_cast<WeightFormat>(entry["type"].one_of(kWeightFormatNames));
  linear.static_activation = entry["activation"].one_of({"per_token", "static"}) == 1;
  if (!linear.static_activation) return entry.check_keys({"type", "activation"});
  entry.check_keys({"type", "activation", "scale", "zero_point"});
  linear.input_scale = read_positive_float(entry["scale"]);
  linear.input_zero_point = read_int(entry["zero_point"], 0, 255);
}

std::vector<Layer> read_layer_types(const JsonEntry& entry, int count) {
  const auto items = entry.items();
  if (items.size() != static_cast<size_t>(count)) {
    entry.bad("an array with one entry per layer (" + std::to_string(count) + ", not " +
              std::to_string(items.size()) + ")");
  }
  std::vector<Layer> layers(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].check_keys({"qkv", "output", "ffn_in", "ffn_out"});
    read_linear_type(items[i]["qkv"], layers[i].qkv);
    read_linear_type(items[i]["output"], layers[i].output);
    read_linear_type(items[i]["ffn_in"], layers[i].ffn_in);
    read_linear_type(items[i]["ffn_out"], layers[i].ffn_out);
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
  const int max_length = read_int(entry["max_length"], kMinLength, encoder.max_positions);
  switch (task.kind) {
    case QLA_TASK_SPAN_QA:
      read_span_qa(entry, max_length);
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
                       {"similarity", "truncate_dim"});
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

// ---- length_configs.json
// -------------------------------------------------------------------------

double read_length(const JsonEntry& entry, bool tokens) {
  if (tokens) return static_cast<double>(entry.integer(1, INT32_MAX));
  const double share = entry.number();
  if (!(share > 0.0 && share <= 1.0)) entry.bad("a share above 0 and at most 1");
  return share;
}

void check_accuracy(const JsonEntry& entry) {
  entry.check_keys({"metric", "value", "data"});
  entry["metric"].text();
  entry["value"].number();
  entry["data"].text();
}

// Returns whether the config keeps every token.
bool check_length_config(const JsonEntry& entry, int layers) {
  const bool tokens = entry["rule"].one_of({"ratio", "tokens"}) == 1;
  entry["keep_cls"].boolean();
  const auto values = entry["values"].items();
  if (values.size() != static_cast<size_t>(layers)) {
    entry["values"].bad("an array with one number per layer (" + std::to_string(layers) + ", not " +
                        std::to_string(values.size()) + ")");
  }
  double before = INFINITY, value = 1.0;
  for (const JsonEntry& item : values) {
    value = read_length(item, tokens);
    if (value > before) item.bad("no more than the layer before keeps");
    before = value;
  }
  if (entry.has("macs_share")) read_length(entry["macs_share"], false);
  if (entry.has("accuracy")) check_accuracy(entry["accuracy"]);
  return !tokens && value == 1.0;
}

void check_escalation(const JsonEntry& entry, const std::set<std::string>& names) {
  entry.check_keys({"cheap", "dear", "threshold"}, {"accuracy"});
  for (const char* key : {"cheap", "dear"}) {
    if (names.count(entry[key].text()) == 0) entry[key].bad("the name of a config");
  }
  const double threshold = entry["threshold"].number();
  if (!(threshold >= 0.0 && threshold <= 1.0)) entry["threshold"].bad("a confidence, 0 to 1");
  if (entry.has("accuracy")) check_accuracy(entry["accuracy"]);
}

void check_length_configs(std::string_view text, int layers) {
  const nlohmann::json root = parse_json(text, kLengthsFile, kMaxJsonSize);
  const JsonEntry file(root, kLengthsFile);
  file.check_version();
  file.check_keys({"format_version", "configs", "frontier"}, {"escalations"});

  std::set<std::string> names;
  for (const JsonEntry& entry : file["configs"].items()) {
    const bool keeps_all = check_length_config(entry, layers);
    entry.check_keys({"name", "rule", "values", "keep_cls"}, {"macs_share", "accuracy"});
    const JsonEntry name = entry["name"];
    if (name.text().empty()) name.bad("a name, not empty");
    if (!names.insert(name.text()).second) name.bad("a name no other config has");
    if (name.text() == "full" && !keeps_all) entry["values"].bad("ratios of 1, for 'full'");
  }
  if (names.count("full") == 0) file["configs"].bad("an array with a config named 'full'");
  for (const JsonEntry& entry : file["frontier"].items()) {
    check_length_config(entry, layers);
    entry.check_keys({"rule", "values", "keep_cls"}, {"name", "macs_share", "accuracy"});
    if (entry.has("name")) entry["name"].text();
  }
  if (!file.has("escalations")) return;
  for (const JsonEntry& entry : file["escalations"].items()) check_escalation(entry, names);
}

// ---- model.safetensors
// ---------------------------------------------------------------------------

// Hands out the tensors the config calls for, each once and checked; in the end none is left over.
class TensorReader {
 public:
  using Shape = std::vector<int64_t>;

  // `resident`: where linear layers' weights are copied to; null: they stay where the file is.
  TensorReader(const FileBytes& file, WeightLayout layout, ResidentWeights* resident)
      : tensors_(read_safetensors(file.data(), file.size(), kWeightsFile)),
        layout_(layout),
        resident_(resident) {}

  const float* floats(const std::string& name, const Shape& shape) {
    const Tensor tensor = take(name, Dtype::kF32, shape);
    const auto* values = reinterpret_cast<const float*>(tensor.data);
    check_each(name, values, tensor.size / sizeof *values, "finite and at most 10000 in size",
               [](float value) { return std::abs(value) <= kLargestValue; });
    return values;
  }

  // `count` values, then zeros up to a multiple of 16.
  const float* padded_floats(const std::string& name, int64_t count) {
    const float* values = floats(name, {pad16(count)});
    check_each(name, values + count, static_cast<size_t>(pad16(count) - count),
               "zero, being padding", [](float value) { return value == 0.0f; });
    return values;
  }

  const float* padded_scales(const std::string& name, int64_t count) {
    const float* values = padded_floats(name, count);
    check_each(name, values, static_cast<size_t>(count), "positive",
               [](float value) { return value > 0.0f; });
    return values;
  }

  const int8_t* bytes(const std::string& name, const Shape& shape) {
    return reinterpret_cast<const int8_t*>(take(name, Dtype::kI8, shape).data);
  }

  std::vector<Floats16> column_sum(const std::string& name, const Linear& linear) {
    const auto* given = reinterpret_cast<const int32_t*>(take(name, Dtype::kI32, {linear.n}).data);
    std::vector<int32_t> sums(static_cast<size_t>(linear.n));
    weight_format(linear.format).column_sums(linear.weight, linear.k, linear.n, sums.data());
    for (size_t i = 0; i < sums.size(); ++i) {
      if (given[i] == sums[i]) continue;
      bad(name, "[" + std::to_string(i) + "] is " + std::to_string(given[i]) +
                    "; the weights of that column add up to " + std::to_string(sums[i]));
    }
    std::vector<Floats16> floats(sums.size() / 16);
    for (size_t i = 0; i < sums.size(); ++i) {
      floats[i / 16].value[i % 16] = static_cast<float>(sums[i]);
    }
    return floats;
  }

  Norm norm(const std::string& prefix, int hidden) {
    Norm norm;
    norm.weight = floats(prefix + ".weight", {hidden});
    norm.bias = floats(prefix + ".bias", {hidden});
    return norm;
  }

  void linear(const std::string& prefix, int k, int n, Linear& linear) {
    linear.k = k;
    linear.n = n;
    linear.weight = weight(prefix + ".weight", linear);
    linear.scale = padded_scales(prefix + ".scale", n);
    linear.bias = floats(prefix + ".bias", {n});
    linear.column_sum = column_sum(prefix + ".column_sum", linear);
  }

  void check_none_left() const {
    if (!tensors_.empty()) bad(tensors_.begin()->first, " is not one this model has");
  }

 private:
  const int8_t* weight(const std::string& name, const Linear& linear) {
    const int k = linear.k, n = linear.n;
    if (layout_ == WeightLayout::kK64N16K4) {
      return resident_->add_reordered(bytes(name, {k / 64, n / 16, 16, 16, 4}), k, n);
    }
    const auto [blocks, steps, columns, step_bytes] = weight_format(linear.format).shape(k, n);
    const int8_t* in_file = bytes(name, {blocks, steps, columns, step_bytes});
    return resident_ ? resident_->add(in_file, weight_bytes(linear.format, k, n)) : in_file;
  }

  [[noreturn]] static void bad(const std::string& name, const std::string& what) {
    bad_package(kWeightsFile, "tensor " + quote(name) + what);
  }

  Tensor take(const std::string& name, Dtype dtype, const Shape& shape) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) bad(name, " is missing");
    const Tensor tensor = std::move(found->second);
    tensors_.erase(found);
    if (tensor.dtype != dtype || tensor.shape != shape) {
      bad(name, std::string(" is ") + dtype_name(tensor.dtype) + " " + shape_text(tensor.shape) +
                    "; by config.json it must be " + dtype_name(dtype) + " " + shape_text(shape));
    }
    return tensor;
  }

  template <class Rule>
  static void check_each(const std::string& name, const float* values, size_t count,
                         const char* rule_name, Rule rule) {
    const float* end = values + count;
    const float* found = std::find_if_not(values, end, rule);
    if (found == end) return;
    bad(name, "[" + std::to_string(found - values) + "] is " + std::to_string(*found) +
                  "; it must be " + rule_name);
  }

  TensorMap tensors_;
  const WeightLayout layout_;
  ResidentWeights* const resident_;
};

// The most bytes that the tensors of these shapes take, header included. More than that, and the
// file is wrong without a look inside.
size_t most_weight_bytes(const EncoderSpec& e, const TaskSpec& task) {
  const auto hidden = static_cast<size_t>(e.hidden), wide = static_cast<size_t>(e.intermediate);
  const auto vocab = static_cast<size_t>(e.vocab_size);
  const auto outputs = static_cast<size_t>(task.outputs);
  const auto table_rows = static_cast<size_t>(e.max_positions + e.position_offset +
                                              e.type_vocab_size + 2);  // 2: of the LayerNorm
  const size_t pad = 16, columns = 5 * hidden + wide;                  // of the four linear layers
  const size_t embeddings = vocab * hidden + 4 * (vocab + pad) + 4 * table_rows * hidden;
  const size_t layer = 4 * hidden * hidden + 2 * hidden * wide + 12 * columns + 16 * hidden;
  const size_t heads = 4 * (hidden + 1) * hidden + 4 * outputs * (hidden + 1) + 4 * pad;
  return kMaxSafetensorsHeader + embeddings + static_cast<size_t>(e.layers) * layer + heads;
}

Embeddings read_embeddings(TensorReader& tensors, const EncoderSpec& spec) {
  const int64_t positions = spec.max_positions + spec.position_offset;
  Embeddings out;
  out.word = tensors.bytes("embeddings.word.weight", {spec.vocab_size, spec.hidden});
  out.word_scale = tensors.padded_scales("embeddings.word.scale", spec.vocab_size);
  out.position = tensors.floats("embeddings.position.weight", {positions, spec.hidden});
  out.token_type =
      tensors.floats("embeddings.token_type.weight", {spec.type_vocab_size, spec.hidden});
  out.norm = tensors.norm("embeddings.norm", spec.hidden);
  return out;
}

void read_layer(TensorReader& tensors, const EncoderSpec& spec, size_t index, Layer& layer) {
  const std::string prefix = "layers." + std::to_string(index) + ".";
  const int hidden = spec.hidden, intermediate = spec.intermediate;
  tensors.linear(prefix + "qkv", hidden, 3 * hidden, layer.qkv);
  tensors.linear(prefix + "output", hidden, hidden, layer.output);
  tensors.linear(prefix + "ffn_in", hidden, intermediate, layer.ffn_in);
  tensors.linear(prefix + "ffn_out", intermediate, hidden, layer.ffn_out);
  layer.attention_norm = tensors.norm(prefix + "attention_norm", hidden);
  layer.ffn_norm = tensors.norm(prefix + "ffn_norm", hidden);
}

// Names the package in an error and says what helps.
Error with_remedy(const Error& error, const std::string& source) {
  if (error.code != QLA_BAD_PACKAGE && error.code != QLA_UNSUPPORTED) return error;
  const char* remedy = error.code == QLA_UNSUPPORTED
                           ? ". Install a newer qla_runtime, or convert the checkpoint again"
                             " with this version's `qla convert`"
                           : ". Convert the checkpoint again with `qla convert`";
  return Error(error.code, "package '" + source + "': " + error.what() + remedy);
}

}  // namespace

// Package's friend: fills one from files.
struct PackageReader {
  template <class GetFiles>
  static std::unique_ptr<Package> read(const std::string& source, const StopRequest& stop,
                                       WeightPlacement placement, GetFiles get_files) try {
    PackageFiles files = get_files();
    std::unique_ptr<Package> package(new Package);
    const auto [listed, layout] = check_manifest(files);
    for (const char* name : {kConfigFile, kTokenizerFile, kLengthsFile}) {
      check_checksum(files, listed, name, stop);
    }
    package->source = source;
    read_config(files.find(kConfigFile)->second.text(), *package);
    const std::string_view lengths = files.find(kLengthsFile)->second.text();
    check_length_configs(lengths, package->encoder.layers);
    package->length_configs_json = lengths;

    FileBytes& weights = files.find(kWeightsFile)->second;
    const size_t most = most_weight_bytes(package->encoder, package->task);
    if (weights.size() > most) {
      bad_package(kWeightsFile, "has " + std::to_string(weights.size()) +
                                    " bytes; a model of config.json's shapes has at most " +
                                    std::to_string(most));
    }
    check_checksum(files, listed, kWeightsFile, stop);
    place_weights(weights, layout, placement, *package);
    read_tensors(weights, layout, *package, stop);
    package->weight_bytes = weights.size();
    FileBytes& tokenizer = files.find(kTokenizerFile)->second;
    package->mapping_.reset(new Package::Mapping{std::move(weights), std::move(tokenizer)});
    package->tokenizer_json = package->mapping_->tokenizer.text();
    return package;
  } catch (const Error& error) {
    throw with_remedy(error, source);
  }

 private:
  static void read_config(std::string_view text, Package& package) {
    const nlohmann::json root = parse_json(text, kConfigFile, kMaxConfigSize);
    const JsonEntry config(root, kConfigFile);
    config.check_version();
    config.check_keys({"format_version", "name", "encoder", "linears", "task"},
                      {"text", "prompts", "default_prompt"});
    check_prompts(config);
    package.name = config["name"].text();
    package.encoder = read_encoder(config["encoder"]);
    package.layers = read_layer_types(config["linears"], package.encoder.layers);
    package.task = read_task(config["task"], package.encoder);
    if (config.has("text")) check_text_rules(config["text"]);
    package.config_json = text;
  }

  // Decides where the linear layers' weights will lie; makes room where that is not the file.
  static void place_weights(FileBytes& file, WeightLayout layout, WeightPlacement placement,
                            Package& package) {
    const size_t bytes = package.layers.size() * layer_weight_bytes(package.encoder);
    const size_t cache = last_level_cache_bytes();
    const bool streamed = bytes > cache;  // from memory, at every call
    const auto megabytes = [](size_t n) {
      char text[32];
      snprintf(text, sizeof text, "%.1f MB", static_cast<double>(n) / 1e6);
      return std::string(text);
    };
    std::string why;
    bool large = false;
    if (layout != WeightLayout::kN64K4) {
      why = "the package has the layout of version 0.1; convert again to share them";
    } else if (placement == WeightPlacement::kResident) {
      why = "asked for";
    } else if (placement == WeightPlacement::kAuto && streamed) {
      large = file.bring_onto_large_pages();
      if (!large) {
        why = "more than the last-level cache's " + megabytes(cache) +
              ", and the file is not on large pages";
      }
    }
    package.weight_place = megabytes(bytes) + " of linear layers, ";
    if (why.empty()) {
      package.weight_place += "read where the file is mapped";
      if (large) package.weight_place += ", on large pages";
    } else {
      package.resident_ = std::make_unique<ResidentWeights>(bytes);
      package.weight_place += "in a private copy (" + why + ")";
    }
  }

  static void read_tensors(const FileBytes& file, WeightLayout layout, Package& package,
                           const StopRequest& stop) {
    const int hidden = package.encoder.hidden;
    TensorReader tensors(file, layout, package.resident_.get());
    package.embeddings = read_embeddings(tensors, package.encoder);
    for (size_t i = 0; i < package.layers.size(); ++i) {
      stop.check();
      read_layer(tensors, package.encoder, i, package.layers[i]);
    }
    if (package.task.has_pooler) {
      package.pooler_weight = tensors.floats("pooler.weight", {hidden, hidden});
      package.pooler_bias = tensors.floats("pooler.bias", {hidden});
    }
    if (package.task.kind != QLA_TASK_EMBEDDING) {
      package.head_weight = tensors.floats("head.weight", {package.task.outputs, hidden});
      package.head_bias = tensors.padded_floats("head.bias", package.task.outputs);
    }
    tensors.check_none_left();
  }
};

std::unique_ptr<Package> Package::open(const std::string& path, const StopRequest& stop,
                                       WeightPlacement placement) {
  constexpr int kAttempts = 3;
  for (int attempt = 1;; ++attempt) {
    const Folder folder(path);
    try {
      return PackageReader::read(path, stop, placement, [&] { return folder.files(); });
    } catch (const Error& error) {
      // Replacing a package deletes the old one, perhaps between two files of ours.
      const bool again = attempt < kAttempts && error.code != QLA_STOPPED;
      if (!again || !folder.was_replaced()) throw;
    }
  }
}

std::unique_ptr<Package> Package::open_memory(const qla_file* files, size_t num_files,
                                              const StopRequest& stop, WeightPlacement placement) {
  return PackageReader::read("memory", stop, placement,
                             [&] { return files_in_memory(files, num_files); });
}

Package::~Package() = default;

}  // namespace qla
