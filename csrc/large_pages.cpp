#include "large_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

namespace qla {

void* map_large_pages(size_t size, int protection, int flags, int descriptor) {
  // Reserve more than needed, put the mapping where it is aligned, and give back the rest.
  const size_t reserved = round_to_large_pages(size) + kLargePage;
  constexpr int kReserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* const room = mmap(nullptr, reserved, PROT_NONE, kReserve, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(room);
  const uintptr_t aligned = round_to_large_pages(begin);
  void* const mapped =
      mmap(reinterpret_cast<void*>(aligned), size, protection, flags | MAP_FIXED, descriptor, 0);
  if (mapped == MAP_FAILED) {
    munmap(room, reserved);
    return nullptr;
  }
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t end = aligned + (size + page - 1) / page * page;
  if (aligned > begin) munmap(room, aligned - begin);
  if (begin + reserved > end) munmap(reinterpret_cast<void*>(end), begin + reserved - end);
  madvise(mapped, size, MADV_HUGEPAGE);
  return mapped;
}

bool is_on_large_pages(const void* data, size_t size) {
  FILE* const maps = fopen("/proc/self/smaps", "re");
  if (maps == nullptr) return false;
  const auto address = reinterpret_cast<uintptr_t>(data);
  size_t kilobytes = 0;
  bool inside = false;
  char line[512];
  while (fgets(line, sizeof line, maps)) {
    unsigned long begin, end, value;
    char name[64];
    if (sscanf(line, "%lx-%lx ", &begin, &end) == 2) {
      if (inside) break;
      inside = begin <= address && address < end;
    } else if (inside && sscanf(line, "%63[A-Za-z]: %lu kB", name, &value) == 2) {
      if (strstr(name, "HugePages") || strstr(name, "PmdMapped")) kilobytes += value;
    }
  }
  fclose(maps);
  return 1024 * kilobytes >= size / 10 * 9;
}

}  // namespace qla
