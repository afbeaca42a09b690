// A valid package of one layer, as the C door takes it from memory.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "package/crc32c.h"
#include "qla/qla.h"

namespace qla {

using Files = std::map<std::string, std::string>;

inline std::string hex(uint32_t crc) {
  char text[9];
  snprintf(text, sizeof text, "%08x", crc);
  return text;
}

// Collects tensors of constant values into a safetensors file.
class TensorFile {
 public:
  template <class T>
  void add(const std::string& name, const char* dtype, std::vector<int> shape, T value) {
    std::string dimensions;
    size_t count = 1;
    for (const int n : shape) {
      dimensions += (dimensions.empty() ? "" : ",") + std::to_string(n);
      count *= static_cast<size_t>(n);
    }
    const size_t begin = data_.size();
    const std::vector<T> values(count, value);
    data_.append(reinterpret_cast<const char*>(values.data()), count * sizeof(T));
    header_ += std::string(header_.empty() ? "{" : ",") + "\"" + name + "\":{\"dtype\":\"" + dtype +
               "\",\"shape\":[" + dimensions + "],\"data_offsets\":[" + std::to_string(begin) +
               "," + std::to_string(data_.size()) + "]}";
  }
  void floats(const std::string& name, std::vector<int> shape) { add(name, "F32", shape, 0.5f); }
  void linear(const std::string& name, int k, int n) {
    add(name + ".weight", "I8", {n / 64, k / 4, 64, 4}, int8_t{-2});
    floats(name + ".scale", {n});
    floats(name + ".bias", {n});
    add(name + ".column_sum", "I32", {n}, int32_t{-2 * k});
  }
  void norm(const std::string& name) {
    floats(name + ".weight", {64});
    floats(name + ".bias", {64});
  }
  std::string file() const {
    std::string header = header_ + "}";
    while ((8 + header.size()) % 64 != 0) header += ' ';
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data_;
  }

 private:
  std::string header_, data_;
};

inline std::string weights_file() {
  TensorFile weights;
  weights.add("embeddings.word.weight", "I8", {16, 64}, int8_t{1});
  weights.floats("embeddings.word.scale", {16});
  weights.floats("embeddings.position.weight", {8, 64});
  weights.floats("embeddings.token_type.weight", {1, 64});
  weights.norm("embeddings.norm");
  weights.linear("layers.0.qkv", 64, 192);
  weights.linear("layers.0.output", 64, 64);
  weights.linear("layers.0.ffn_in", 64, 128);
  weights.linear("layers.0.ffn_out", 128, 64);
  weights.norm("layers.0.attention_norm");
  weights.norm("layers.0.ffn_norm");
  return weights.file();
}

inline void seal(Files& files) {
  std::string listed;
  for (const auto& [name, content] : files) {
    if (name == "manifest.json") continue;
    listed += (listed.empty() ? "\"" : ", \"") + name +
              "\": {\"size\": " + std::to_string(content.size()) + ", \"crc32c\": \"" +
              hex(crc32c(content.data(), content.size())) + "\"}";
  }
  std::string manifest = R"({"format": "qla-package", "format_version": 1, )"
                         R"("weight_layout": "n64k4", "files": {)" +
                         listed + R"(}, "self_crc32c": "00000000"})";
  const std::string crc = hex(crc32c(manifest.data(), manifest.size()));
  manifest.replace(manifest.size() - 10, 8, crc);
  files["manifest.json"] = manifest;
}

inline Files good_files() {
  Files files;
  files["config.json"] = R"({"format_version": 1, "name": "tiny", "encoder": {"norm": "post",
    "activation": "gelu_erf", "positions": "absolute", "position_offset": 0, "layers": 1,
    "hidden": 64, "heads": 1, "intermediate": 128, "vocab_size": 16, "max_positions": 8,
    "type_vocab_size": 1, "norm_eps": 1e-12},
    "linears": [{"qkv": {"type": "w8a8", "activation": "per_token"},
      "output": {"type": "w8a8", "activation": "per_token"},
      "ffn_in": {"type": "w8a8", "activation": "per_token"},
      "ffn_out": {"type": "w8a8", "activation": "static", "scale": 0.25, "zero_point": 9}}],
    "task": {"kind": "embedding", "max_length": 8, "keep_cls": true, "pooling": "cls",
      "normalize": true}})";
  files["length_configs.json"] = R"({"format_version": 1, "frontier": [], "configs":
    [{"name": "full", "rule": "ratio", "values": [1], "keep_cls": true}]})";
  files["tokenizer.json"] = "{}";
  files["model.safetensors"] = weights_file();
  seal(files);
  return files;
}

// The files as the C door gets them, each in a heap block of its exact size.
class Lent {
 public:
  explicit Lent(const Files& files, size_t shift = 0) {
    for (const auto& [name, content] : files) {
      void* block = nullptr;
      if (posix_memalign(&block, 64, shift + content.size() + 1) != 0) throw std::bad_alloc();
      blocks_.emplace_back(static_cast<uint8_t*>(block));
      std::memcpy(blocks_.back().get() + shift, content.data(), content.size());
      names_.push_back(std::make_unique<std::string>(name));
      view.push_back({names_.back()->c_str(), blocks_.back().get() + shift, content.size()});
    }
  }
  const qla_file& file(const std::string& name) const {
    for (const qla_file& file : view) {
      if (file.name == name) return file;
    }
    throw std::out_of_range(name);
  }

  std::vector<qla_file> view;

 private:
  struct Free {
    void operator()(uint8_t* data) const { std::free(data); }
  };
  std::vector<std::unique_ptr<uint8_t, Free>> blocks_;
  std::vector<std::unique_ptr<std::string>> names_;
};

}  // namespace qla
