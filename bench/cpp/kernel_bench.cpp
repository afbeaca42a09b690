// What each kernel takes on one core, for every instruction set present.
//
//   kernel_bench [--list] [--rounds N] [--only TEXT]
//
// --only: cases whose operation and name contain TEXT ("attention head n=384", "gemm_u8s8 qkv").
// One JSON object a line: operation, case, instruction set, kernel, multiply-accumulates and bytes
// of a call, and (not with --list) the nanoseconds of a call in each round. A round measures every
// case once, the instruction sets of a case one after the other, so that a noisy moment of the
// machine hits all of them; progress goes to standard error. bench/kernels.py makes a table of it.
// QLA_MAX_ISA caps the instruction sets.
//
// GEMMs have the widths of MiniLM (384), BERT-base (768) and BERT-large (1024); everything else is
// MiniLM's: feed-forward 1536, heads of 32. Rows come in blocks as the engine cuts them; operands
// stay in the caches, as far as they fit.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "float_mode.h"
#include "kernels.h"
#include "peak.h"
#include "workspace.h"

namespace qla {
namespace {

constexpr int kHidden = 384, kIntermediate = 1536, kHeadDim = 32;
constexpr int kWidths[] = {kHidden, 768, 1024};
constexpr int kMostRows = 384;
constexpr int kRaggedRows[] = {1, 7, 16, 33, 128, kMostRows};
constexpr int kTokens[] = {32, 128, 177, 384};
constexpr int kKept = 159;               // of 384, in layer 4 of the published length config
constexpr double kSampleSeconds = 2e-3;  // long beside the clock and a tile configuration

struct Case {
  const char* operation;  // as in kernels.inc, or "peak"
  std::string name;
  Isa isa;
  std::string kernel;
  double macs;   // of dot products, per call
  double bytes;  // of operands and results, each once, per call
  std::function<void()> call;
  int calls = 1;  // in one sample
  std::vector<double> nanoseconds = {};
};

// Arrays live as long as the program.
class Operands {
 public:
  Operands() : arena_(workspace_.reserve(kBytes)) {}

  template <typename T>
  T* zeros(size_t n) {
    T* to = arena_.take<T>(n);
    std::fill_n(to, n, T{});
    return to;
  }
  float* floats(size_t n, float low, float high) {
    float* to = zeros<float>(n);
    std::uniform_real_distribution<float> draw(low, high);
    std::generate_n(to, n, [&] { return draw(random_); });
    return to;
  }
  template <typename T>
  T* integers(size_t n, int low, int high) {
    T* to = zeros<T>(n);
    std::uniform_int_distribution<int> draw(low, high);
    std::generate_n(to, n, [&] { return static_cast<T>(draw(random_)); });
    return to;
  }
  uint16_t* bf16(size_t n) {
    const float* values = floats(n, -1.0f, 1.0f);
    uint16_t* to = zeros<uint16_t>(n);
    for (size_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(bits(values[i]) >> 16);
    return to;
  }
  NormArgs norm(int n) { return {floats(n, 0.5f, 1.5f), floats(n, -0.5f, 0.5f), 1e-12f}; }

 private:
  static constexpr size_t kBytes = size_t{256} << 20;
  static uint32_t bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
  }
  Workspace workspace_;
  Arena arena_;
  std::mt19937 random_{1};
};

std::string kernel_name(const char* operation, Isa isa) {
  KernelInfo lines[16];
  const int count = selected_kernels(isa, lines, 16);
  for (int i = 0; i < count; ++i) {
    if (!strcmp(lines[i].operation, operation)) return lines[i].name;
  }
  return operation;
}

// ---- GEMM with what follows it ----------------------------------------------------------------

enum class Epilogue { kBias, kGelu, kQkv };

struct Shape {
  const char* name;
  int k, n;
  Epilogue epilogue;
};

// The linear layers of a model of this width.
std::vector<Shape> linears(int width) {
  return {{"qkv", width, 3 * width, Epilogue::kQkv},
          {"output", width, width, Epilogue::kBias},
          {"ffn_in", width, 4 * width, Epilogue::kGelu},
          {"ffn_out", 4 * width, width, Epilogue::kBias}};
}

// One linear layer of the engine's row pipeline: Q, K, V are stored as they leave the GEMM; GELU's
// rows are quantized for FFN 2; the others get residual and LayerNorm, and are quantized after it.
class Linear {
 public:
  Linear(WeightFormat format, const Shape& shape, Operands& make)
      : format_(format), shape_(shape), norm_(make.norm(shape.n)) {
    const int k = shape.k, n = shape.n;
    const size_t wide = static_cast<size_t>(n);
    g_.a = make.integers<uint8_t>(static_cast<size_t>(kMostRows + kRowPadding) * k, 0, 255);
    g_.lda = k;
    g_.b = make.integers<int8_t>(weight_bytes(format, k, n), -127, 127);
    g_.scratch = make.zeros<int8_t>(gemm_scratch_bytes(k));
    g_.k = k;
    g_.n = n;
    g_.last_col = n;
    g_.row_scale = make.floats(kMostRows, 0.01f, 0.02f);
    g_.row_zero = make.floats(kMostRows, 100.0f, 150.0f);
    g_.col_scale = make.floats(wide, 1e-4f, 2e-4f);
    g_.bias = make.floats(wide, -0.5f, 0.5f);
    g_.col_sum = make.floats(wide, -1000.0f, 1000.0f);
    c_ = make.zeros<float>(kMostRows * wide);
    row_max_ = make.zeros<float>(kMostRows * 16);
    uint16_t* planes = make.zeros<uint16_t>(kMostRows * wide);
    for (int r = 0; r < kMostRows; ++r) qkv_row_.push_back(planes + r * kHeadDim);
    qkv_stride_.assign(kMostRows, int64_t{kMostRows} * kHeadDim);
    const float* residual = make.floats(kMostRows * wide, -1.0f, 1.0f);
    for (int r = 0; r < kMostRows; ++r) {
      rows_.push_back(c_ + at(r));
      norm_rows_.push_back({c_ + at(r), residual + at(r), c_ + at(r)});
    }
    q_ = make.zeros<uint8_t>(kMostRows * wide);
    scale_ = make.zeros<float>(kMostRows);
    zero_ = make.zeros<float>(kMostRows);
  }

