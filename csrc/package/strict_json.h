// Strict JSON: how package files are read. Every rule a file breaks is a qla::Error that names the
// file, the entry and the rule; nothing is skipped, defaulted or guessed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "qla/qla.h"

namespace qla {

// Raise "FILE: WHAT" as QLA_BAD_PACKAGE or, for what a later version may know, QLA_UNSUPPORTED.
[[noreturn]] void bad_package(std::string_view file, const std::string& what);
[[noreturn]] void unsupported(std::string_view file, const std::string& what);

// A name from a file, fit for a message: quoted, ASCII, of bounded length.
std::string quote(std::string_view text);

// Refuses texts over max_size, deep nesting, duplicate keys and anything that is not JSON. Python
// reads the accepted texts once more: what parsers may disagree about (a byte order mark, NUL,
// integers that no 64 bits hold) is refused as well, so that its json.loads finds the same values.
nlohmann::json parse_json(std::string_view text, const char* file, size_t max_size);

// One value of a parsed file and the way to it ("encoder.layers"). A view: the root must outlive
// it.
class JsonEntry {
 public:
  JsonEntry(const nlohmann::json& root, const char* file) : value_(&root), file_(file) {}

  // An object with all the required keys and none but these.
  void check_keys(std::initializer_list<const char*> required,
                  std::initializer_list<const char*> optional = {}) const;
  bool has(const char* key) const;              // false too when this is no object
  JsonEntry operator[](const char* key) const;  // a missing key is an error
  size_t size() const;                          // of an array
  std::vector<JsonEntry> items() const;         // of an array
  std::vector<std::pair<std::string, JsonEntry>> members() const;  // of an object

  // This file's format_version is one we read. Ask before check_keys: a later one may have others.
  void check_version() const;

  int64_t integer(int64_t lowest, int64_t highest) const;
  double number() const;  // finite
  bool boolean() const;
  const std::string& text() const;
  // The index of this text among `known`; another text is a value of a later version.
  size_t one_of(std::initializer_list<const char*> known) const;

  [[noreturn]] void bad(const std::string& rule) const;
  const std::string& path() const { return path_; }

 private:
  JsonEntry(const nlohmann::json& value, const char* file, std::string path)
      : value_(&value), file_(file), path_(std::move(path)) {}
  std::string child(std::string_view key) const;

  const nlohmann::json* value_;
  const char* file_;
  std::string path_;
};

}  // namespace qla
