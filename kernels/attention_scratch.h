// The scratch of one attention call, array by array: its size is computed by the code that cuts it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qla {
namespace {

constexpr int kQueries = 16;   // of a block
constexpr int kRowBytes = 64;  // a query's or key's dims as bytes: head_dim of them, then zeros

inline int round_up(int x, int multiple) { return (x + multiple - 1) / multiple * multiple; }

struct AttentionScratch {
  int ld;               // n rounded up to 64: a whole k block of the second product
  float* s;             // (16, ld) scores, then E
  int32_t* s_int;       // the same memory, where tiles leave the bits of kRound + S
  float* key_scale;     // (ld), zero beyond n
  float* key_shift;     // (ld): -kRound * key_scale; no score at all beyond n
  int32_t* key_offset;  // (ld): the bits of kRound, -128 * sum of the key's s8 dims
  float* value_scale;   // (64)
  uint8_t* weights;     // (16, ld) u8(E)
  uint8_t* queries;     // (16, kRowBytes)
  uint16_t* widened;    // (16, ld) or (16, kRowBytes): one of the two above, for ByteDots
  int8_t* keys;    // [ld/16][16 quads of dims][16 keys][4 dims], quads beyond head_dim are zero
  int8_t* values;  // [ld/64][head_dim/16][16 quads of tokens][16 dims][4 tokens]
  size_t bytes = 0;

  // Every array begins at a multiple of 64 bytes if `base` does; null only measures.
  AttentionScratch(void* base, int n, int head_dim) : ld(round_up(n, 64)) {
    const size_t columns = static_cast<size_t>(ld);
    const auto take = [&](size_t size) -> void* {
      void* here = base ? static_cast<char*>(base) + bytes : nullptr;
      bytes += size;
      return here;
    };
    s = static_cast<float*>(take(kQueries * columns * sizeof(float)));
    s_int = reinterpret_cast<int32_t*>(s);
    key_scale = static_cast<float*>(take(columns * sizeof(float)));
    key_shift = static_cast<float*>(take(columns * sizeof(float)));
    key_offset = static_cast<int32_t*>(take(columns * sizeof(int32_t)));
    value_scale = static_cast<float*>(take(64 * sizeof(float)));
    weights = static_cast<uint8_t*>(take(kQueries * columns));
    queries = static_cast<uint8_t*>(take(kQueries * kRowBytes));
    widened = static_cast<uint16_t*>(take(kQueries * columns * sizeof(uint16_t)));
    keys = static_cast<int8_t*>(take(columns * kRowBytes));
    values = static_cast<int8_t*>(take(columns * static_cast<size_t>(head_dim)));
  }
};

}  // namespace
}  // namespace qla