  // `rows` rows in equal blocks, as csrc/encoder/work_split.cpp cuts them for one thread; like
  // there, a block's results take the place of those of the block before.
  void run(const KernelSet& kernels, Isa isa, int rows, bool with_epilogue) const {
    const int preferred = preferred_row_block(isa);
    const int blocks = (rows + preferred - 1) / preferred;
    const int granularity = row_granularity(isa);
    int block = (rows + blocks - 1) / blocks;
    block = (block + granularity - 1) / granularity * granularity;
    for (int first = 0; first < rows; first += block) {
      const int count = std::min(block, rows - first);
      multiply(kernels, first, count);
      if (with_epilogue) finish(kernels, first, count);
    }
  }

  double macs(int rows) const { return 1.0 * rows * shape_.k * shape_.n; }
  double bytes(int rows, bool with_epilogue) const {
    const double in =
        1.0 * rows * shape_.k + static_cast<double>(weight_bytes(format_, shape_.k, shape_.n));
    const double cells = 1.0 * rows * shape_.n;
    if (shape_.epilogue == Epilogue::kQkv) return in + 2 * cells;
    if (!with_epilogue) return in + 4 * cells;
    // u8 rows out; residual and LayerNorm also read and write fp32 rows.
    return in + cells + (shape_.epilogue == Epilogue::kBias ? 8 * cells : 0);
  }

 private:
  size_t at(int row) const { return static_cast<size_t>(row) * shape_.n; }

  void multiply(const KernelSet& kernels, int first, int count) const {
    GemmArgs g = g_;
    g.a += static_cast<size_t>(first) * g.lda;
    g.rows = count;
    g.row_scale += first;
    g.row_zero += first;
    const Gemm& gemm = kernels.gemm(format_);
    switch (shape_.epilogue) {
      case Epilogue::kBias:
        return gemm(g, BiasOut{c_, shape_.n});
      case Epilogue::kGelu:
        return gemm(g, GeluOut{c_, shape_.n, row_max_});
      case Epilogue::kQkv:
        return gemm(g, QkvOut{qkv_row_.data() + first, qkv_stride_.data() + first, kHeadDim});
    }
  }

  void finish(const KernelSet& kernels, int first, int count) const {
    if (shape_.epilogue == Epilogue::kQkv) return;
    const bool norms = shape_.epilogue == Epilogue::kBias;
    if (norms) kernels.residual_norm(norm_rows_.data(), count, norm_, shape_.n);
    kernels.quantize(rows_.data(), count, shape_.n, norms ? nullptr : row_max_, QuantizeArgs{},
                     q_ + at(first), scale_ + first, zero_ + first);
  }

  WeightFormat format_;
  Shape shape_;
  NormArgs norm_;
  GemmArgs g_{};
  float* c_;
  float* row_max_;
  std::vector<uint16_t*> qkv_row_;
  std::vector<int64_t> qkv_stride_;
  std::vector<const float*> rows_;
  std::vector<NormRow> norm_rows_;
  uint8_t* q_;
  float* scale_;
  float* zero_;
};

// ---- the cases -------------------------------------------------------------------------------

class Suite {
 public:
  Suite() {
    for (Isa isa : kAllIsas) {
      if (isa_status(isa).usable) isas_.push_back(isa);
    }
    add_peaks();
    add_linears();
    add_attention();
    add_rowwise();
    add_gather();
  }

