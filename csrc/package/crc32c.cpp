#include "package/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace qla {
namespace {

// The crc32 instruction takes a new operand each cycle but answers after three, so three streams
// run side by side. Their sums are joined by linear algebra: feeding zeros into a CRC register is a
// linear map over GF(2), and a 32 x 32 bit matrix (one column per register bit) says it all.
constexpr size_t kStream = 4096;  // bytes per stream; a power of two
using Matrix = std::array<uint32_t, 32>;

constexpr uint32_t apply(const Matrix& matrix, uint32_t vector) {
  uint32_t result = 0;
  for (size_t bit = 0; bit < 32; ++bit) result ^= matrix[bit] & (0u - (vector >> bit & 1u));
  return result;
}

// What kStream zero bytes do to the register: one zero bit, squared until it stands for all of
// them.
constexpr Matrix zeros_of_a_stream() {
  Matrix matrix{};
  matrix[0] = 0x82f63b78u;  // the polynomial, bit-reflected
  for (size_t bit = 1; bit < 32; ++bit) matrix[bit] = 1u << (bit - 1);
  for (size_t bits = 1; bits < kStream * 8; bits *= 2) {
    const Matrix once = matrix;
    for (size_t bit = 0; bit < 32; ++bit) matrix[bit] = apply(once, once[bit]);
  }
  return matrix;
}

constexpr Matrix kSkipStream = zeros_of_a_stream();

uint64_t load64(const uint8_t* bytes) {
  uint64_t value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

}  // namespace

uint32_t crc32c(const void* data, size_t size, uint32_t before) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint64_t crc = ~before;
  for (; size >= 3 * kStream; bytes += 3 * kStream, size -= 3 * kStream) {
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < kStream; i += 8) {
      crc = _mm_crc32_u64(crc, load64(bytes + i));
      second = _mm_crc32_u64(second, load64(bytes + kStream + i));
      third = _mm_crc32_u64(third, load64(bytes + 2 * kStream + i));
    }
    crc = apply(kSkipStream, static_cast<uint32_t>(crc)) ^ second;
    crc = apply(kSkipStream, static_cast<uint32_t>(crc)) ^ third;
  }
  for (; size >= 8; bytes += 8, size -= 8) crc = _mm_crc32_u64(crc, load64(bytes));
  auto tail = static_cast<uint32_t>(crc);
  for (; size > 0; ++bytes, --size) tail = _mm_crc32_u8(tail, *bytes);
  return ~tail;
}

}  // namespace qla
