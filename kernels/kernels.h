// The kernel room's public face: argument structs and the set of functions an engine calls.
//
// A kernel is what ONE core computes on raw pointers: no threads, no allocation, no exceptions.
// Kernels know nothing of models. Every implementation of an operation gives the same bits
// (docs/numerics.md says by which rules); which one runs is decided once, at opening, from
// kernels.inc.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu_features.h"
#include "weight_formats.h"

namespace qla {

// Rows of u8 activations are readable up to a multiple of this, whatever they hold: AMX loads whole
// tiles.
constexpr int kRowPadding = 32;

// No value of the kernels' GELU is below it.
constexpr float kLeastGelu = -0.1712f;

// y[rows, n] = (float(A . B) - row_zero * col_sum) * (row_scale * col_scale) + bias, for A[rows, k]
// (u8) and B[k, n] in some weight format. k and n are multiples of 64.
struct GemmArgs {
  const uint8_t* a;
  int lda;
  const int8_t* b;
  int rows, k, n;
  int first_col, last_col;  // multiples of 64: the columns to compute, of all n
  const float* row_scale;   // (rows)
  const float* row_zero;    // (rows) zero points
  const float* col_scale;   // (n)
  const float* bias;        // (n)
  const float* col_sum;     // (n)
  int8_t* scratch;          // gemm_scratch_bytes(k), 64-byte aligned
  const int8_t* next;       // weights that follow those of last_col, to fetch meanwhile; or null
};

// Where y goes, and what becomes of it on the way.
struct BiasOut {
  float* c;  // y, rows ldc apart
  int ldc;
};
struct GeluOut {
  float* c;  // gelu(y), rows ldc apart
  int ldc;
  float* row_max;  // (rows, 16): each row's largest over the columns computed, in 16 lanes
};
// Columns head_dim * j .. of row r go to row[r] + j * stride[r], as bf16.
struct QkvOut {
  uint16_t* const* row;   // (rows)
  const int64_t* stride;  // (rows)
  int head_dim;
};

// A weight format's GEMM on one instruction set: a function for each kind of output.
struct Gemm {
  void (*bias)(const GemmArgs&, const BiasOut&);
  void (*gelu)(const GemmArgs&, const GeluOut&);
  void (*qkv)(const GemmArgs&, const QkvOut&);

  void operator()(const GemmArgs& g, const BiasOut& out) const { bias(g, out); }
  void operator()(const GemmArgs& g, const GeluOut& out) const { gelu(g, out); }
  void operator()(const GemmArgs& g, const QkvOut& out) const { qkv(g, out); }
};

// One head of one sequence: out = softmax(Q K^T * scale) V, column_sum[j] = sum over queries of P.
// Both products run in INT8 with scales found on the spot (attention.h).
struct AttentionArgs {
  const uint16_t* q;  // (n, head_dim) bf16
  const uint16_t* k;  // (n, head_dim) bf16
  const uint16_t* v;  // (n, head_dim) bf16
  int n, head_dim;
  float scale;
  float* out;  // (n, head_dim) fp32, rows ld_out apart
  int ld_out;
  float* column_sum;  // (n rounded up to 16), or null when nobody needs the scores
  void* scratch;      // attention_scratch_bytes(n, head_dim), 64-byte aligned
  // For kernels with a bias (attention.h) alone: where the rows stood before tokens were dropped,
  // ascending, or null for 0 .. n - 1; and the head's table.
  const int32_t* positions;
  const float* bias;
};

struct NormArgs {
  const float* weight;
  const float* bias;
  float eps;
};

// One row for a LayerNorm: out = LayerNorm(word * word_scale + position + token_type).
struct EmbedRow {
  const int8_t* word;
  float word_scale;
  const float* position;
  const float* token_type;
  float* out;
};
// out = LayerNorm(x + residual).
struct NormRow {
  const float* x;
  const float* residual;
  float* out;
};

// Where a row's u8 scale comes from: itself, or calibration.
struct QuantizeArgs {
  bool is_static;
  float static_scale;
  int32_t static_zero;
};

struct KernelSet {
  // By weight format.
  Gemm gemms[kWeightFormats];
  const Gemm& gemm(WeightFormat format) const { return gemms[static_cast<int>(format)]; }
  // Attention with column sums.
  void (*attention)(const AttentionArgs&);
  // LayerNorm of `count` rows of n.
  void (*embed_norm)(const EmbedRow* rows, int count, const NormArgs&, int n);
  void (*residual_norm)(const NormRow* rows, int count, const NormArgs&, int n);
  // q = u8(x) of `count` rows of n, wherever they lie; q (count, n), scale and zero (count).
  // gelu_max: null, or the row_max of the GEMM that left these rows by GeluOut; their smallest is
  // then taken to be kLeastGelu.
  void (*quantize)(const float* const* rows, int count, int n, const float* gelu_max,
                   const QuantizeArgs&, uint8_t* q, float* scale, float* zero);
  // sum of a[i] * b[i].
  float (*dot)(const float* a, const float* b, int n);
};

size_t attention_scratch_bytes(int n, int head_dim);

// One line of kernels.inc.
struct KernelInfo {
  const char* operation;
  Isa isa;
  const char* name;
  const char* instructions;
};

// The kernels an engine at `isa` runs: for each operation the best line of kernels.inc not above
// it.
KernelSet select_kernels(Isa isa);
// The same choice for explaining: fills up to `capacity` lines, returns their number.
int selected_kernels(Isa isa, KernelInfo* lines, int capacity);

// Rows a GEMM likes to see at once: few enough for its A block to stay in L1/L2, enough to reuse B.
int preferred_row_block(Isa isa);
// Its rows come in multiples of this: a tile computes 16 of them whether they are there or not.
inline int row_granularity(Isa isa) { return isa == Isa::kAmx ? 16 : 1; }

// AMX tile configuration is per-thread state: load it where a parallel region begins, release it
// where it ends. Both do nothing below Isa::kAmx.
void begin_tiles(Isa isa);
void end_tiles(Isa isa);

// Keeps the k largest of n scores, ties to the lower position; `keep_first_row` forces position 0
// in. Positions ascend in `kept`. `scratch` holds n 64-bit words.
void select_top_k(const float* scores, int n, int k, bool keep_first_row, uint64_t* scratch,
                  int32_t* kept);

}  // namespace qla
