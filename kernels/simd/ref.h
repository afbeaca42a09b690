// Sixteen virtual lanes in plain C++: what every lane operation means. Slow and obviously right.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define QLA_INLINE inline
#define QLA_BLOCK_FUNCTION

namespace qla {
namespace {

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};

template <typename V, typename F>
QLA_INLINE V lanes(F f) {
  V r;
  for (int l = 0; l < 16; ++l) r.v[l] = f(l);
  return r;
}

QLA_INLINE uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
QLA_INLINE float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
QLA_INLINE float fma1(float a, float b, float c) { return std::fmaf(a, b, c); }

QLA_INLINE f32x16 set1(float x) {
  return lanes<f32x16>([&](int) { return x; });
}
QLA_INLINE i32x16 set1(int32_t x) {
  return lanes<i32x16>([&](int) { return x; });
}
QLA_INLINE f32x16 zero() { return set1(0.0f); }
QLA_INLINE f32x16 load(const float* p) {
  return lanes<f32x16>([&](int l) { return p[l]; });
}
QLA_INLINE i32x16 load(const int32_t* p) {
  return lanes<i32x16>([&](int l) { return p[l]; });
}
// The same bits read as the other type.
QLA_INLINE i32x16 bits(f32x16 a) {
  return lanes<i32x16>([&](int l) { return static_cast<int32_t>(bits_of(a.v[l])); });
}
QLA_INLINE f32x16 as_float(i32x16 a) {
  return lanes<f32x16>([&](int l) { return float_of(static_cast<uint32_t>(a.v[l])); });
}
QLA_INLINE void store(int32_t* p, i32x16 a) { memcpy(p, a.v, sizeof a.v); }
QLA_INLINE void store(float* p, f32x16 a) { memcpy(p, a.v, sizeof a.v); }
QLA_INLINE f32x16 operator+(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] + b.v[l]; });
}
QLA_INLINE f32x16 operator-(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] - b.v[l]; });
}
QLA_INLINE f32x16 operator*(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] * b.v[l]; });
}
QLA_INLINE f32x16 operator/(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] / b.v[l]; });
}
QLA_INLINE i32x16 operator&(i32x16 a, i32x16 b) {
  return lanes<i32x16>([&](int l) { return a.v[l] & b.v[l]; });
}
QLA_INLINE i32x16 operator|(i32x16 a, i32x16 b) {
  return lanes<i32x16>([&](int l) { return a.v[l] | b.v[l]; });
}
QLA_INLINE i32x16 operator-(i32x16 a, i32x16 b) {
  return lanes<i32x16>([&](int l) { return a.v[l] - b.v[l]; });
}
QLA_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return lanes<f32x16>([&](int l) { return fma1(a.v[l], b.v[l], c.v[l]); });
}
// c - a * b, rounded once.
QLA_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
  return lanes<f32x16>([&](int l) { return fma1(-a.v[l], b.v[l], c.v[l]); });
}
// As MINPS/MAXPS: the second operand when the comparison is false.
QLA_INLINE f32x16 min(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
QLA_INLINE f32x16 max(f32x16 a, f32x16 b) {
  return lanes<f32x16>([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
// x between -limit and limit; a zero keeps its sign.
QLA_INLINE f32x16 clamp_magnitude(f32x16 x, float limit) {
  return lanes<f32x16>(
      [&](int l) { return std::copysign(std::fmin(std::fabs(x.v[l]), limit), x.v[l]); });
}
// a where x is above limit, else 0.
QLA_INLINE f32x16 where_above(f32x16 x, float limit, f32x16 a) {
  return lanes<f32x16>([&](int l) { return x.v[l] > limit ? a.v[l] : 0.0f; });
}
QLA_INLINE f32x16 square_root(f32x16 a) {
  return lanes<f32x16>([&](int l) { return std::sqrt(a.v[l]); });
}
QLA_INLINE f32x16 to_float(i32x16 a) {
  return lanes<f32x16>([&](int l) { return static_cast<float>(a.v[l]); });
}
// To nearest even; |a| is below 2^31.
QLA_INLINE i32x16 to_int(f32x16 a) {
  return lanes<i32x16>([&](int l) { return static_cast<int32_t>(std::nearbyintf(a.v[l])); });
}
QLA_INLINE uint32_t bf16_bits(float x) {
  const uint32_t u = bits_of(x);
  return u + 0x7fff + ((u >> 16) & 1);
}
QLA_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  for (int l = 0; l < 16; ++l) p[l] = static_cast<uint16_t>(bf16_bits(a.v[l]) >> 16);
}
QLA_INLINE f32x16 load_bf16(const uint16_t* p) {
  return lanes<f32x16>([&](int l) { return float_of(uint32_t(p[l]) << 16); });
}
QLA_INLINE f32x16 load_s8(const int8_t* p) {
  return lanes<f32x16>([&](int l) { return static_cast<float>(p[l]); });
}
QLA_INLINE void store_u8(uint8_t* p, i32x16 a) {
  for (int l = 0; l < 16; ++l) {
    p[l] = static_cast<uint8_t>(a.v[l] < 0 ? 0 : a.v[l] > 255 ? 255 : a.v[l]);
  }
}
// Sixty-four lanes, clamped to [0, 255].
QLA_INLINE void store_u8(uint8_t* p, i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  store_u8(p, a);
  store_u8(p + 16, b);
  store_u8(p + 32, c);
  store_u8(p + 48, d);
}
// Each lane's lowest byte.
QLA_INLINE void store_low_bytes(uint8_t* p, i32x16 a) {
  for (int l = 0; l < 16; ++l) p[l] = static_cast<uint8_t>(a.v[l]);
}
// The low bytes of a, b, c, d side by side in each 32-bit lane.
QLA_INLINE i32x16 interleave_bytes(i32x16 a, i32x16 b, i32x16 c, i32x16 d) {
  return lanes<i32x16>([&](int l) {
    const uint32_t bytes = (a.v[l] & 0xff) | (b.v[l] & 0xff) << 8 | (c.v[l] & 0xff) << 16 |
                           static_cast<uint32_t>(d.v[l] & 0xff) << 24;
    return static_cast<int32_t>(bytes);
  });
}

// |x| of 32 bf16, as the integers that their bits are: these order like the numbers.
struct Magnitudes {
  uint16_t v[32];
};
QLA_INLINE Magnitudes magnitudes(const uint16_t* p) {
  Magnitudes m;
  for (int l = 0; l < 32; ++l) m.v[l] = p[l] & 0x7fff;
  return m;
}
QLA_INLINE Magnitudes max(Magnitudes a, Magnitudes b) {
  for (int l = 0; l < 32; ++l) a.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l];
  return a;
}
QLA_INLINE float reduce_max(Magnitudes a) {
  uint16_t m = 0;
  for (int l = 0; l < 32; ++l) m = a.v[l] > m ? a.v[l] : m;
  return float_of(uint32_t(m) << 16);
}
QLA_INLINE void store(uint16_t* p, Magnitudes a) { memcpy(p, a.v, sizeof a.v); }

// Sixty-four bytes: the low or high four bits of those at p; what a table has for such numbers.
struct Bytes64 {
  int8_t v[64];
};
QLA_INLINE Bytes64 low_halves(const int8_t* p) {
  Bytes64 r;
  for (int l = 0; l < 64; ++l) r.v[l] = p[l] & 15;
  return r;
}
QLA_INLINE Bytes64 high_halves(const int8_t* p) {
  Bytes64 r;
  for (int l = 0; l < 64; ++l) r.v[l] = p[l] >> 4 & 15;
  return r;
}
QLA_INLINE Bytes64 look_up(const int8_t (&table)[16], const Bytes64& index) {
  Bytes64 r;
  for (int l = 0; l < 64; ++l) r.v[l] = table[index.v[l]];
  return r;
}
QLA_INLINE void store(int8_t* p, const Bytes64& a) { memcpy(p, a.v, sizeof a.v); }

// Four u8 activations, the same for all columns; 16 columns of 4 s8 weights; their running sums.
struct Quad {
  const uint8_t* v;
};
struct Columns {
  const int8_t* v;
};
struct Dot16 {
  i32x16 sum;
};

constexpr int kScoreQueries = 1, kScorePanels = 1;
constexpr int kValueQueries = 1, kValuePanels = 1;

QLA_INLINE Quad load_quad(const uint8_t* p) { return {p}; }
QLA_INLINE Columns load_columns(const int8_t* p) { return {p}; }
QLA_INLINE void accumulate(Dot16& dot, Quad x, const Columns& w) {
  for (int l = 0; l < 16; ++l) {
    for (int i = 0; i < 4; ++i) dot.sum.v[l] += x.v[i] * w.v[4 * l + i];
  }
}
QLA_INLINE i32x16 total(const Dot16& dot) { return dot.sum; }
QLA_INLINE Dot16 dot_from(i32x16 start) { return {start}; }
struct ByteDots {
  using Activation = uint8_t;
  static Quad quad(const uint8_t* p) { return load_quad(p); }
  static const uint8_t* activations(const uint8_t* from, int, uint16_t*) { return from; }
};

QLA_INLINE float reduce_add(f32x16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) a.v[l] += a.v[l + half];
  }
  return a.v[0];
}
QLA_INLINE float reduce_max(f32x16 a) {
  float m = a.v[0];
  for (int l = 1; l < 16; ++l) m = a.v[l] > m ? a.v[l] : m;
  return m;
}
QLA_INLINE float reduce_min(f32x16 a) {
  float m = a.v[0];
  for (int l = 1; l < 16; ++l) m = a.v[l] < m ? a.v[l] : m;
  return m;
}

}  // namespace
}  // namespace qla
