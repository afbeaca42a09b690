#include "package/strict_json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "error.h"

namespace qla {
namespace {

using nlohmann::json;

constexpr int64_t kFormatVersion = 1;
constexpr size_t kMaxDepth = 16;                // package files need 5
constexpr size_t kMaxValues = size_t{1} << 18;  // 65,536 labels, and room; bounds time and memory

// What a message says about a value it did not expect.
std::string describe(const json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (value.is_structured()) return value.is_object() ? "an object" : "an array";
  return value.dump();
}

bool contains(std::initializer_list<const char*> names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Sees every token the parser sees, before the tree is built from it.
class Watch {
 public:
  explicit Watch(const char* file) : file_(file) {}

  void see(json::parse_event_t event, const json& parsed) {
    if (++events_ > kMaxValues) {
      bad_package(file_, "holds more than " + std::to_string(kMaxValues) + " keys and values");
    }
    switch (event) {
      case json::parse_event_t::object_start:
      case json::parse_event_t::array_start:
        open_.emplace_back();
        if (open_.size() > kMaxDepth) {
          bad_package(file_, "nested deeper than " + std::to_string(kMaxDepth) + " levels");
        }
        break;
      case json::parse_event_t::object_end:
      case json::parse_event_t::array_end:
        open_.pop_back();
        break;
      case json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!open_.back().insert(key).second) {
          bad_package(file_, "key " + quote(key) + " occurs twice in one object");
        }
        break;
      }
      case json::parse_event_t::value:
        break;
    }
  }

 private:
  const char* file_;
  size_t events_ = 0;
  std::vector<std::set<std::string>> open_;  // keys so far of each object (or array) we are in
};

// The parser would skip a byte order mark, and take NUL for the end of the text.
void check_bytes(std::string_view text, const char* file) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") {
    bad_package(file, "not valid JSON: begins with a byte order mark");
  }
  const size_t nul = text.find('\0');
  if (nul != std::string_view::npos) {
    bad_package(file, "not valid JSON at byte " + std::to_string(nul) + ": a NUL byte");
  }
}

// Past a text's closing quote; `at` is behind its opening one. The text is known to be JSON.
size_t skip_string(std::string_view json, size_t at) {
  while (json[at] != '"') at += json[at] == '\\' ? 2u : 1u;
  return at + 1;
}

template <typename T>
bool fits(std::string_view digits) {
  T value;
  return std::from_chars(digits.begin(), digits.end(), value).ec == std::errc();
}

// The parser turns an integer that 64 bits don't hold into a double, where Python keeps it whole.
void check_integers(std::string_view json, const char* file) {
  for (size_t at = json.find_first_of("\"-0123456789"); at != std::string_view::npos;
       at = json.find_first_of("\"-0123456789", at)) {
    if (json[at] == '"') {
      at = skip_string(json, at + 1);
      continue;
    }
    const size_t end = std::min(json.find_first_not_of("0123456789+-.eE", at), json.size());
    const std::string_view number = json.substr(at, end - at);
    const bool whole = number.find_first_of(".eE") == std::string_view::npos;
    if (whole && !fits<uint64_t>(number) && !fits<int64_t>(number)) {
      bad_package(file, "not valid JSON at byte " + std::to_string(at) + ": the integer " +
                            quote(number) + " does not fit 64 bits");
    }
    at = end;
  }
}

json parse(std::string_view text, const char* file) {
  Watch watch(file);
  const auto callback = [&](int, json::parse_event_t event, json& parsed) {
    watch.see(event, parsed);
    return true;
  };
  try {
    return json::parse(text.begin(), text.end(), callback);
  } catch (const json::parse_error& error) {
    bad_package(file, "not valid JSON at byte " + std::to_string(error.byte));
  } catch (const json::exception&) {  // a number too large for a double
    bad_package(file, "not valid JSON: a number is out of range");
  }
}

}  // namespace

void bad_package(std::string_view file, const std::string& what) {
  throw Error(QLA_BAD_PACKAGE, std::string(file) + ": " + what);
}

void unsupported(std::string_view file, const std::string& what) {
  throw Error(QLA_UNSUPPORTED, std::string(file) + ": " + what);
}

