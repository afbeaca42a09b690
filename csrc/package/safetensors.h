// The safetensors container: reads and checks its header. After that every tensor named in it lies
// inside the file, and together they cover it without gap or overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace qla {

constexpr size_t kMaxSafetensorsHeader = size_t{1} << 20;  // 64 layers need 170 KB

enum class Dtype { kU8, kI8, kI32, kF32 };
const char* dtype_name(Dtype dtype);

struct Tensor {
  Dtype dtype;
  std::vector<int64_t> shape;
  const uint8_t* data;
  size_t size;  // in bytes
};

using TensorMap = std::map<std::string, Tensor>;

// `data` must be aligned to 64 bytes, and so is then every tensor. Throws qla::Error
// (QLA_BAD_PACKAGE) naming `file`, the tensor and the rule.
TensorMap read_safetensors(const uint8_t* data, size_t size, const char* file);

// "(384, 1536)"
std::string shape_text(const std::vector<int64_t>& shape);

}  // namespace qla
