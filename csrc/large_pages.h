// Memory that may use pages of 2 MiB: reading weights in order is twice as fast from them as from
// pages of 4 KiB, which the processor's prefetchers do not cross.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace qla {

constexpr size_t kLargePage = size_t{2} << 20;

inline size_t round_to_large_pages(size_t size) {
  return (size + kLargePage - 1) / kLargePage * kLargePage;
}

// mmap at an address that large pages fit, and a hint to use them; null where mmap fails.
// Whether the system follows the hint is its own affair: no harm where it does not.
inline void* map_large_pages(size_t size, int protection, int flags, int descriptor) {
  // Reserve more than needed, put the mapping where it is aligned, and give back the rest.
  const size_t reserved = round_to_large_pages(size) + kLargePage;
  void* room =
      mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(room);
  const uintptr_t aligned = round_to_large_pages(begin);
  void* const wanted = reinterpret_cast<void*>(aligned);
  void* const mapped = mmap(wanted, size, protection, flags | MAP_FIXED, descriptor, 0);
  if (mapped == MAP_FAILED) {
    munmap(room, reserved);
    return nullptr;
  }
  constexpr size_t kPage = 4096;
  const uintptr_t end = aligned + (size + kPage - 1) / kPage * kPage;
  if (aligned > begin) munmap(room, aligned - begin);
  if (begin + reserved > end) munmap(reinterpret_cast<void*>(end), begin + reserved - end);
  madvise(mapped, size, MADV_HUGEPAGE);
  return mapped;
}

}  // namespace qla