  std::vector<Case>& cases() { return cases_; }

 private:
  using Call = std::function<void(const KernelSet&, Isa)>;

  // One case for each kernel of the operation that some instruction set here runs.
  void add(const char* operation, const std::string& name, double macs, double bytes, Call call) {
    std::string last;
    for (Isa isa : isas_) {
      const std::string kernel = kernel_name(operation, isa);
      if (kernel == last) continue;  // the weaker instruction set's, measured already
      cases_.push_back({operation, name, isa, kernel, macs, bytes,
                        [=, kernels = select_kernels(isa)] { call(kernels, isa); }});
      last = kernel;
    }
  }

  void add_peaks() {
    for (Isa isa : isas_) {
      if (peak_macs(isa) == 0) continue;
      cases_.push_back(
          {"peak", "registers", isa, "none", peak_macs(isa), 0, [=] { run_peak(isa); }});
    }
  }

  void add_linears() {
    for (WeightFormat format : kAllWeightFormats) {
      for (int width : kWidths) {
        for (const Shape& shape : linears(width)) add_linear(format, shape);
      }
    }
  }

  void add_linear(WeightFormat format, const Shape& shape) {
    const Linear& linear = linears_.emplace_back(format, shape, make_);
    const char* gemm = weight_format(format).gemm;
    const std::string name =
        std::string(shape.name) + " " + std::to_string(shape.k) + "x" + std::to_string(shape.n);
    for (int rows : kRaggedRows) {
      add(gemm, name + " M=" + std::to_string(rows), linear.macs(rows), linear.bytes(rows, true),
          [&linear, rows](const KernelSet& kernels, Isa isa) {
            linear.run(kernels, isa, rows, true);
          });
    }
    if (shape.epilogue == Epilogue::kQkv) return;  // nothing follows it
    add(gemm, name + " M=384, product alone", linear.macs(kMostRows),
        linear.bytes(kMostRows, false), [&linear](const KernelSet& kernels, Isa isa) {
          linear.run(kernels, isa, kMostRows, false);
        });
  }

  void add_attention() {
    for (int n : kTokens) {
      const size_t size = static_cast<size_t>(n) * kHeadDim;
      AttentionArgs a{};
      a.q = make_.bf16(size);
      a.k = make_.bf16(size);
      a.v = make_.bf16(size);
      a.n = n;
      a.head_dim = kHeadDim;
      a.scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
      a.out = make_.zeros<float>(size);
      a.ld_out = kHeadDim;
      a.scratch = make_.zeros<uint8_t>(attention_scratch_bytes(n, kHeadDim));
      const double macs = 2.0 * n * n * kHeadDim, bytes = (3 * 2 + 4) * 1.0 * size;
      const std::string name = "head n=" + std::to_string(n);
      const auto call = [](const AttentionArgs& args) {
        return [args](const KernelSet& kernels, Isa) { kernels.attention(args); };
      };
      add("attention", name, macs, bytes, call(a));
      a.column_sum = make_.zeros<float>(static_cast<size_t>(n) + 16);
      add("attention", name + ", column sums", macs, bytes, call(a));
    }
  }

  // Over as many rows as 384 tokens have.
  void add_rowwise() {
    const NormArgs norm = make_.norm(kHidden);
    const size_t cells = size_t{kMostRows} * kHidden;
    const float* x = make_.floats(cells, -1.0f, 1.0f);
    const float* residual = make_.floats(cells, -1.0f, 1.0f);
    const int8_t* words = make_.integers<int8_t>(cells, -127, 127);
    float* out = make_.zeros<float>(cells);
    std::vector<EmbedRow> embed_rows;
    std::vector<NormRow> norm_rows;
    for (size_t r = 0; r < cells; r += kHidden) {
      embed_rows.push_back({words + r, 0.01f, x + r, residual, out + r});
      norm_rows.push_back({x + r, residual + r, out + r});
    }
    add("embed_norm", "384 rows of 384", 0, cells * (1 + 4 + 4.0),
        [=](const KernelSet& kernels, Isa) {
          kernels.embed_norm(embed_rows.data(), kMostRows, norm, kHidden);
        });
    add("residual_norm", "384 rows of 384", 0, cells * (4 + 4 + 4.0),
        [=](const KernelSet& kernels, Isa) {
          kernels.residual_norm(norm_rows.data(), kMostRows, norm, kHidden);
        });
    add_quantize(kHidden, kMostRows, "384 rows of 384", nullptr);
    add_quantize(kIntermediate, kMostRows, "384 rows of 1536", nullptr);
    float* sums = make_.zeros<float>(kMostRows);
    add("dot", "384 rows of 384", 0, cells * 4.0, [=](const KernelSet& kernels, Isa) {
      for (int r = 0; r < kMostRows; ++r) sums[r] = kernels.dot(x + r * kHidden, residual, kHidden);
    });
  }

