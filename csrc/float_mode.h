// The float mode that every result is computed in, whatever the caller's is.
#pragma once

#include <xmmintrin.h>

namespace qla {

// Nearest even, denormals flushed on both sides (docs/numerics.md): they would cost hundreds of
// cycles each and mean nothing here.
class FloatMode {
 public:
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }
  ~FloatMode() { _mm_setcsr(saved_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
  const unsigned saved_;
};

}  // namespace qla
