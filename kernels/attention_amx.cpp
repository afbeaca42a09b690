// Attention with TDPBF16PS. Q is an A operand as it stands (rows of head_dim bf16); K and V are
// packed once per head into B tiles, pairs of k next to each other.
#include "simd/avx512.h"
//
#include "attention.h"
#include "tiles.h"

namespace qla {
namespace {

class AmxProducts {
 public:
  AmxProducts(const AttentionArgs& args, const AttentionScratch& scratch) : a_(args), w_(scratch) {
    const size_t plane = static_cast<size_t>(w_.ld) * a_.head_dim;
    keys_ = static_cast<uint16_t*>(w_.products);
    values_ = keys_ + plane;
    weights_ = values_ + plane;
    out_ = reinterpret_cast<float*>(weights_ + static_cast<size_t>(kQueries) * w_.ld);
    pack_keys();
    pack_values();
    publish_to_tiles();
  }

  void scores(int q0, int) {
    const uint16_t* query = a_.q + static_cast<size_t>(q0) * a_.head_dim;
    const int64_t stride = static_cast<int64_t>(w_.ld) * 4, query_stride = a_.head_dim * 2;
    const bool wide = a_.head_dim == 64;
    _tile_loadd(4, query, query_stride);
    if (wide) _tile_loadd(5, query + 32, query_stride);
    for (int j = 0; j < w_.ld; j += 32) {
      const uint16_t* left = keys_ + static_cast<size_t>(j) * a_.head_dim;
      const uint16_t* right = left + 16 * a_.head_dim;
      _tile_zero(0);
      _tile_zero(1);
      _tile_loadd(6, left, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (wide) {
        _tile_loadd(6, left + 512, kTileBytes);
        _tile_dpbf16ps(0, 5, 6);
        _tile_loadd(7, right + 512, kTileBytes);
        _tile_dpbf16ps(1, 5, 7);
      }
      _tile_stored(0, w_.s + j, stride);
      _tile_stored(1, w_.s + j + 16, stride);
    }
  }

  void values(int q0, int rows, const float* inverse) {
    for (int r = 0; r < rows; ++r) {
      const float* e = w_.s + static_cast<size_t>(r) * w_.ld;
      uint16_t* to = weights_ + static_cast<size_t>(r) * w_.ld;
      for (int j = 0; j < w_.ld; j += 16) store_bf16(to + j, load(e + j));
    }
    publish_to_tiles();
    const int64_t weight_stride = static_cast<int64_t>(w_.ld) * 2, out_stride = a_.head_dim * 4;
    for (int d = 0; d < a_.head_dim; d += 32) {
      _tile_zero(0);
      _tile_zero(1);
      for (int j = 0; j < w_.ld; j += 32) {
        const uint16_t* v = values_ + static_cast<size_t>(j) * a_.head_dim + d * 32;
        _tile_loadd(4, weights_ + j, weight_stride);
        _tile_loadd(6, v, kTileBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, v + 512, kTileBytes);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, out_ + d, out_stride);
      _tile_stored(1, out_ + d + 16, out_stride);
    }
    for (int r = 0; r < rows; ++r) {
      float* to = a_.out + static_cast<size_t>(q0 + r) * a_.ld_out;
      for (int d = 0; d < a_.head_dim; d += 16) {
        store(to + d, load(out_ + r * a_.head_dim + d) * set1(inverse[r]));
      }
    }
  }

 private:
  // keys_[key/16][d/32][(d%32)/2][key%16][d%2]: a pair of dims of one key is one 32-bit word, so a
  // tile is the transpose of 16 keys x 16 words.
  void pack_keys() {
    const int words = a_.head_dim / 2;
    uint32_t* to = reinterpret_cast<uint32_t*>(keys_);
    const uint32_t* from = reinterpret_cast<const uint32_t*>(a_.k);
    for (int j0 = 0; j0 < w_.ld; j0 += 16, to += 16 * words) {
      for (int l = 0; l < 16; ++l) {
        const bool real = j0 + l < a_.n;
        const uint32_t* key = from + static_cast<size_t>(j0 + l) * words;
        for (int p = 0; p < words; ++p) to[p * 16 + l] = real ? key[p] : 0;
      }
    }
  }

  // values_[token/32][d/16][(token%32)/2][d%16][token%2]: two neighbouring tokens interleaved.
  void pack_values() {
    const int hd = a_.head_dim;
    for (int t = 0; t < w_.ld; t += 2) {
      uint16_t* block = values_ + static_cast<size_t>(t / 32) * 32 * hd + t % 32 / 2 * 32;
      for (int d = 0; d < hd; d += 16) {
        const __m512i even = widened(t, d), odd = widened(t + 1, d);
        _mm512_storeu_si512(block + d / 16 * 512,
                            _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
      }
    }
  }
  __m512i widened(int token, int d) const {
    if (token >= a_.n) return _mm512_setzero_si512();
    const uint16_t* from = a_.v + static_cast<size_t>(token) * a_.head_dim + d;
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  const AttentionArgs& a_;
  const AttentionScratch& w_;
  uint16_t* keys_;
  uint16_t* values_;
  uint16_t* weights_;  // (16, ld) bf16(E)
  float* out_;         // (16, head_dim)
};

}  // namespace

void attention_amx(const AttentionArgs& a) { attention<AmxProducts>(a); }

}  // namespace qla
