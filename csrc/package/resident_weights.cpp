#include "package/resident_weights.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "large_pages.h"

namespace qla {
namespace {

constexpr int kColumns = 64, kTileColumns = 16;

// k64n16k4 to n64k4: the same 64-byte rows (16 columns of 4 k) in another order.
void reorder(const int8_t* from, int8_t* to, int k, int n) {
  constexpr int kRow = kTileColumns * 4;
  for (int column = 0; column < n; column += kColumns) {
    for (int quad = 0; quad < k / 4; ++quad) {
      for (int tile = 0; tile < kColumns / kTileColumns; ++tile, to += kRow) {
        const size_t block =
            static_cast<size_t>(quad / 16) * (n / kTileColumns) + (column / kTileColumns + tile);
        memcpy(to, from + block * 1024 + quad % 16 * kRow, kRow);
      }
    }
  }
}

}  // namespace

ResidentWeights::ResidentWeights(size_t capacity) : size_(round_to_large_pages(capacity)) {
  void* memory = map_large_pages(size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
  if (memory == nullptr) throw std::bad_alloc();
  data_ = static_cast<int8_t*>(memory);
}

ResidentWeights::~ResidentWeights() {
  if (data_) munmap(data_, size_);
}

int8_t* ResidentWeights::take(size_t bytes) {
  int8_t* const to = data_ + used_;
  used_ += bytes;
  return to;
}

const int8_t* ResidentWeights::add(const int8_t* weight, size_t bytes) {
  int8_t* const to = take(bytes);
  memcpy(to, weight, bytes);
  return to;
}

const int8_t* ResidentWeights::add_reordered(const int8_t* weight, int k, int n) {
  int8_t* const to = take(static_cast<size_t>(k) * n);
  reorder(weight, to, k, n);
  return to;
}

}  // namespace qla
