// CRC-32C (Castagnoli): the checksum of every package file. Needs SSE4.2, our baseline.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qla {

uint32_t crc32c(const void* data, size_t size);

}  // namespace qla
