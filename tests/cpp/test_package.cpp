// Packages from memory: used in place, checked like a folder. What folders can get wrong is in
// tests/test_hostile_packages.py; this is the part that Python cannot reach.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "crc32c.h"
#include "error.h"
#include "package.h"

namespace qla {
namespace {

using Files = std::map<std::string, std::string>;

std::string hex(uint32_t crc) {
  char text[9];
  snprintf(text, sizeof text, "%08x", crc);
  return text;
}

// Collects tensors of constant values into a safetensors file.
class Weights {
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

std::string weights_file() {
  Weights weights;
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

void seal(Files& files) {
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

Files good_files() {
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
  std::unique_ptr<Package> open() const { return Package::open_memory(view.data(), view.size()); }

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

void expect_refused(const Lent& files, qla_status code, const std::string& words) {
  try {
    files.open();
    ADD_FAILURE() << "not refused: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code, code);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(Package, FromMemoryIsUsedInPlace) {
  Files files = good_files();
  files["README.md"] = "ignored";
  const Lent lent(files);
  const auto package = lent.open();
  EXPECT_EQ(package->source, "memory");
  EXPECT_EQ(package->name, "tiny");
  EXPECT_EQ(package->encoder.head_dim, 64);
  EXPECT_EQ(package->task.kind, QLA_TASK_EMBEDDING);
  EXPECT_EQ(package->task.outputs, 64);
  EXPECT_FALSE(package->task.mean_pooling);
  EXPECT_EQ(package->head_weight, nullptr);
  EXPECT_EQ(package->config_json, files["config.json"]);
  EXPECT_EQ(package->weight_bytes, files["model.safetensors"].size());

  const Layer& layer = package->layers.at(0);
  EXPECT_FALSE(layer.qkv.static_activation);
  EXPECT_TRUE(layer.ffn_out.static_activation);
  EXPECT_EQ(layer.ffn_out.input_scale, 0.25f);
  EXPECT_EQ(layer.ffn_out.input_zero_point, 9);
  EXPECT_EQ(layer.ffn_out.k, 128);
  EXPECT_EQ(layer.ffn_out.column_sum[3].value[15], -256.0f);
  const qla_file& weights = lent.file("model.safetensors");
  const auto* begin = static_cast<const int8_t*>(weights.data);
  EXPECT_GT(layer.qkv.weight, begin);
  EXPECT_LT(layer.qkv.weight, begin + weights.size);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(layer.qkv.weight) % 64, 0u);
}

TEST(Package, FromMemoryRefusesWrongCalls) {
  const Files files = good_files();
  expect_refused(Lent(files, 8), QLA_INVALID_INPUT, "must be aligned to 64 bytes");
  Lent twice(files);
  twice.view.push_back(twice.view[0]);
  expect_refused(twice, QLA_INVALID_INPUT, "is given twice");
  Lent null(files);
  null.view[1].data = nullptr;
  expect_refused(null, QLA_INVALID_INPUT, "must not be NULL");
  null.view[1] = {nullptr, "x", 1};
  expect_refused(null, QLA_INVALID_INPUT, "must not be NULL");
  EXPECT_THROW(Package::open_memory(nullptr, 1), Error);
  EXPECT_THROW(Package::open_memory(nullptr, 0), Error);
}

TEST(Package, FromMemoryRefusesMissingEmptyAndCutFiles) {
  const Files good = good_files();
  for (const auto& [name, content] : good) {
    Files files = good;
    files.erase(name);
    expect_refused(Lent(files), QLA_BAD_PACKAGE, name + ": is missing");
    files[name] = "";
    expect_refused(Lent(files), QLA_BAD_PACKAGE, name + ": is empty");
    for (size_t size = 1; size < content.size(); size += 1 + content.size() / 50) {
      files[name] = content.substr(0, size);
      expect_refused(Lent(files), QLA_BAD_PACKAGE, name + ": ");
    }
  }
}

TEST(Package, FromMemoryChecksDeeperThanTheChecksums) {
  Files files = good_files();
  files["model.safetensors"].back() = '\x45';  // the last ffn_norm bias, now a few thousand
  seal(files);
  EXPECT_NO_THROW(Lent(files).open());
  files["model.safetensors"].replace(files["model.safetensors"].size() - 2, 2, "\xc0\x7f");
  seal(files);
  expect_refused(Lent(files), QLA_BAD_PACKAGE, "'layers.0.ffn_norm.bias'[63] is nan");
}

}  // namespace
}  // namespace qla
