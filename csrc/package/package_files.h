// A package's files as bytes: mapped from a folder or lent by the caller, and checked against the
// manifest. What the bytes mean is package.cpp's concern.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "package/resident_weights.h"
#include "qla/qla.h"
#include "stop.h"

namespace qla {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kConfigFile = "config.json";
constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kLengthsFile = "length_configs.json";

// How large files may be. A file is measured before any of it is read: a folder of a few kilobytes
// can hold one of terabytes, most of it holes.
constexpr size_t kMaxJsonSize = size_t{1} << 20;     // of manifest.json and length_configs.json
constexpr size_t kMaxConfigSize = size_t{16} << 20;  // of config.json, for 65,536 labels
constexpr size_t kMaxTokenizerSize = size_t{256} << 20;
size_t size_limit(std::string_view name);  // the weights have none but what config.json implies

// A file descriptor that closes itself.
struct Descriptor {
  explicit Descriptor(int descriptor) : value(descriptor) {}
  ~Descriptor();
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  const int value;
};

// Read-only bytes, unmapped with their owner if they were mapped.
class FileBytes {
 public:
  static FileBytes borrow(const void* data, size_t size);
  static FileBytes map(int descriptor, size_t size);  // empty when mmap fails
  // The same for a file that is read again and again: on large pages, where the system gives them.
  static FileBytes map_weights(int descriptor, size_t size);

  // Whether bytes that have been read lie on large pages. A mapped file that does not is dropped
  // from the page cache, where nobody else uses it, and read again: once it is there on large
  // pages, all processes share them.
  bool bring_onto_large_pages();

  const uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }
  bool is_mapped() const { return data_.get_deleter().mapped > 0; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data()), size_}; }

 private:
  struct Unmap {
    size_t mapped;  // 0: not ours
    void operator()(const uint8_t* data) const;
  };
  bool map_onto_large_pages();

  std::shared_ptr<const Descriptor> file_;  // of weights
  std::unique_ptr<const uint8_t, Unmap> data_{nullptr, Unmap{0}};
  size_t size_ = 0;
};

using PackageFiles = std::map<std::string, FileBytes, std::less<>>;

// A folder held open, so that all of its files come from the same package even if another one takes
// its place meanwhile.
class Folder {
 public:
  explicit Folder(const std::string& path);  // an error when it is a checkpoint or no folder

  PackageFiles files() const;
  bool was_replaced() const;  // the path leads to another folder now

 private:
  bool has(const char* name) const;
  FileBytes map_file(const char* name) const;
  bool is_checkpoint() const;

  std::string path_;
  Descriptor descriptor_;
};

// The package's files among those given.
PackageFiles files_in_memory(const qla_file* files, size_t num_files);

// What the manifest says of each file that it lists.
using Checksums = std::map<std::string, std::string, std::less<>>;

struct Manifest {
  Checksums checksums;
  WeightLayout layout;
};
// The manifest is sound, and every file that it lists has the size it says.
Manifest check_manifest(const PackageFiles& files);

// Reads all of a file; stops between pieces of it.
void check_checksum(const PackageFiles& files, const Checksums& listed, const char* name,
                    const StopRequest& stop);

}  // namespace qla
