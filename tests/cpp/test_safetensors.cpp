// Attacks on the safetensors header. Files live in heap blocks of their exact size, so that the
// address sanitizer sees every byte read too far.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "error.h"
#include "package/safetensors.h"

namespace qla {
namespace {

constexpr const char* kFile = "model.safetensors";

struct Free {
  void operator()(uint8_t* data) const { std::free(data); }
};

TensorMap read(const std::string& content) {
  void* block = nullptr;
  if (posix_memalign(&block, 64, content.empty() ? 1 : content.size()) != 0) throw std::bad_alloc();
  const std::unique_ptr<uint8_t, Free> data(static_cast<uint8_t*>(block));
  std::memcpy(data.get(), content.data(), content.size());
  return read_safetensors(data.get(), content.size(), kFile);
}

std::string with_length(uint64_t length, const std::string& rest) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + rest;
}

// The file of this header, padded with blanks as the format wants, and `data_size` bytes of data.
std::string file_of(std::string header, size_t data_size) {
  while ((8 + header.size()) % 64 != 0) header += ' ';
  return with_length(header.size(), header) + std::string(data_size, '\1');
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

const std::string kFirst = entry("a", "F32", "[2,16]", "[0,128]");
const std::string kSecond = entry("b", "I8", "[64]", "[128,192]");
const std::string kGood = "{\"__metadata__\":{\"made\":\"here\"}," + kFirst + "," + kSecond + "}";

void expect_refused(const std::string& content, const std::string& words) {
  try {
    read(content);
    ADD_FAILURE() << "not refused: " << words;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_EQ(error.code, QLA_BAD_PACKAGE);
    EXPECT_EQ(message.find("model.safetensors: "), 0u) << message;
    EXPECT_NE(message.find(words), std::string::npos) << message << "\nlacks: " << words;
  }
}

// Two tensors, the first of them as given.
void expect_first_refused(const std::string& first, const std::string& words) {
  expect_refused(file_of("{" + first + "," + kSecond + "}", 192), words);
}

TEST(Safetensors, ReadsAGoodFile) {
  const TensorMap tensors = read(file_of(kGood, 192));
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors.at("a").dtype, Dtype::kF32);
  EXPECT_EQ(tensors.at("a").shape, (std::vector<int64_t>{2, 16}));
  EXPECT_EQ(tensors.at("b").size, 64u);
  EXPECT_EQ(tensors.at("b").data - tensors.at("a").data, 128);
}

TEST(Safetensors, RefusesBadHeaderLengths) {
  const std::string good = file_of(kGood, 192);
  for (const uint64_t length : {uint64_t{1} << 60, ~uint64_t{0}, ~uint64_t{0} - 7,
                                uint64_t{1} << 31, uint64_t{good.size() - 7}}) {
    expect_refused(with_length(length, good.substr(8)), "header length is");
  }
  expect_refused(with_length(1, good.substr(8)), "multiple of 64");
  expect_refused(with_length(56, good.substr(8)), "not valid JSON");
  expect_refused("", "has 0 bytes");
  expect_refused("1234567", "has 7 bytes");
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::string good = file_of(kGood, 192);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_THROW(read(good.substr(0, size)), Error) << size;
  }
  expect_refused(good + "x", "must cover the file");
}

TEST(Safetensors, RefusesOverlapsAndGaps) {
  expect_refused(file_of("{" + kFirst + "," + entry("b", "I8", "[128]", "[64,192]") + "}", 192),
                 "tensor 'b' begins at data byte 64 where 128 was due");
  expect_refused(file_of("{" + kFirst + "," + entry("b", "I8", "[64]", "[192,256]") + "}", 256),
                 "neither overlap nor leave gaps");
  expect_refused(file_of("{" + kFirst + "," + entry("b", "F32", "[2,16]", "[0,128]") + "}", 128),
                 "neither overlap nor leave gaps");
  expect_refused(file_of("{" + kFirst + "}", 192), "tensors end at data byte 128 of 192");
  expect_refused(file_of("{}", 64), "tensors end at data byte 0 of 64");
}

