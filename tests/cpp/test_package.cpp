// Packages from memory: used in place, checked like a folder. What folders can get wrong is in
// tests/test_hostile_packages.py; this is the part that Python cannot reach.
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "error.h"
#include "package/package.h"
#include "package_in_memory.h"

namespace qla {
namespace {

std::unique_ptr<Package> open(const Lent& files, const StopRequest& stop = {}) {
  return Package::open_memory(files.view.data(), files.view.size(), stop);
}

void expect_refused(const Lent& files, qla_status code, const std::string& words) {
  try {
    open(files);
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
  const auto package = open(lent);
  EXPECT_EQ(package->source, "memory");
  EXPECT_EQ(package->name, "tiny");
  EXPECT_EQ(package->encoder.head_dim, 64);
  EXPECT_EQ(package->task.kind, QLA_TASK_EMBEDDING);
  EXPECT_EQ(package->task.outputs, 64);
  EXPECT_FALSE(package->task.mean_pooling);
  EXPECT_EQ(package->weights.head_weight, nullptr);
  EXPECT_EQ(package->config_json, files["config.json"]);
  EXPECT_EQ(package->weight_bytes, files["model.safetensors"].size());

  const Layer& layer = package->weights.layers.at(0);
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
  EXPECT_NO_THROW(open(Lent(files)));
  files["model.safetensors"].replace(files["model.safetensors"].size() - 2, 2, "\xc0\x7f");
  seal(files);
  expect_refused(Lent(files), QLA_BAD_PACKAGE, "'layers.0.ffn_norm.bias'[63] is nan");
}

TEST(Package, OpeningStopsOnRequest) {
  const Lent files(good_files());
  int asked = 0;
  const auto third_time = [](void* user) -> int32_t { return ++*static_cast<int*>(user) == 3; };
  try {
    open(files, StopRequest(third_time, &asked));
    ADD_FAILURE() << "not stopped";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, QLA_STOPPED);
  }
  EXPECT_EQ(asked, 3);
}

TEST(Package, WeightsThatNoModelOfTheseShapesHasAreRefusedUnread) {
  Files files = good_files();
  files["model.safetensors"].resize(size_t{4} << 20);
  seal(files);
  expect_refused(Lent(files), QLA_BAD_PACKAGE, "a model of config.json's shapes has at most");
}

}  // namespace
}  // namespace qla
