#include "package/lengths_file.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>

#include "package/package_files.h"
#include "package/strict_json.h"

namespace qla {
namespace {

double read_value(const JsonEntry& entry, qla_length_rule rule) {
  if (rule == QLA_LENGTH_TOKENS) return static_cast<double>(entry.integer(1, INT32_MAX));
  const double share = entry.number();
  if (!(share > 0.0 && share <= 1.0)) entry.bad("a share above 0 and at most 1");
  return share;
}

void read_accuracy(const JsonEntry& entry, StoredLength* length) {
  entry.check_keys({"metric", "value", "data"});
  length->measured = true;
  length->metric = entry["metric"].text();
  length->accuracy = entry["value"].number();
  length->data = entry["data"].text();
}

std::vector<double> read_values(const JsonEntry& entry, qla_length_rule rule, int layers) {
  const auto items = entry.items();
  if (items.size() != static_cast<size_t>(layers)) {
    entry.bad("an array with one number per layer (" + std::to_string(layers) + ", not " +
              std::to_string(items.size()) + ")");
  }
  std::vector<double> values;
  for (const JsonEntry& item : items) {
    const double value = read_value(item, rule);
    if (!values.empty() && value > values.back()) item.bad("no more than the layer before keeps");
    values.push_back(value);
  }
  return values;
}

// All but the name.
StoredLength read_length(const JsonEntry& entry, int layers) {
  StoredLength length;
  length.rule = static_cast<qla_length_rule>(entry["rule"].one_of({"ratio", "tokens"}));
  length.keep_cls = entry["keep_cls"].boolean();
  length.values = read_values(entry["values"], length.rule, layers);
  if (entry.has("macs_share")) read_value(entry["macs_share"], QLA_LENGTH_RATIO);
  if (entry.has("accuracy")) read_accuracy(entry["accuracy"], &length);
  return length;
}

bool keeps_all(const StoredLength& length) {
  return length.rule == QLA_LENGTH_RATIO && length.values.back() == 1.0;
}

void check_escalation(const JsonEntry& entry, const std::set<std::string>& names) {
  entry.check_keys({"cheap", "dear", "threshold"}, {"accuracy"});
  for (const char* key : {"cheap", "dear"}) {
    if (names.count(entry[key].text()) == 0) entry[key].bad("the name of a config");
  }
  const double threshold = entry["threshold"].number();
  if (!(threshold >= 0.0 && threshold <= 1.0)) entry["threshold"].bad("a confidence, 0 to 1");
  StoredLength ignored;
  if (entry.has("accuracy")) read_accuracy(entry["accuracy"], &ignored);
}

}  // namespace

LengthsFile read_lengths_file(std::string_view text, int layers) {
  const nlohmann::json root = parse_json(text, kLengthsFile, kMaxJsonSize);
  const JsonEntry entries(root, kLengthsFile);
  entries.check_version();
  entries.check_keys({"format_version", "configs", "frontier"}, {"escalations"});

  LengthsFile file;
  std::set<std::string> names;
  for (const JsonEntry& entry : entries["configs"].items()) {
    StoredLength length = read_length(entry, layers);
    entry.check_keys({"name", "rule", "values", "keep_cls"}, {"macs_share", "accuracy"});
    const JsonEntry name = entry["name"];
    length.name = name.text();
    if (length.name.empty()) name.bad("a name, not empty");
    if (!names.insert(length.name).second) name.bad("a name no other config has");
    if (length.name == "full" && !keeps_all(length)) {
      entry["values"].bad("ratios of 1, for 'full'");
    }
    file.configs.push_back(std::move(length));
  }
  if (names.count("full") == 0) entries["configs"].bad("an array with a config named 'full'");
  for (const JsonEntry& entry : entries["frontier"].items()) {
    StoredLength length = read_length(entry, layers);
    entry.check_keys({"rule", "values", "keep_cls"}, {"name", "macs_share", "accuracy"});
    if (entry.has("name")) length.name = entry["name"].text();
    file.frontier.push_back(std::move(length));
  }
  if (!entries.has("escalations")) return file;
  for (const JsonEntry& entry : entries["escalations"].items()) check_escalation(entry, names);
  return file;
}

}  // namespace qla
