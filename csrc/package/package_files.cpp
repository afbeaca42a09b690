#include "package/package_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "error.h"
#include "large_pages.h"
#include "package/crc32c.h"
#include "package/strict_json.h"

namespace qla {
namespace {

constexpr const char* kListedFiles[] = {kConfigFile, kWeightsFile, kTokenizerFile, kLengthsFile};

std::string hex(uint32_t crc) {
  char text[9];
  snprintf(text, sizeof text, "%08x", crc);
  return text;
}

bool is_regular(int descriptor) {
  struct stat status;
  return fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
}

// Pickles, and the zip archives torch.save puts them in.
bool looks_like_pickle(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  unsigned char magic[2] = {};
  if (file.value < 0 || !is_regular(file.value) || read(file.value, magic, 2) != 2) return false;
  return magic[0] == 0x80 || (magic[0] == 'P' && magic[1] == 'K');
}

// Tries twice: a link may lead to a folder that was replaced and deleted while it was followed.
int open_folder(const std::string& path) {
  const auto open_once = [&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); };
  const int descriptor = open_once();
  return descriptor < 0 && errno == ENOENT ? open_once() : descriptor;
}

[[noreturn]] void refuse_path(const std::string& path, int reason) {
  if (reason != ENOTDIR) {
    throw Error(QLA_BAD_PACKAGE,
                "cannot open the package folder '" + path + "': " + std::strerror(reason));
  }
  std::string what = "'" + path + "' is not a folder; a package is a folder with a manifest.json";
  if (looks_like_pickle(path)) {
    what +=
        ". This looks like a pickle, which qla never opens: convert the folder of the checkpoint"
        " with `qla convert FOLDER OUT`";
  }
  throw Error(QLA_BAD_PACKAGE, what);
}

[[noreturn]] void refuse_checkpoint(const std::string& path) {
  throw Error(QLA_BAD_PACKAGE,
              "'" + path +
                  "' is a checkpoint, not a package (it has no manifest.json); convert it:" +
                  "\n  qla convert " + path + " OUT");
}

// The manifest's checksum of itself: over its own bytes with the checksum's digits as zeros.
void check_self_checksum(std::string_view text) {
  constexpr std::string_view kKey = "\"self_crc32c\": \"", kZeros = "00000000";
  const size_t key = text.find(kKey);
  if (key == std::string_view::npos || text.find(kKey, key + 1) != std::string_view::npos) {
    bad_package(kManifestFile, "the text '\"self_crc32c\": \"' must occur exactly once");
  }
  const size_t digits = key + kKey.size();
  if (text.size() < digits + kZeros.size()) bad_package(kManifestFile, "is cut short");
  std::string zeroed(text);
  zeroed.replace(digits, kZeros.size(), kZeros);
  const std::string found = hex(crc32c(zeroed.data(), zeroed.size()));
  const std::string_view listed = text.substr(digits, kZeros.size());
  if (found != listed) {
    bad_package(kManifestFile, "checksum is " + found + ", self_crc32c says " + quote(listed) +
                                   "; the file is damaged");
  }
}

void check_listed_size(const char* name, const FileBytes& bytes, const JsonEntry& entry) {
  entry.check_keys({"size", "crc32c"});
  const int64_t size = entry["size"].integer(0, INT64_MAX);
  if (bytes.size() != static_cast<uint64_t>(size)) {
    bad_package(name, "has " + std::to_string(bytes.size()) + " bytes, the manifest says " +
                          std::to_string(size) + "; the file is cut short or was replaced");
  }
}

void check_limit(std::string_view name, size_t size) {
  if (size <= size_limit(name)) return;
  bad_package(name, "has " + std::to_string(size) + " bytes; at most " +
                        std::to_string(size_limit(name)) + " are allowed");
}

// Fetches the pages of a piece at once, where the kernel can (5.14); faults one by one cost more
// than the checksum does.
void populate(const uint8_t* data, size_t size) {
  constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t before = reinterpret_cast<uintptr_t>(data) % page;
  madvise(const_cast<uint8_t*>(data) - before, before + size, kPopulateRead);
}

}  // namespace

