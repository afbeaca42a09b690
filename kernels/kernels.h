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

namespace qla {

// Rows of u8 activations are readable up to a multiple of this, whatever they hold: AMX loads whole
// tiles.
constexpr int kRowPadding = 32;

// No value of the kernels' GELU is below it.
constexpr float kLeastGelu = -0.1712f;

// What a GEMM does with its int32 accumulators, besides
//   y = (float(acc) - row_zero * col_sum) * (row_scale * col_scale) + bias.
enum class Epilogue {
  kBias,      // store y
  kBiasGelu,  // store gelu(y) and each row's largest value
  kBiasQkv,   // store y as bf16 where attention reads it
};

// C[rows, n] = A[rows, k] (u8) . B[k, n] (s8, packed n64k4). k and n are multiples of 64.
//
// n64k4 is b[n / 64][k / 4][n % 64][k % 4]: all of k for 64 columns lies in one run of k * 64
// bytes, which is read once from front to back.
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
  Epilogue epilogue;
  float* c;  // kBias, kBiasGelu
  int ldc;
  float* row_max;  // kBiasGelu: (rows, 16) maxima over the columns computed, 16 lanes a row
  // kBiasQkv: column block j (head_dim wide) of row r goes to qkv_row[r] + j * qkv_stride[r].
  uint16_t* const* qkv_row;
  const int64_t* qkv_stride;
  int head_dim;
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
  // u8 x s8 GEMM with epilogue.
  void (*gemm_u8s8)(const GemmArgs&);
  // Attention with column sums.
  void (*attention)(const AttentionArgs&);
  // LayerNorm of `count` rows of n.
  void (*embed_norm)(const EmbedRow* rows, int count, const NormArgs&, int n);
  void (*residual_norm)(const NormRow* rows, int count, const NormArgs&, int n);
  // q = u8(x) of `count` rows of n, wherever they lie; q (count, n), scale and zero (count).
  // gelu_max: null, or (count, 16) lanes with the largest values of rows that a kBiasGelu epilogue
  // left; their smallest is then taken to be kLeastGelu.
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
