#include "named_lengths.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "length_plan.h"

namespace qla {
namespace {

NamedLength read_length(const nlohmann::json& entry) {
  NamedLength length;
  length.name = entry.value("name", "");
  length.rule = entry["rule"] == "tokens" ? QLA_LENGTH_TOKENS : QLA_LENGTH_RATIO;
  length.values = entry["values"].get<std::vector<double>>();
  length.keep_cls = entry["keep_cls"].get<bool>();
  if (entry.contains("accuracy")) {
    const nlohmann::json& accuracy = entry["accuracy"];
    length.measured = true;
    length.metric = accuracy["metric"].get<std::string>();
    length.accuracy = accuracy["value"].get<double>();
    length.data = accuracy["data"].get<std::string>();
  }
  return length;
}

int64_t macs_of(const Package& package, int max_length, const NamedLength& length) {
  std::vector<int32_t> tokens(static_cast<size_t>(package.encoder.layers) + 1);
  const qla_length_config config = length.plain();
  plan_lengths(&config, package.encoder.layers, max_length, tokens.data());
  return count_macs(package.encoder, package.task, tokens.data());
}

bool same_config(const NamedLength& a, const NamedLength& b) {
  return a.rule == b.rule && a.values == b.values && a.keep_cls == b.keep_cls;
}

// Every config once, `full` first, so that no twin hides it.
std::vector<const NamedLength*> distinct(const std::vector<NamedLength>& all,
                                         const NamedLength* full) {
  std::vector<const NamedLength*> found{full};
  for (const NamedLength& length : all) {
    const auto twin = [&](const NamedLength* other) { return same_config(*other, length); };
    if (std::none_of(found.begin(), found.end(), twin)) found.push_back(&length);
  }
  return found;
}

}  // namespace

qla_length_config NamedLength::plain() const {
  return {rule, keep_cls ? 1 : 0, values.data(), static_cast<int32_t>(values.size())};
}

NamedLengths::NamedLengths(const Package& package) {
  const auto file = nlohmann::json::parse(package.length_configs_json);
  max_length_ = nlohmann::json::parse(package.config_json)["task"]["max_length"].get<int>();
  all_.reserve(file["configs"].size() + file["frontier"].size());
  for (const nlohmann::json& entry : file["configs"]) all_.push_back(read_length(entry));
  size_t number = 0;
  for (const nlohmann::json& entry : file["frontier"]) {
    NamedLength length = read_length(entry);
    length.in_frontier = true;
    length.name = free_name(length.name, ++number);
    all_.push_back(std::move(length));
  }
  for (NamedLength& length : all_) length.macs = macs_of(package, max_length_, length);
  const NamedLength* full = find("full");
  for (NamedLength& length : all_) {
    length.macs_share = static_cast<double>(length.macs) / static_cast<double>(full->macs);
  }

  const std::vector<const NamedLength*> candidates = distinct(all_, full);
  for (const NamedLength* length : candidates) {
    if (full->measured && length->measured && length->metric == full->metric &&
        length->data == full->data) {
      best_first_.push_back(length);
    }
  }
  const bool by_accuracy = best_first_.size() > 1;
  if (!by_accuracy) best_first_ = candidates;
  std::stable_sort(best_first_.begin(), best_first_.end(),
                   [by_accuracy](const NamedLength* a, const NamedLength* b) {
                     if (!by_accuracy) return a->macs > b->macs;
                     if (a->accuracy != b->accuracy) return a->accuracy > b->accuracy;
                     return a->macs < b->macs;
                   });
}

const NamedLength* NamedLengths::find(const std::string& name) const {
  for (const NamedLength& length : all_) {
    if (length.name == name) return &length;
  }
  return nullptr;
}

std::string NamedLengths::free_name(const std::string& own, size_t number) const {
  if (!own.empty() && !find(own)) return own;
  std::string name = "frontier-" + std::to_string(number);
  while (find(name)) name += "'";
  return name;
}

}  // namespace qla
