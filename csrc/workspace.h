// One allocation per call size: a workspace grows to the largest chunk it has seen and is then
// reused.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#include "large_pages.h"

namespace qla {

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  // At least `size` bytes, page aligned, contents undefined.
  std::byte* reserve(size_t size) {
    if (size <= size_) return data_;
    release();
    const size_t wanted = round_to_large_pages(size);
    void* memory = map_large_pages(wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (memory == nullptr) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
    size_ = wanted;
    return data_;
  }

 private:
  void release() {
    if (data_) munmap(data_, size_);
    data_ = nullptr;
    size_ = 0;
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// A bump allocator: cuts a workspace into 64-byte aligned arrays. Run once without memory to learn
// the size, once with it to get the pointers: one list of arrays, no second place to forget.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <typename T>
  T* take(size_t count) {
    T* here = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return here;
  }
  size_t used() const { return used_; }

 private:
  std::byte* base_;
  size_t used_ = 0;
};

}  // namespace qla
