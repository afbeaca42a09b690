#include "package/weights_file.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "package/config_file.h"
#include "package/safetensors.h"
#include "package/strict_json.h"

namespace qla {
namespace {

int64_t pad16(int64_t n) { return (n + 15) / 16 * 16; }

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

  // Two-bit codes of ternary weights.
  const int8_t* codes(const std::string& name, const Shape& shape) {
    const Tensor tensor = take(name, Dtype::kU8, shape);
    const auto* bytes = reinterpret_cast<const int8_t*>(tensor.data);
    const size_t found = find_no_weight(bytes, tensor.size);
    if (found < tensor.size) {
      bad(name, "'s byte " + std::to_string(found) + " has the code 3; codes are 0, 1 and 2");
    }
    return bytes;
  }

  // `count` bytes of codes, then zeros.
  const int8_t* padded_codes(const std::string& name, const Shape& shape, int64_t count) {
    const int8_t* bytes = codes(name, shape);
    const int8_t* end = bytes + shape[0] * shape[1];
    const int8_t* found = std::find_if(bytes + count, end, [](int8_t byte) { return byte != 0; });
    if (found != end) {
      bad(name, "'s byte " + std::to_string(found - bytes) + " must be zero, being padding");
    }
    return bytes;
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

  void linear(const std::string& prefix, Linear& linear) {
    linear.weight = weight(prefix + ".weight", linear);
    linear.scale = padded_scales(prefix + ".scale", linear.n);
    linear.bias = floats(prefix + ".bias", {linear.n});
    linear.column_sum = column_sum(prefix + ".column_sum", linear);
  }

  void check_none_left() const {
    if (!tensors_.empty()) bad(tensors_.begin()->first, " is not one this model has");
  }

 private:
  const int8_t* weight(const std::string& name, const Linear& linear) {
    const int k = linear.k, n = linear.n;
    const WeightFormatInfo& format = weight_format(linear.format);
    if (layout_ == WeightLayout::kK64N16K4) {
      if (format.packed) bad(name, " is packed; packages of version 0.1 hold w8a8 alone");
      return resident_->add_reordered(bytes(name, {k / 64, n / 16, 16, 16, 4}), k, n);
    }
    const auto [blocks, steps, columns, step_bytes] = format.shape(k, n);
    const Shape shape = {blocks, steps, columns, step_bytes};
    const int8_t* in_file = format.packed ? codes(name, shape) : bytes(name, shape);
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

const int8_t* word_embeddings(TensorReader& tensors, const EncoderSpec& spec) {
  const char* name = "embeddings.word.weight";
  if (spec.word_embeddings == WordEmbeddings::kS8) {
    return tensors.bytes(name, {spec.vocab_size, spec.hidden});
  }
  // Four rows of a multiple of 16 bytes end at a multiple of 64.
  const int64_t row_bytes = spec.hidden / 4, rows = (spec.vocab_size + 3) / 4 * 4;
  return tensors.padded_codes(name, {rows, row_bytes}, spec.vocab_size * row_bytes);
}

Embeddings read_embeddings(TensorReader& tensors, const EncoderSpec& spec) {
  const int64_t positions = spec.max_positions + spec.position_offset;
  Embeddings out;
  out.word = word_embeddings(tensors, spec);
  out.word_scale = tensors.padded_scales("embeddings.word.scale", spec.vocab_size);
  out.position = tensors.floats("embeddings.position.weight", {positions, spec.hidden});
  out.token_type =
      tensors.floats("embeddings.token_type.weight", {spec.type_vocab_size, spec.hidden});
  out.norm = tensors.norm("embeddings.norm", spec.hidden);
  return out;
}

void read_layer(TensorReader& tensors, const EncoderSpec& spec, size_t index, Layer& layer) {
  const std::string prefix = "layers." + std::to_string(index) + ".";
  tensors.linear(prefix + "qkv", layer.qkv);
  tensors.linear(prefix + "output", layer.output);
  tensors.linear(prefix + "ffn_in", layer.ffn_in);
  tensors.linear(prefix + "ffn_out", layer.ffn_out);
  layer.attention_norm = tensors.norm(prefix + "attention_norm", spec.hidden);
  layer.ffn_norm = tensors.norm(prefix + "ffn_norm", spec.hidden);
}

}  // namespace

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

Weights read_weights_file(const FileBytes& file, WeightLayout layout, const EncoderSpec& encoder,
                          const TaskSpec& task, std::vector<Layer> layers,
                          ResidentWeights* resident, const StopRequest& stop) {
  const int hidden = encoder.hidden;
  TensorReader tensors(file, layout, resident);
  Weights weights;
  weights.embeddings = read_embeddings(tensors, encoder);
  weights.layers = std::move(layers);
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    stop.check();
    read_layer(tensors, encoder, i, weights.layers[i]);
  }
  if (task.has_pooler) {
    weights.pooler_weight = tensors.floats("pooler.weight", {hidden, hidden});
    weights.pooler_bias = tensors.floats("pooler.bias", {hidden});
  }
  if (task.kind != QLA_TASK_EMBEDDING) {
    weights.head_weight = tensors.floats("head.weight", {task.outputs, hidden});
    weights.head_bias = tensors.padded_floats("head.bias", task.outputs);
  }
  tensors.check_none_left();
  return weights;
}

}  // namespace qla