size_t size_limit(std::string_view name) {
  if (name == kConfigFile) return kMaxConfigSize;
  if (name == kTokenizerFile) return kMaxTokenizerSize;
  return name == kWeightsFile ? SIZE_MAX : kMaxJsonSize;
}

Descriptor::~Descriptor() {
  if (value >= 0) close(value);
}

void FileBytes::Unmap::operator()(const uint8_t* data) const {
  if (mapped > 0) munmap(const_cast<uint8_t*>(data), mapped);
}

FileBytes FileBytes::borrow(const void* data, size_t size) {
  FileBytes bytes;
  bytes.data_.reset(static_cast<const uint8_t*>(data));
  bytes.size_ = size;
  return bytes;
}

FileBytes FileBytes::map(int descriptor, size_t size) {
  FileBytes bytes;
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  if (data == MAP_FAILED) return bytes;
  bytes.data_ = decltype(bytes.data_)(static_cast<const uint8_t*>(data), Unmap{size});
  bytes.size_ = size;
  return bytes;
}

FileBytes FileBytes::map_weights(int descriptor, size_t size) {
  FileBytes bytes;
  bytes.size_ = size;
  bytes.file_ = std::make_shared<Descriptor>(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  return bytes.map_onto_large_pages() ? std::move(bytes) : FileBytes();
}

bool FileBytes::map_onto_large_pages() {
  data_.reset();
  void* const data = map_large_pages(size_, PROT_READ, MAP_SHARED, file_->value);
  if (data == nullptr) return false;
  data_ = decltype(data_)(static_cast<const uint8_t*>(data), Unmap{size_});
  return true;
}

bool FileBytes::bring_onto_large_pages() {
  if (is_on_large_pages(data(), size_)) return true;
  if (!file_) return false;
  data_.reset();
  posix_fadvise(file_->value, 0, 0, POSIX_FADV_DONTNEED);
  if (!map_onto_large_pages()) bad_package(kWeightsFile, "cannot be mapped a second time");
  populate(data(), size_);
  return is_on_large_pages(data(), size_);
}

Folder::Folder(const std::string& path) : path_(path), descriptor_(open_folder(path)) {
  if (descriptor_.value < 0) refuse_path(path, errno);
  if (!has(kManifestFile) && is_checkpoint()) refuse_checkpoint(path);
}

bool Folder::has(const char* name) const {
  return faccessat(descriptor_.value, name, F_OK, 0) == 0;
}

bool Folder::was_replaced() const {
  struct stat held, now;
  return fstat(descriptor_.value, &held) == 0 && stat(path_.c_str(), &now) == 0 &&
         (held.st_dev != now.st_dev || held.st_ino != now.st_ino);
}

// A Hugging Face checkpoint, by the files and the config keys only those have.
bool Folder::is_checkpoint() const {
  if (has("pytorch_model.bin")) return true;
  if (!has(kConfigFile)) return false;
  const FileBytes config = map_file(kConfigFile);
  return config.text().find("\"model_type\"") != std::string_view::npos ||
         config.text().find("\"architectures\"") != std::string_view::npos;
}

FileBytes Folder::map_file(const char* name) const {
  // Not blocking: opening a pipe for reading would wait for a writer.
  const Descriptor file(openat(descriptor_.value, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.value < 0) {
    bad_package(name, errno == ENOENT ? std::string("is missing") : std::strerror(errno));
  }
  struct stat status;
  if (fstat(file.value, &status) != 0) bad_package(name, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) bad_package(name, "is not a regular file");
  if (status.st_size == 0) bad_package(name, "is empty");
  check_limit(name, static_cast<size_t>(status.st_size));
  const auto size = static_cast<size_t>(status.st_size);
  FileBytes bytes = std::string_view(name) == kWeightsFile
                        ? FileBytes::map_weights(file.value, size)
                        : FileBytes::map(file.value, size);
  if (bytes.size() == 0) bad_package(name, std::string("cannot be mapped: ") + strerror(errno));
  return bytes;
}

PackageFiles Folder::files() const {
  PackageFiles files;
  files.emplace(kManifestFile, map_file(kManifestFile));
  for (const char* name : kListedFiles) files.emplace(name, map_file(name));
  return files;
}

PackageFiles files_in_memory(const qla_file* given, size_t num_files) {
  if (given == nullptr && num_files > 0) fail(QLA_INVALID_INPUT, "files must not be NULL");
  PackageFiles files;
  for (size_t i = 0; i < num_files; ++i) {
    const qla_file& file = given[i];
    if (file.name == nullptr || (file.data == nullptr && file.size > 0)) {
      fail(QLA_INVALID_INPUT, "files[%zu]: name and data must not be NULL", i);
    }
    if (!files.emplace(file.name, FileBytes::borrow(file.data, file.size)).second) {
      fail(QLA_INVALID_INPUT, "files[%zu]: %s is given twice", i, quote(file.name).c_str());
    }
  }
  const auto weights = files.find(kWeightsFile);
  if (weights != files.end() && reinterpret_cast<uintptr_t>(weights->second.data()) % 64 != 0) {
    fail(QLA_INVALID_INPUT, "%s must be aligned to 64 bytes: it is used in place", kWeightsFile);
  }
  for (const char* name :
       {kManifestFile, kConfigFile, kWeightsFile, kTokenizerFile, kLengthsFile}) {
    const auto found = files.find(name);
    if (found == files.end()) bad_package(name, "is missing");
    if (found->second.size() == 0) bad_package(name, "is empty");
    check_limit(name, found->second.size());
  }
  return files;
}

Manifest check_manifest(const PackageFiles& files) {
  const std::string_view text = files.find(kManifestFile)->second.text();
  check_self_checksum(text);
  const nlohmann::json root = parse_json(text, kManifestFile, kMaxJsonSize);
  const JsonEntry manifest(root, kManifestFile);
  // These come before the keys: a later version may have others.
  if (manifest["format"].text() != "qla-package") manifest["format"].bad("'qla-package'");
  manifest.check_version();
  manifest.check_keys({"format", "format_version", "weight_layout", "files", "self_crc32c"});
  const int layout = manifest["weight_layout"].one_of({"n64k4", "k64n16k4"});
  manifest["self_crc32c"].text();
  const JsonEntry listed = manifest["files"];
  listed.check_keys({kConfigFile, kWeightsFile, kTokenizerFile, kLengthsFile});
  Checksums checksums;
  for (const char* name : kListedFiles) {
    check_listed_size(name, files.find(name)->second, listed[name]);
    checksums.emplace(name, listed[name]["crc32c"].text());
  }
  return {std::move(checksums), layout == 0 ? WeightLayout::kN64K4 : WeightLayout::kK64N16K4};
}

void check_checksum(const PackageFiles& files, const Checksums& listed, const char* name,
                    const StopRequest& stop) {
  constexpr size_t kPiece = size_t{16} << 20;
  const FileBytes& bytes = files.find(name)->second;
  uint32_t crc = 0;
  for (size_t done = 0; done < bytes.size(); done += kPiece) {
    stop.check();
    const size_t size = std::min(kPiece, bytes.size() - done);
    if (bytes.is_mapped()) populate(bytes.data() + done, size);
    crc = crc32c(bytes.data() + done, size, crc);
  }
  const std::string& expected = listed.find(name)->second;
  if (hex(crc) != expected) {
    bad_package(name, "checksum is " + hex(crc) + ", the manifest says " + quote(expected) +
                          "; the file is damaged or was replaced");
  }
}

}  // namespace qla