std::string quote(std::string_view text) {
  constexpr size_t kLongest = 80;
  std::string out = "'";
  for (const char c : text.substr(0, kLongest)) out += c >= ' ' && c <= '~' ? c : '?';
  return out + (text.size() > kLongest ? "...'" : "'");
}

json parse_json(std::string_view text, const char* file, size_t max_size) {
  if (text.size() > max_size) {
    bad_package(file, "the JSON text has " + std::to_string(text.size()) + " bytes; at most " +
                          std::to_string(max_size) + " are allowed");
  }
  check_bytes(text, file);
  json root = parse(text, file);
  check_integers(text, file);
  return root;
}

void JsonEntry::bad(const std::string& rule) const {
  const std::string where = path_.empty() ? "the whole file" : path_;
  bad_package(file_, where + " is " + describe(*value_) + "; it must be " + rule);
}

std::string JsonEntry::child(std::string_view key) const {
  return path_.empty() ? std::string(key) : path_ + "." + std::string(key);
}

void JsonEntry::check_keys(std::initializer_list<const char*> required,
                           std::initializer_list<const char*> optional) const {
  for (const auto& [key, entry] : members()) {
    if (!contains(required, key) && !contains(optional, key)) {
      bad_package(file_, "unknown key " + quote(key) +
                             (path_.empty() ? std::string() : " in " + path_) +
                             "; this version refuses what it does not know");
    }
  }
  for (const char* key : required) (*this)[key];
}

bool JsonEntry::has(const char* key) const { return value_->is_object() && value_->contains(key); }

JsonEntry JsonEntry::operator[](const char* key) const {
  if (!value_->is_object()) bad("an object");
  const auto found = value_->find(key);
  if (found == value_->end()) bad_package(file_, "key " + quote(child(key)) + " is missing");
  return JsonEntry(*found, file_, child(key));
}

size_t JsonEntry::size() const {
  if (!value_->is_array()) bad("an array");
  return value_->size();
}

std::vector<JsonEntry> JsonEntry::items() const {
  if (!value_->is_array()) bad("an array");
  std::vector<JsonEntry> out;
  for (const json& item : *value_) {
    out.push_back(JsonEntry(item, file_, path_ + "[" + std::to_string(out.size()) + "]"));
  }
  return out;
}

std::vector<std::pair<std::string, JsonEntry>> JsonEntry::members() const {
  if (!value_->is_object()) bad("an object");
  std::vector<std::pair<std::string, JsonEntry>> out;
  for (const auto& [key, value] : value_->items()) {
    const std::string name = quote(key);
    out.emplace_back(key, JsonEntry(value, file_, child(name.substr(1, name.size() - 2))));
  }
  return out;
}

void JsonEntry::check_version() const {
  const int64_t version = (*this)["format_version"].integer(1, INT64_MAX);
  if (version > kFormatVersion) {
    unsupported(file_, "format_version is " + std::to_string(version) + "; this build reads 1");
  }
}

int64_t JsonEntry::integer(int64_t lowest, int64_t highest) const {
  const std::string rule =
      "an integer from " + std::to_string(lowest) + " to " + std::to_string(highest);
  if (!value_->is_number_integer()) bad(rule);
  if (value_->is_number_unsigned() && value_->get<uint64_t>() > INT64_MAX) bad(rule);
  const auto value = value_->get<int64_t>();
  if (value < lowest || value > highest) bad(rule);
  return value;
}

double JsonEntry::number() const {
  if (!value_->is_number()) bad("a number");
  const auto value = value_->get<double>();
  if (!std::isfinite(value)) bad("a finite number");
  return value;
}

bool JsonEntry::boolean() const {
  if (!value_->is_boolean()) bad("true or false");
  return value_->get<bool>();
}

const std::string& JsonEntry::text() const {
  if (!value_->is_string()) bad("a text");
  return value_->get_ref<const std::string&>();
}

size_t JsonEntry::one_of(std::initializer_list<const char*> known) const {
  const auto found = std::find(known.begin(), known.end(), text());
  if (found != known.end()) return static_cast<size_t>(found - known.begin());
  std::string names;
  for (const char* name : known) names += (names.empty() ? "'" : ", '") + std::string(name) + "'";
  unsupported(file_, path_ + " is " + describe(*value_) + "; this version knows " + names);
}

}  // namespace qla
