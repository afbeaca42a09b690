// The checksum against its definition, bit by bit, at every length the code treats differently.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "package/crc32c.h"

namespace qla {
namespace {

uint32_t by_definition(const uint8_t* bytes, size_t size) {
  uint32_t crc = 0xffffffffu;
  for (size_t i = 0; i < size; ++i) {
    crc ^= bytes[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1u ? 0x82f63b78u : 0u);
  }
  return ~crc;
}

std::vector<uint8_t> random_bytes(size_t size) {
  std::mt19937 random(7);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

TEST(Crc32c, KnownVectors) {
  EXPECT_EQ(crc32c("123456789", 9), 0xe3069283u);
  EXPECT_EQ(crc32c(nullptr, 0), 0u);
  const std::vector<uint8_t> zeros(32, 0), ones(32, 0xff);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(zeros.data(), zeros.size()), 0x8a9136aau);
  EXPECT_EQ(crc32c(ones.data(), ones.size()), 0x62a8ab43u);
}

TEST(Crc32c, EveryShortLengthAtEveryAlignment) {
  const auto bytes = random_bytes(320);
  for (size_t size = 0; size <= 300; ++size) {
    const size_t start = size % 13;
    ASSERT_EQ(crc32c(bytes.data() + start, size), by_definition(bytes.data() + start, size))
        << size;
  }
}

TEST(Crc32c, LengthsAroundTheThreeStreams) {
  const auto bytes = random_bytes(5 * 12288 + 100);
  for (size_t blocks = 1; blocks <= 5; ++blocks) {
    for (const int more : {-9, -8, -1, 0, 1, 7, 8, 9, 64}) {
      const size_t size = blocks * 12288 + static_cast<size_t>(more);
      ASSERT_EQ(crc32c(bytes.data(), size), by_definition(bytes.data(), size)) << size;
    }
  }
}

}  // namespace
}  // namespace qla
