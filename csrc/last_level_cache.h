// How much memory a core keeps close: what is larger comes from memory at every call.
#pragma once

#include <cstddef>

namespace qla {

// Bytes of the largest cache that this thread's core shares, as the kernel tells it; 16 MiB where
// it does not.
size_t last_level_cache_bytes();

}  // namespace qla
