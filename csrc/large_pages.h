// Memory that may use pages of 2 MiB: reading weights in order is about twice as fast from them as
// from scattered pages of 4 KiB, which the processor's prefetchers do not cross.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qla {

constexpr size_t kLargePage = size_t{2} << 20;

inline size_t round_to_large_pages(size_t size) {
  return (size + kLargePage - 1) / kLargePage * kLargePage;
}

// mmap at an address that large pages fit, and a hint to use them; null where mmap fails.
// Whether the system follows the hint is its own affair: no harm where it does not.
void* map_large_pages(size_t size, int protection, int flags, int descriptor);

// Whether nearly all of a range, which has been read or written, lies on large pages.
bool is_on_large_pages(const void* data, size_t size);

}  // namespace qla
