#include "package/package.h"

#include <cstdio>

#include "error.h"
#include "last_level_cache.h"
#include "package/config_file.h"
#include "package/package_files.h"
#include "package/strict_json.h"
#include "package/weights_file.h"

namespace qla {

struct Package::Mapping {
  FileBytes weights, tokenizer;
};

namespace {

// Names the package in an error and says what helps.
Error with_remedy(const Error& error, const std::string& source) {
  if (error.code != QLA_BAD_PACKAGE && error.code != QLA_UNSUPPORTED) return error;
  const char* remedy = error.code == QLA_UNSUPPORTED
                           ? ". Install a newer qla_runtime, or convert the checkpoint again"
                             " with this version's `qla convert`"
                           : ". Convert the checkpoint again with `qla convert`";
  return Error(error.code, "package '" + source + "': " + error.what() + remedy);
}

void check_weights_size(const FileBytes& weights, const EncoderSpec& encoder,
                        const TaskSpec& task) {
  const size_t most = most_weight_bytes(encoder, task);
  if (weights.size() <= most) return;
  bad_package(kWeightsFile, "has " + std::to_string(weights.size()) +
                                " bytes; a model of config.json's shapes has at most " +
                                std::to_string(most));
}

std::string megabytes(size_t n) {
  char text[32];
  snprintf(text, sizeof text, "%.1f MB", static_cast<double>(n) / 1e6);
  return text;
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
    package->config_json = files.find(kConfigFile)->second.text();
    ConfigFile config = read_config_file(package->config_json);
    package->name = config.name;
    package->encoder = config.encoder;
    package->task = config.task;
    package->length_configs_json = files.find(kLengthsFile)->second.text();
    package->lengths = read_lengths_file(package->length_configs_json, config.encoder.layers);

    FileBytes& weights = files.find(kWeightsFile)->second;
    check_weights_size(weights, package->encoder, package->task);
    check_checksum(files, listed, kWeightsFile, stop);
    place_weights(weights, layout, placement, config.layers, *package);
    package->weights = read_weights_file(weights, layout, package->encoder, package->task,
                                         std::move(config.layers), package->resident_.get(), stop);
    package->weight_bytes = weights.size();
    FileBytes& tokenizer = files.find(kTokenizerFile)->second;
    package->mapping_.reset(new Package::Mapping{std::move(weights), std::move(tokenizer)});
    package->tokenizer_json = package->mapping_->tokenizer.text();
    return package;
  } catch (const Error& error) {
    throw with_remedy(error, source);
  }

 private:
  // Decides where the linear layers' weights will lie; makes room where that is not the file.
  static void place_weights(FileBytes& file, WeightLayout layout, WeightPlacement placement,
                            const std::vector<Layer>& layers, Package& package) {
    size_t bytes = 0;
    for (const Layer& layer : layers) bytes += layer.weight_bytes();
    const size_t cache = last_level_cache_bytes();
    const bool streamed = bytes > cache;  // from memory, at every call
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
