// CRC-32C (Castagnoli): the checksum of every package file. Needs SSE4.2, our baseline.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qla {

// `before`: the checksum of the bytes in front of these, for data that is summed piece by piece.
uint32_t crc32c(const void* data, size_t size, uint32_t before = 0);

}  // namespace qla
