// Random operands for the kernel tests, and the float mode kernels run under.
#pragma once

#include <gtest/gtest.h>
#include <xmmintrin.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

namespace qla {

// A test once for each instruction set; it skips, saying why, those that neither this machine nor
// the AMX emulator lets us run. tests/test_cpp.py picks instruction sets by these names.
class OnEveryIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    const IsaStatus status = isa_status(GetParam());
    if (!status.usable) GTEST_SKIP() << isa_name(GetParam()) << ": " << status.reason;
  }
};
#define QLA_TEST_ON_EVERY_ISA(suite)        \
  INSTANTIATE_TEST_SUITE_P(                 \
      , suite, testing::ValuesIn(kAllIsas), \
      [](const testing::TestParamInfo<Isa>& isa) { return std::string(isa_name(isa.param)); })

// What a parallel region of the engine sets up around kernels.
class KernelRegion {
 public:
  explicit KernelRegion(Isa isa) : isa_(isa), saved_(_mm_getcsr()) {
    _mm_setcsr(0x9fc0);
    begin_tiles(isa_);
  }
  ~KernelRegion() {
    end_tiles(isa_);
    _mm_setcsr(saved_);
  }

 private:
  Isa isa_;
  unsigned saved_;
};

template <typename T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  std::vector<float> floats(size_t n, float sigma) {
    std::normal_distribution<float> d(0.0f, sigma);
    std::vector<float> v(n);
    for (float& x : v) x = d(engine_);
    return v;
  }
  template <typename T>
  std::vector<T> ints(size_t n, int lo, int hi) {
    std::uniform_int_distribution<int> d(lo, hi);
    std::vector<T> v(n);
    for (T& x : v) x = static_cast<T>(d(engine_));
    return v;
  }

 private:
  std::mt19937 engine_;
};

inline float bf16_to_float(uint16_t x) {
  const uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
inline uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
inline std::vector<uint16_t> to_bf16(const std::vector<float>& v) {
  std::vector<uint16_t> r;
  for (float x : v) r.push_back(float_to_bf16(x));
  return r;
}

}  // namespace qla
