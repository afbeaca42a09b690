#include "named_lengths.h"

#include <algorithm>

#include "lengths.h"

namespace qla {
namespace {

int64_t macs_of(const Package& package, const NamedLength& length) {
  std::vector<int32_t> tokens(static_cast<size_t>(package.encoder.layers) + 1);
  const qla_length_config config = length.plain();
  count_tokens(&config, package.encoder.layers, package.task.max_length, tokens.data());
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
  const LengthsFile& file = package.lengths;
  all_.reserve(file.configs.size() + file.frontier.size());
  for (const StoredLength& stored : file.configs) all_.push_back({stored});
  size_t number = 0;
  for (const StoredLength& stored : file.frontier) {
    NamedLength length{stored};
    length.in_frontier = true;
    length.name = free_name(length.name, ++number);
    all_.push_back(std::move(length));
  }
  for (NamedLength& length : all_) length.macs = macs_of(package, length);
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