  // Kept rows are picked up by index where they are quantized: what that costs over rows in order.
  void add_gather() {
    int32_t* kept = make_.zeros<int32_t>(kKept);
    for (int i = 0; i < kKept; ++i) kept[i] = i * kMostRows / kKept;
    add_quantize(kHidden, kKept, "159 rows of 384", nullptr);
    add_quantize(kHidden, kKept, "159 rows of 384, gathered from 384", kept);
    const float* scores = make_.floats(kMostRows, 0.0f, 1.0f);
    uint64_t* scratch = make_.zeros<uint64_t>(kMostRows);
    // One function for all instruction sets (docs/architecture.md, "Decisions").
    cases_.push_back({"select_top_k", "159 of 384", Isa::kRef, "select_top_k", 0, kMostRows * 4.0,
                      [=] { select_top_k(scores, kMostRows, kKept, true, scratch, kept); }});
  }

  // Row i is row index[i] of the input; null: row i.
  void add_quantize(int n, int rows, const std::string& name, const int32_t* index) {
    const size_t cells = static_cast<size_t>(kMostRows) * n;
    const float* x = make_.floats(cells, -1.0f, 1.0f);
    uint8_t* q = make_.zeros<uint8_t>(cells);
    float* scale = make_.zeros<float>(kMostRows);
    float* zero = make_.zeros<float>(kMostRows);
    std::vector<const float*> from;
    for (int r = 0; r < rows; ++r) {
      from.push_back(x + static_cast<size_t>(index ? index[r] : r) * n);
    }
    add("quantize", name, 0, 5.0 * rows * n, [=](const KernelSet& kernels, Isa) {
      kernels.quantize(from.data(), rows, n, nullptr, QuantizeArgs{}, q, scale, zero);
    });
  }

  Operands make_;
  std::vector<Isa> isas_;
  std::deque<Linear> linears_;  // calls keep references
  std::vector<Case> cases_;
};

// ---- measuring -------------------------------------------------------------------------------

// Of `calls` calls, in what the engine sets up around kernels.
double seconds(const Case& c) {
  const FloatMode mode;
  begin_tiles(c.isa);
  const auto began = std::chrono::steady_clock::now();
  for (int i = 0; i < c.calls; ++i) c.call();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  end_tiles(c.isa);
  return took.count();
}

void measure(std::vector<Case>& cases, int rounds) {
  for (Case& c : cases) {
    while (seconds(c) < kSampleSeconds) c.calls *= 2;
  }
  for (int round = 0; round < rounds; ++round) {
    fprintf(stderr, "\rround %d of %d%s", round + 1, rounds, round + 1 < rounds ? "" : "\n");
    for (Case& c : cases) c.nanoseconds.push_back(1e9 * seconds(c) / c.calls);
  }
}

void print(const Case& c) {
  printf("{\"operation\": \"%s\", \"case\": \"%s\", \"isa\": \"%s\", \"kernel\": \"%s\"",
         c.operation, c.name.c_str(), isa_name(c.isa), c.kernel.c_str());
  printf(", \"macs\": %.0f, \"bytes\": %.0f, \"ns\": [", c.macs, c.bytes);
  const char* separator = "";
  for (double ns : c.nanoseconds) {
    printf("%s%.1f", separator, ns);
    separator = ", ";
  }
  printf("]}\n");
}

int run(int argc, char** argv) {
  int rounds = 9;
  bool list = false;
  const char* only = "";
  for (int i = 1; i < argc; ++i) {
    if (!strcmp(argv[i], "--list")) {
      list = true;
    } else if (!strcmp(argv[i], "--rounds") && i + 1 < argc && atoi(argv[i + 1]) > 0) {
      rounds = atoi(argv[++i]);
    } else if (!strcmp(argv[i], "--only") && i + 1 < argc) {
      only = argv[++i];
    } else {
      fprintf(stderr, "usage: kernel_bench [--list] [--rounds N] [--only TEXT]\n");
      return 2;
    }
  }
  Isa cap;
  if (const char* error = max_isa(&cap)) {
    fprintf(stderr, "%s\n", error);
    return 2;
  }
  Suite suite;
  std::vector<Case>& cases = suite.cases();
  cases.erase(std::remove_if(cases.begin(), cases.end(),
                             [&](const Case& c) {
                               return (c.operation + (" " + c.name)).find(only) ==
                                      std::string::npos;
                             }),
              cases.end());
  if (!list) measure(cases, rounds);
  for (const Case& c : cases) print(c);
  return 0;
}

}  // namespace
}  // namespace qla

int main(int argc, char** argv) { return qla::run(argc, argv); }
