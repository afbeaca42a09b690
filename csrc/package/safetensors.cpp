#include "package/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "package/strict_json.h"

namespace qla {
namespace {

constexpr size_t kLengthBytes = 8;  // the header's length, little-endian
constexpr size_t kAlignment = 64;
constexpr size_t kMaxRank = 8;

struct Range {
  size_t begin, end;
  std::string name;
};

std::string tensor(const std::string& name) { return "tensor " + quote(name); }

// The header's text; data starts right behind it.
std::string_view header_text(const uint8_t* data, size_t size, const char* file) {
  if (size < kLengthBytes) {
    bad_package(file, "has " + std::to_string(size) + " bytes; not even a header's length");
  }
  uint64_t length;
  std::memcpy(&length, data, kLengthBytes);
  if (length > kMaxSafetensorsHeader || length > size - kLengthBytes) {
    bad_package(file, "header length is " + std::to_string(length) + "; the file has " +
                          std::to_string(size) + " bytes and a header at most " +
                          std::to_string(kMaxSafetensorsHeader));
  }
  if ((kLengthBytes + length) % kAlignment != 0) {
    bad_package(file, "header length is " + std::to_string(length) +
                          "; data must begin at a multiple of 64 bytes");
  }
  return {reinterpret_cast<const char*>(data) + kLengthBytes, static_cast<size_t>(length)};
}

Dtype read_dtype(const JsonEntry& entry) {
  const std::string& name = entry.text();
  for (const Dtype dtype : {Dtype::kU8, Dtype::kI8, Dtype::kI32, Dtype::kF32}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  entry.bad("U8, I8, I32 or F32");
}

std::vector<int64_t> read_shape(const JsonEntry& entry) {
  std::vector<int64_t> shape;
  for (const JsonEntry& item : entry.items()) shape.push_back(item.integer(1, INT64_MAX));
  if (shape.empty() || shape.size() > kMaxRank) entry.bad("1 to 8 dimensions");
  return shape;
}

// Bytes a tensor of this type and shape takes, or 0 when no size_t can say it.
size_t byte_size(Dtype dtype, const std::vector<int64_t>& shape) {
  size_t bytes = dtype == Dtype::kU8 || dtype == Dtype::kI8 ? 1 : 4;
  for (const int64_t dimension : shape) {
    if (__builtin_mul_overflow(bytes, static_cast<size_t>(dimension), &bytes)) return 0;
  }
  return bytes;
}

Range read_range(const JsonEntry& entry, const std::string& name, size_t data_size) {
  const auto offsets = entry.items();
  if (offsets.size() != 2) entry.bad("a pair [begin, end]");
  const auto limit = static_cast<int64_t>(data_size);
  const int64_t begin = offsets[0].integer(0, limit);
  const int64_t end = offsets[1].integer(begin, limit);
  return {static_cast<size_t>(begin), static_cast<size_t>(end), name};
}

void check_size(const Range& range, Dtype dtype, const std::vector<int64_t>& shape,
                const char* file) {
  const size_t bytes = range.end - range.begin;
  if (bytes == 0 || bytes != byte_size(dtype, shape)) {
    bad_package(file, tensor(range.name) + " has " + std::to_string(bytes) +
                          " bytes, which is not what " + dtype_name(dtype) + " " +
                          shape_text(shape) + " takes");
  }
  if (bytes % kAlignment != 0) {
    bad_package(file, tensor(range.name) + " has " + std::to_string(bytes) +
                          " bytes; it must be a multiple of 64");
  }
}

void check_coverage(std::vector<Range>& ranges, size_t data_size, const char* file) {
  std::stable_sort(ranges.begin(), ranges.end(),
                   [](const Range& a, const Range& b) { return a.begin < b.begin; });
  size_t reached = 0;
  for (const Range& range : ranges) {
    if (range.begin != reached) {
      bad_package(file, tensor(range.name) + " begins at data byte " + std::to_string(range.begin) +
                            " where " + std::to_string(reached) +
                            " was due; tensors must neither overlap nor leave gaps");
    }
    reached = range.end;
  }
  if (reached != data_size) {
    bad_package(file, "tensors end at data byte " + std::to_string(reached) + " of " +
                          std::to_string(data_size) + "; they must cover the file");
  }
}

}  // namespace

const char* dtype_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kU8:
      return "U8";
    case Dtype::kI8:
      return "I8";
    case Dtype::kI32:
      return "I32";
    case Dtype::kF32:
      break;
  }
  return "F32";
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string out;
  for (const int64_t n : shape) out += (out.empty() ? "(" : ", ") + std::to_string(n);
  return out + ")";
}

TensorMap read_safetensors(const uint8_t* data, size_t size, const char* file) {
  const std::string_view text = header_text(data, size, file);
  const nlohmann::json root = parse_json(text, file, kMaxSafetensorsHeader);
  const uint8_t* base = data + kLengthBytes + text.size();
  const size_t data_size = size - kLengthBytes - text.size();

  TensorMap tensors;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : JsonEntry(root, file).members()) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.members()) value.text();
      continue;
    }
    entry.check_keys({"dtype", "shape", "data_offsets"});
    const Dtype dtype = read_dtype(entry["dtype"]);
    std::vector<int64_t> shape = read_shape(entry["shape"]);
    const Range range = read_range(entry["data_offsets"], name, data_size);
    check_size(range, dtype, shape, file);
    tensors[name] = Tensor{dtype, std::move(shape), base + range.begin, range.end - range.begin};
    ranges.push_back(range);
  }
  check_coverage(ranges, data_size, file);
  return tensors;
}

}  // namespace qla
