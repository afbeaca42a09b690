// What the engine's JSON parser makes of a text, for tests/test_json_agrees.py: a text per line of
// standard input, in hexadecimal; its values per line of standard output, or "refused: WHY".
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "error.h"
#include "package/strict_json.h"

namespace {

std::string from_hex(const std::string& digits) {
  std::string text;
  for (size_t i = 0; i + 1 < digits.size(); i += 2) {
    text += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return text;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    try {
      const nlohmann::json root = qla::parse_json(from_hex(line), "text", size_t{1} << 20);
      std::cout << root.dump(-1, ' ', true) << "\n";
    } catch (const qla::Error& error) {
      std::cout << "refused: " << error.what() << "\n";
    }
  }
}
