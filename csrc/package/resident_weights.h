// A private copy of the linear layers' weights, on large pages: for weights that are read in
// another order than the file has, or that lie on small pages and exceed the last-level cache.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qla {

// How model.safetensors orders the bytes of a linear layer's weight (docs/file-format.md).
enum class WeightLayout {
  kN64K4,     // [n/64][k/4][64][4]: what the kernels read
  kK64N16K4,  // [k/64][n/16][16][16][4]: packages of version 0.1, put in order when they are opened
};

// Memory that is filled once and then only read. After fork() both processes share its pages.
class ResidentWeights {
 public:
  ResidentWeights() = default;
  explicit ResidentWeights(size_t capacity);  // bytes; throws std::bad_alloc
  ~ResidentWeights();
  ResidentWeights(const ResidentWeights&) = delete;
  ResidentWeights& operator=(const ResidentWeights&) = delete;

  // Both copy a weight and return where it now lies: as it is, or put in order from a (k, n) one of
  // version 0.1.
  const int8_t* add(const int8_t* weight, size_t bytes);
  const int8_t* add_reordered(const int8_t* weight, int k, int n);

 private:
  int8_t* take(size_t bytes);

  int8_t* data_ = nullptr;
  size_t size_ = 0, used_ = 0;
};

}  // namespace qla