TEST(Safetensors, RefusesWrongEntries) {
  expect_first_refused(entry("a", "F64", "[16]", "[0,128]"), "a.dtype is 'F64'");
  expect_first_refused(entry("a", "F32", "[2,17]", "[0,128]"), "not what F32 (2, 17) takes");
  expect_first_refused(entry("a", "F32", "[]", "[0,128]"), "1 to 8 dimensions");
  expect_first_refused(entry("a", "F32", "[0]", "[0,128]"), "a.shape[0] is 0");
  expect_first_refused(entry("a", "F32", "[-2,-16]", "[0,128]"), "a.shape[0] is -2");
  expect_first_refused(entry("a", "F32", "[32.0]", "[0,128]"), "a.shape[0] is 32.0");
  expect_first_refused(entry("a", "F32", "[1,1,1,1,1,1,1,1,32]", "[0,128]"), "1 to 8 dimensions");
  expect_first_refused(entry("a", "F32", "[4294967296,4294967296]", "[0,0]"), "has 0 bytes");
  expect_first_refused(entry("a", "F32", "[4611686018427387905,32]", "[0,128]"), "not what F32");
  expect_first_refused(entry("a", "F32", "[18446744073709551615]", "[0,128]"), "an integer from 1");
  expect_first_refused(entry("a", "F32", "[32]", "[0,9223372036854775807]"), "a.data_offsets[1]");
  expect_first_refused(entry("a", "F32", "[32]", "[128,0]"), "a.data_offsets[1] is 0");
  expect_first_refused(entry("a", "F32", "[32]", "[0]"), "a pair [begin, end]");
  expect_first_refused(entry("a", "F32", "[32]", "{}"), "it must be an array");
  expect_first_refused(kFirst + "," + kFirst, "occurs twice");
  expect_first_refused("\"a\":7", "it must be an object");
  expect_first_refused("\"a\":{\"dtype\":\"F32\",\"shape\":[32]}", "'a.data_offsets' is missing");
  expect_first_refused("\"a\":{\"dtype\":\"F32\",\"shape\":[32],\"data_offsets\":[0,128],\"x\":1}",
                       "unknown key 'x' in a");
  expect_refused(file_of("{" + entry("a", "I8", "[65]", "[0,65]") + "}", 65), "a multiple of 64");
  expect_refused(file_of("{\"__metadata__\":{\"x\":1}," + kFirst + "}", 128), "__metadata__.x");
  expect_refused(file_of("[]", 64), "it must be an object");
}

TEST(Safetensors, RefusesDepthAndLongNamesGracefully) {
  expect_refused(file_of("{\"a\":" + std::string(100000, '['), 64), "nested deeper than");
  const std::string message_of_long_name = "'" + std::string(80, 'n') + "...'";
  expect_first_refused(entry(std::string(5000, 'n'), "F32", "[16]", "[0,128]"),
                       message_of_long_name);
}

// What a mutated header may do: be refused, or still describe a file within bounds.
TEST(Safetensors, RandomMutationsStayInBounds) {
  std::mt19937 random(3);
  const std::string good = file_of(kGood, 192);
  const std::string alphabet = "0123456789-.eE[]{}\",:aFI8 \\u\n\x80";
  for (int round = 0; round < 20000; ++round) {
    std::string content = good;
    for (size_t edit = 0; edit <= random() % 4; ++edit) {
      const size_t at = random() % (content.size() - 192);
      const char letter = alphabet[random() % alphabet.size()];
      switch (random() % 4) {
        case 0:
          content[at] = letter;
          break;
        case 1:
          content[at] = static_cast<char>(random());
          break;
        case 2:
          content.insert(at, 1, letter);
          break;
        case 3:
          content.erase(at, 1 + random() % 8);
          break;
      }
    }
    try {
      for (const auto& [name, tensor] : read(content)) {
        ASSERT_LE(tensor.size, content.size());
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.code, QLA_BAD_PACKAGE);
    }
  }
}

}  // namespace
}  // namespace qla
