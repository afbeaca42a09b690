#include "last_level_cache.h"

#include <algorithm>
#include <cstdio>

namespace qla {

size_t last_level_cache_bytes() {
  // Not sysconf: on a processor of several dies it adds up caches that a core cannot use.
  size_t largest = 0;
  for (int index = 0; index < 8; ++index) {
    char path[80];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    FILE* file = fopen(path, "re");
    if (file == nullptr) break;
    unsigned long size = 0;
    char unit = 0;
    const int read = fscanf(file, "%lu%c", &size, &unit);
    fclose(file);
    const int shift = unit == 'G' ? 30 : unit == 'M' ? 20 : unit == 'K' ? 10 : 0;
    if (read == 2) largest = std::max(largest, size_t{size} << shift);
  }
  return largest ? largest : size_t{16} << 20;
}

}  // namespace qla
