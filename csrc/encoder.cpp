#include "encoder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "float_mode.h"
#include "length_plan.h"
#include "portable_exp.h"

namespace qla {
namespace {

constexpr int kToL2 = 2;  // of __builtin_prefetch: a block of rows is more than L1 holds

// Where threads share out columns (by_columns): few rows, and a layer's weights too large for L2.
// Below 16 rows a thread, streaming weights takes longer than multiplying by them; and at MiniLM's
// 1.8 MB a layer, rows that travel between cores cost more than weights that are read twice.
constexpr int kRowsByColumns = 16;  // a thread
constexpr size_t kBytesByColumns = size_t{4} << 20;

// Wall time by stage, on member 0, when somebody asked.
class StageClock {
 public:
  explicit StageClock(double* seconds) : seconds_(seconds) {
    if (seconds_) last_ = now();
  }
  void lap(int stage) {
    if (!seconds_) return;
    const double t = now();
    seconds_[stage] += t - last_;
    last_ = t;
  }

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  double* seconds_;
  double last_ = 0.0;
};

// What a run of rows needs on its way through a layer: the block that one thread has in hand, or
// all rows of the chunk while the threads share out columns.
struct RowScratch {
  uint8_t* a;            // u8 activations: (rows padded, max(hidden, intermediate))
  float* c;              // GEMM result: (rows, max(hidden, intermediate))
  float* y;              // normalized attention output: (rows, hidden)
  float* scale;          // (rows)
  float* zero;           // (rows)
  float* gelu_max;       // (column shares, rows, 16)
  const float** rows;    // (rows): what is quantized
  EmbedRow* embed_rows;  // (rows)
  NormRow* norm_rows;    // (rows)
  uint16_t** qkv_row;    // (rows)
  int64_t* qkv_stride;   // (rows)

  RowScratch() = default;
  RowScratch(Arena& cut, size_t rows_, size_t hidden, size_t wide, size_t column_shares) {
    const size_t padded = (rows_ + kRowPadding - 1) / kRowPadding * kRowPadding;
    a = cut.take<uint8_t>(padded * wide);
    c = cut.take<float>(rows_ * wide);
    y = cut.take<float>(rows_ * hidden);
    scale = cut.take<float>(rows_);
    zero = cut.take<float>(rows_);
    gelu_max = cut.take<float>(column_shares * rows_ * 16);
    rows = cut.take<const float*>(rows_);
    embed_rows = cut.take<EmbedRow>(rows_);
    norm_rows = cut.take<NormRow>(rows_);
    qkv_row = cut.take<uint16_t*>(rows_);
    qkv_stride = cut.take<int64_t>(rows_);
  }
};

// Rows of a layer in hand: `count` compact rows from `first` on, whose scratch begins at `at`.
struct Rows {
  int first, count, at;
};

// A span of rows handed out at once, and how many there are.
struct Blocks {
  int rows, count;
  Blocks(int total, int threads, int preferred, int granularity) {
    count = (total + preferred - 1) / preferred;
    if (count % threads) count += threads - count % threads;  // equal shares for all
    rows = std::max(1, (total + count - 1) / count);
    rows = (rows + granularity - 1) / granularity * granularity;
    count = (total + rows - 1) / rows;
  }
};

// A linear layer's product on its way to a GEMM.
template <typename Out>
struct Product {
  WeightFormat format;
  GemmArgs args;
  Out out;
};

// Everything the members share during one forward pass.
class ForwardPass {
 public:
  ForwardPass(const Package& package, const KernelSet& kernels, Isa isa, Team& team,
              Workspace& workspace, const Chunk& chunk)
      : package_(package),
        spec_(package.encoder),
        kernels_(kernels),
        isa_(isa),
        team_(team),
        chunk_(chunk),
        layers_(spec_.layers),
        hidden_(spec_.hidden) {
    plan();
    Arena measure(nullptr);
    allocate(measure);
    Arena cut(workspace.reserve(measure.used()));
    allocate(cut);
    for (int i = 0; i < num_counters(); ++i) new (&counters_[i]) std::atomic<int>(0);
  }

  void member(int index) {
    const FloatMode mode;
    begin_tiles(isa_);
    Member m{&blocks_[static_cast<size_t>(index)], attention_[static_cast<size_t>(index)],
             StageClock(index == 0 ? chunk_.out.stage_seconds : nullptr),
             index == 0 ? chunk_.stop : nullptr};
    embed_all(m);
    for (int layer = 0; layer < layers_; ++layer) {
      wait(m);
      attend_all(layer, m);
      m.clock.lap(QLA_STAGE_ATTENTION);
      wait(m);
      if (selects_[static_cast<size_t>(layer)]) {
        select_all(layer, m);
        m.clock.lap(QLA_STAGE_SELECT);
        wait(m);
      }
      if (by_columns(rows(layer + 1))) {
        finish_by_columns(layer, m);
      } else {
        finish_by_rows(layer, m);
      }
    }
    wait(m);
    head_all(m);
    m.clock.lap(QLA_STAGE_HEAD);
    end_tiles(isa_);
  }

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

  // On the calling thread, after the region.
  void report() {
    if (chunk_.out.macs) report_macs();
    if (chunk_.out.kept_counts || chunk_.out.kept) report_kept();
    if (chunk_.out.hidden_states) carry_hidden_states();
  }

 private:
  // One thread of the team. Members pass through the same stages in the same order.
  struct Member {
    RowScratch* block;
    void* attention;
    StageClock clock;
    const StopRequest* stop;  // asked by the calling thread; null on the others
    int stage = 0;            // of dynamic_for
  };

  // ---- shape of the pass -----------------------------------------------------------------------

  int tokens(int sequence, int layer) const {  // entering layer `layer`
    return chunk_.tokens[static_cast<size_t>(sequence) * (layers_ + 1) + layer];
  }
  int start(int layer, int sequence) const {  // first compact row of a sequence
    return starts_[static_cast<size_t>(layer) * (chunk_.num_sequences + 1) + sequence];
  }
  int rows(int layer) const { return start(layer, chunk_.num_sequences); }
  int sequence_of(int layer, int row) const {
    const int* first = &starts_[static_cast<size_t>(layer) * (chunk_.num_sequences + 1)];
    return static_cast<int>(std::upper_bound(first, first + chunk_.num_sequences, row) - first) - 1;
  }

  void plan() {
    const int sequences = chunk_.num_sequences;
    starts_.resize(static_cast<size_t>(layers_ + 1) * (sequences + 1));
    selects_.assign(static_cast<size_t>(layers_), chunk_.out.scores != nullptr);
    for (int layer = 0; layer <= layers_; ++layer) {
      int* first = &starts_[static_cast<size_t>(layer) * (sequences + 1)];
      for (int s = 0; s < sequences; ++s) {
        first[s + 1] = first[s] + tokens(s, layer);
        if (layer < layers_ && tokens(s, layer + 1) < tokens(s, layer)) {
          selects_[static_cast<size_t>(layer)] = true;
        }
      }
    }
    longest_ = 0;
    for (int s = 0; s < sequences; ++s) longest_ = std::max(longest_, tokens(s, 0));
    // Longest first, so that the last units handed out are the short ones.
    order_.resize(static_cast<size_t>(sequences));
    for (int s = 0; s < sequences; ++s) order_[static_cast<size_t>(s)] = s;
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int a, int b) { return tokens(a, 0) > tokens(b, 0); });
    const int preferred = preferred_row_block(isa_);
    block_rows_ = (preferred + kRowPadding - 1) / kRowPadding * kRowPadding;
    rows_by_columns_ = 0;
    for (int layer = 0; layer <= layers_; ++layer) {
      if (by_columns(rows(layer))) rows_by_columns_ = std::max(rows_by_columns_, rows(layer));
    }
  }

  // Whether a layer of so many rows shares out columns instead of rows.
  //
  // By rows, each thread takes a block of rows from out-projection to the next layer's Q, K, V, and
  // reads all of the layer's weights for it. By columns, a thread reads its own columns' weights
  // alone, but all meet after each product, and rows travel between their caches.
  bool by_columns(int total) const {
    return team_.size() > 1 && total <= team_.size() * kRowsByColumns &&
           layer_weight_bytes(spec_) >= kBytesByColumns;
  }

  void allocate(Arena& cut) {
    const size_t n = static_cast<size_t>(rows(0)), h = static_cast<size_t>(hidden_);
    const size_t wide = static_cast<size_t>(std::max(spec_.hidden, spec_.intermediate));
    const size_t block = static_cast<size_t>(block_rows_);
    counters_ = cut.take<std::atomic<int>>(static_cast<size_t>(num_counters()));
    for (float*& x : x_) x = cut.take<float>(n * h);
    context_ = cut.take<float>(n * h);
    qkv_ = cut.take<uint16_t>(n * 3 * h);
    padded_rows_ = n + 16 * static_cast<size_t>(chunk_.num_sequences);
    column_sums_ = cut.take<float>(padded_rows_ * static_cast<size_t>(spec_.heads));
    scores_ = cut.take<float>(padded_rows_);
    rank_ = cut.take<uint64_t>(n);
    source_ = cut.take<int32_t>(n);
    for (int32_t*& origin : origin_) origin = cut.take<int32_t>(n);
    kept_ = cut.take<int32_t>(n * static_cast<size_t>(layers_));
    float* const own_hidden = cut.take<float>(chunk_.out.last_hidden ? 0 : n * h);
    hidden_rows_ = chunk_.out.last_hidden ? chunk_.out.last_hidden : own_hidden;
    blocks_.resize(static_cast<size_t>(team_.size()));
    attention_.resize(blocks_.size());
    for (RowScratch& s : blocks_) s = RowScratch(cut, block, h, wide, 1);
    for (void*& scratch : attention_) {
      scratch = cut.take<std::byte>(attention_scratch_bytes(longest_, spec_.head_dim));
    }
    const int shares = column_shares(spec_.intermediate).count;
    all_ = RowScratch(cut, static_cast<size_t>(rows_by_columns_), h, wide,
                      static_cast<size_t>(shares));
  }

  // ---- dividing work ---------------------------------------------------------------------------

  int num_counters() const { return 10 * layers_ + 3; }  // no layer has more shared loops

  // Without work to do, a stopped pass still meets all of its barriers. Whoever skips a piece of
  // work has seen stopped_, so behind the next barrier all members see it: nobody reads what is
  // missing.
  bool stops(const Member& m) {
    if (!stopped() && m.stop && m.stop->asked()) stopped_.store(true, std::memory_order_relaxed);
    return stopped();
  }

  // Runs work(0) to work(count - 1), each on the member that is free first.
  template <typename Work>
  void dynamic_for(Member& m, int count, Work work) {
    std::atomic<int>& next = counters_[m.stage++];
    while (!stops(m)) {
      const int i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      work(i);
    }
  }
  Blocks blocks(int total) const {
    return Blocks(total, team_.size(), preferred_row_block(isa_), row_granularity(isa_));
  }
  // Equal shares of all rows, one for each member.
  template <typename Work>
  void share_rows(Member& m, int total, Work work) {
    const int share = (total + team_.size() - 1) / team_.size();
    const int shares = (total + share - 1) / share;
    dynamic_for(m, shares, [&](int i) {
      const int first = i * share;
      work(Rows{first, std::min(share, total - first), first});
    });
  }
  // Runs of 64 columns. Two for each member: one who was held up takes fewer.
  struct ColumnShares {
    int columns, count;
  };
  ColumnShares column_shares(int n) const {
    const int panels = n / 64, wanted = std::min(panels, 2 * team_.size());
    const int columns = (panels + wanted - 1) / wanted * 64;
    return {columns, (n + columns - 1) / columns};
  }
  void wait(Member& m) {
    team_.barrier();
    m.clock.lap(QLA_STAGE_WAIT);
  }

  // ---- stages ----------------------------------------------------------------------------------

  void embed_all(Member& m) {
    if (by_columns(rows(0))) {
      share_rows(m, rows(0), [&](Rows r) {
        embed_rows(r, all_);
        quantize_for_qkv(0, x_[0] + row(r.first), r, all_);
      });
      m.clock.lap(QLA_STAGE_EMBED);
      wait(m);
      project_qkv_by_columns(0, m);
      return;
    }
    const Blocks b = blocks(rows(0));
    dynamic_for(m, b.count, [&](int i) {
      const Rows r{i * b.rows, std::min(b.rows, rows(0) - i * b.rows), 0};
      embed_rows(r, *m.block);
      m.clock.lap(QLA_STAGE_EMBED);
      quantize_for_qkv(0, x_[0] + row(r.first), r, *m.block);
      multiply(qkv_product(0, r.count, *m.block));
      m.clock.lap(QLA_STAGE_QKV);
    });
  }

  void embed_rows(Rows in_hand, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    const Embeddings& e = package_.embeddings;
    int s = sequence_of(0, first);
    for (int i = 0; i < count; ++i) {
      const int r = first + i;
      while (r >= start(0, s + 1)) ++s;
      const int position = r - start(0, s) + spec_.position_offset;
      const int id = chunk_.ids[r], type = chunk_.types ? chunk_.types[r] : 0;
      t.embed_rows[at + i] = {e.word + row(id), e.word_scale[id], e.position + row(position),
                              e.token_type + row(type), x_[0] + row(r)};
      origin_[0][r] = r;
    }
    kernels_.embed_norm(t.embed_rows + at, count, norm_args(e.norm), hidden_);
    if (!chunk_.out.hidden_states) return;
    for (int r = first; r < first + count; ++r) copy_row(x_[0] + row(r), hidden_plane(0) + row(r));
  }

  // ---- Q, K, V ---------------------------------------------------------------------------------

  // Quantizes the rows `x`, which enter layer `layer`, and says where their Q, K and V go.
  void quantize_for_qkv(int layer, const float* x, Rows in_hand, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    for (int r = 0; r < count; ++r) t.rows[at + r] = x + row(r);
    quantize(weights(layer).qkv, in_hand, nullptr, t);
    // A sequence's Q, K and V lie together: 3 x heads planes of (tokens, head_dim).
    int s = sequence_of(layer, first);
    for (int r = 0; r < count; ++r) {
      while (first + r >= start(layer, s + 1)) ++s;
      const int position = first + r - start(layer, s);
      t.qkv_row[at + r] = sequence_qkv(layer, s) + static_cast<size_t>(position) * spec_.head_dim;
      t.qkv_stride[at + r] = static_cast<int64_t>(tokens(s, layer)) * spec_.head_dim;
    }
  }

  Product<QkvOut> qkv_product(int layer, int count, const RowScratch& t) const {
    return product(weights(layer).qkv, count, t, QkvOut{t.qkv_row, t.qkv_stride, spec_.head_dim});
  }

  void project_qkv_by_columns(int layer, Member& m) {
    multiply_by_columns(qkv_product(layer, rows(layer), all_), m);
    m.clock.lap(QLA_STAGE_QKV);
  }

  // ---- attention -------------------------------------------------------------------------------

  void attend_all(int layer, Member& m) {
    dynamic_for(m, chunk_.num_sequences * spec_.heads, [&](int i) {
      attend(layer, order_[static_cast<size_t>(i / spec_.heads)], i % spec_.heads, m.attention);
    });
  }

  void attend(int layer, int s, int head, void* scratch) {
    const int n = tokens(s, layer);
    const size_t plane = static_cast<size_t>(n) * spec_.head_dim;
    const uint16_t* q = sequence_qkv(layer, s) + head * plane;
    const bool wanted = chunk_.out.scores || tokens(s, layer + 1) < n;
    AttentionArgs a{};
    a.q = q;
    a.k = q + spec_.heads * plane;
    a.v = q + 2 * spec_.heads * plane;
    a.n = n;
    a.head_dim = spec_.head_dim;
    a.scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
    a.out = context_ + row(start(layer, s)) + head * spec_.head_dim;
    a.ld_out = hidden_;
    a.column_sum = wanted ? column_sums(layer, s, head) : nullptr;
    a.scratch = scratch;
    kernels_.attention(a);
  }

  void select_all(int layer, Member& m) {
    dynamic_for(m, chunk_.num_sequences, [&](int s) { select(layer, s); });
  }

  // Which rows of sequence s go on: source_[new row] = old row. Dropped rows go where they rest.
  void select(int layer, int s) {
    const int from = start(layer, s), to = start(layer + 1, s);
    const int n = tokens(s, layer), k = tokens(s, layer + 1);
    int32_t* const kept = source_ + to;
    if (k < n || chunk_.out.scores) sum_scores(layer, s);
    if (k < n) {
      const float* scores = scores_ + padded_start(layer, s);
      select_top_k(scores, n, k, chunk_.keep_cls[s] != 0, rank_ + from, kept);
    } else {
      for (int j = 0; j < n; ++j) kept[j] = j;
    }
    const int32_t* origin = origin_[layer % 2] + from;
    int32_t* next_origin = origin_[(layer + 1) % 2] + to;
    for (int j = 0, i = 0; j < n; ++j) {
      if (i < k && kept[i] == j) {
        next_origin[i] = origin[j];
        kept[i++] = from + j;
      } else {
        copy_row(x_[layer % 2] + row(from + j), hidden_rows_ + row(origin[j]));
      }
    }
  }

  // Column sums of all heads, heads ascending.
  void sum_scores(int layer, int s) {
    const int n = tokens(s, layer);
    float* scores = scores_ + padded_start(layer, s);
    std::copy_n(column_sums(layer, s, 0), n, scores);
    for (int head = 1; head < spec_.heads; ++head) {
      const float* sums = column_sums(layer, s, head);
      for (int j = 0; j < n; ++j) scores[j] += sums[j];
    }
    if (chunk_.out.scores) {
      float* out = chunk_.out.scores + layer * chunk_.total_tokens;
      const int32_t* origin = origin_[layer % 2] + start(layer, s);
      const int first = start(0, s);
      std::fill_n(out + first, tokens(s, 0), std::numeric_limits<float>::quiet_NaN());
      for (int j = 0; j < n; ++j) out[origin[j]] = scores[j];
    }
  }

  // ---- the rest of a layer, for the rows it keeps ----------------------------------------------

  // A thread takes its rows through everything.
  void finish_by_rows(int layer, Member& m) {
    const int total = rows(layer + 1);
    const Blocks b = blocks(total);
    RowScratch& t = *m.block;
    const Layer& w = weights(layer);
    dynamic_for(m, b.count, [&](int i) {
      const Rows r{i * b.rows, std::min(b.rows, total - i * b.rows), 0};
      take_context(layer, r, t);
      multiply(bias_product(w.output, r.count, t));
      enter_feed_forward(layer, r, t);
      m.clock.lap(QLA_STAGE_OUTPUT);
      multiply(gelu_product(w.ffn_in, r.count, t));
      requantize(layer, r, t.gelu_max, t);
      multiply(bias_product(w.ffn_out, r.count, t));
      leave_feed_forward(layer, r, t);
      m.clock.lap(QLA_STAGE_FFN);
      if (layer + 1 == layers_) return;
      quantize_for_qkv(layer + 1, next_x(layer, r.first), r, t);
      multiply(qkv_product(layer + 1, r.count, t));
      m.clock.lap(QLA_STAGE_QKV);
    });
  }

  // All threads take all rows from one product to the next: their own columns of it, then their own
  // rows of what follows.
  void finish_by_columns(int layer, Member& m) {
    const int total = rows(layer + 1);
    const Layer& w = weights(layer);
    RowScratch& t = all_;
    share_rows(m, total, [&](Rows r) { take_context(layer, r, t); });
    wait(m);
    multiply_by_columns(bias_product(w.output, total, t), m);
    m.clock.lap(QLA_STAGE_OUTPUT);
    wait(m);
    share_rows(m, total, [&](Rows r) { enter_feed_forward(layer, r, t); });
    m.clock.lap(QLA_STAGE_OUTPUT);
    wait(m);
    const int shares = multiply_by_columns(gelu_product(w.ffn_in, total, t), m);
    m.clock.lap(QLA_STAGE_FFN);
    wait(m);
    share_rows(m, total, [&](Rows r) {
      join_maxima(shares, total, r);
      requantize(layer, r, t.gelu_max, t);
    });
    m.clock.lap(QLA_STAGE_FFN);
    wait(m);
    multiply_by_columns(bias_product(w.ffn_out, total, t), m);
    m.clock.lap(QLA_STAGE_FFN);
    wait(m);
    const bool last = layer + 1 == layers_;
    share_rows(m, total, [&](Rows r) {
      leave_feed_forward(layer, r, t);
      if (!last) quantize_for_qkv(layer + 1, next_x(layer, r.first), r, t);
    });
    m.clock.lap(QLA_STAGE_FFN);
    if (last) return;
    wait(m);
    project_qkv_by_columns(layer + 1, m);
  }

  // Quantizes what attention gave the rows that are kept.
  void take_context(int layer, Rows in_hand, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    const float* x = x_[layer % 2];
    for (int r = 0; r < count; ++r) {
      const size_t source = row(source_row(layer, first + r));
      t.rows[at + r] = context_ + source;
      t.norm_rows[at + r] = {t.c + row(at + r), x + source, t.y + row(at + r)};
      fetch(t.rows[at + r]);
    }
    quantize(weights(layer).output, in_hand, nullptr, t);
    for (int r = 0; r < count; ++r) fetch(t.norm_rows[at + r].residual);
  }

  // Residual and LayerNorm after the out-projection; quantizes the result for FFN 1.
  void enter_feed_forward(int layer, Rows in_hand, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    const Layer& w = weights(layer);
    kernels_.residual_norm(t.norm_rows + at, count, norm_args(w.attention_norm), hidden_);
    for (int r = 0; r < count; ++r) t.rows[at + r] = t.y + row(at + r);
    quantize(w.ffn_in, in_hand, nullptr, t);
  }

  // Quantizes GELU's outputs for FFN 2.
  void requantize(int layer, Rows in_hand, const float* gelu_max, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    for (int r = 0; r < count; ++r) {
      t.rows[at + r] = t.c + static_cast<size_t>(at + r) * spec_.intermediate;
    }
    quantize(weights(layer).ffn_out, in_hand, gelu_max, t);
  }

  // Residual and LayerNorm after FFN 2: the rows that enter the next layer, or the encoder's
  // result.
  void leave_feed_forward(int layer, Rows in_hand, RowScratch& t) {
    const auto [first, count, at] = in_hand;
    const bool last = layer + 1 == layers_;
    // A layer that drops nowhere leaves the origins where they were; copy them along.
    int32_t* origin = origin_[(layer + 1) % 2] + first;
    if (!selects_[static_cast<size_t>(layer)]) {
      std::copy_n(origin_[layer % 2] + first, count, origin);
    }
    float* next = next_x(layer, first);
    for (int r = 0; r < count; ++r) {
      float* to = last ? hidden_rows_ + row(origin[r]) : next + row(r);
      t.norm_rows[at + r] = {t.c + row(at + r), t.y + row(at + r), to};
      kept_[static_cast<size_t>(layer) * rows(0) + first + r] = origin[r];
    }
    const NormArgs norm = norm_args(weights(layer).ffn_norm);
    kernels_.residual_norm(t.norm_rows + at, count, norm, hidden_);
    if (!chunk_.out.hidden_states) return;
    for (int r = 0; r < count; ++r) {
      copy_row(t.norm_rows[at + r].out, hidden_plane(layer + 1) + row(origin[r]));
    }
  }

  // The largest GELU of a row is the largest of its column shares'.
  void join_maxima(int shares, int total, Rows in_hand) {
    const size_t plane = static_cast<size_t>(total) * 16;
    float* const first = all_.gelu_max + 16 * static_cast<size_t>(in_hand.at);
    const int lanes = 16 * in_hand.count;
    for (int share = 1; share < shares; ++share) {
      const float* other = first + static_cast<size_t>(share) * plane;
      for (int i = 0; i < lanes; ++i) first[i] = std::max(first[i], other[i]);
    }
  }

  // ---- heads -----------------------------------------------------------------------------------

  void head_all(Member& m) {
    if (!chunk_.out.logits) return;
    const int outputs = package_.task.outputs;
    const qla_task task = package_.task.kind;
    if (task == QLA_TASK_SPAN_QA || task == QLA_TASK_TOKEN_CLASSIFICATION) {
      const Blocks b = blocks(rows(0));
      dynamic_for(m, b.count, [&](int i) {
        const int end = std::min((i + 1) * b.rows, rows(0));
        for (int r = i * b.rows; r < end; ++r) {
          head_row(hidden_rows_ + row(r), chunk_.out.logits + static_cast<size_t>(r) * outputs);
        }
      });
      return;
    }
    dynamic_for(m, chunk_.num_sequences, [&](int s) {
      const float* x = hidden_rows_ + row(start(0, s));
      float* out = chunk_.out.logits + static_cast<size_t>(s) * outputs;
      if (task == QLA_TASK_EMBEDDING) {
        pool(x, tokens(s, 0), out);
      } else {
        classify(x, m.block->y, out);
      }
    });
  }

  void head_row(const float* x, float* out) const {
    for (int j = 0; j < package_.task.outputs; ++j) {
      out[j] = kernels_.dot(x, package_.head_weight + row(j), hidden_) + package_.head_bias[j];
    }
  }

  void classify(const float* cls, float* pooled, float* out) const {
    if (!package_.task.has_pooler) return head_row(cls, out);
    for (int j = 0; j < hidden_; ++j) {
      const float x =
          kernels_.dot(cls, package_.pooler_weight + row(j), hidden_) + package_.pooler_bias[j];
      pooled[j] = static_cast<float>(portable_tanh(static_cast<double>(x)));
    }
    head_row(pooled, out);
  }

  void pool(const float* x, int n, float* out) const {
    copy_row(x, out);
    if (package_.task.mean_pooling) {
      for (int r = 1; r < n; ++r) {
        const float* from = x + row(r);
        for (int i = 0; i < hidden_; ++i) out[i] += from[i];
      }
      for (int i = 0; i < hidden_; ++i) out[i] /= static_cast<float>(n);
    }
    if (package_.task.normalize) {
      const float length = std::sqrt(kernels_.dot(out, out, hidden_));
      const float divisor = std::max(length, 1e-12f);
      for (int i = 0; i < hidden_; ++i) out[i] /= divisor;
    }
  }

  // ---- reports ---------------------------------------------------------------------------------

  void report_macs() {
    for (int s = 0; s < chunk_.num_sequences; ++s) {
      chunk_.out.macs[s] =
          count_macs(spec_, package_.task, chunk_.tokens + static_cast<size_t>(s) * (layers_ + 1));
    }
  }

  void report_kept() {
    for (int layer = 0; layer < layers_; ++layer) {
      for (int s = 0; s < chunk_.num_sequences; ++s) {
        const int n = tokens(s, layer + 1), first = start(0, s);
        if (chunk_.out.kept_counts) {
          chunk_.out.kept_counts[layer * chunk_.total_sequences + s] = n;
        }
        if (!chunk_.out.kept) continue;
        const int32_t* from = kept_of(layer, s);
        int32_t* to = chunk_.out.kept + layer * chunk_.total_tokens + first;
        for (int j = 0; j < n; ++j) to[j] = from[j] - first;
        std::fill_n(to + n, tokens(s, 0) - n, -1);
      }
    }
  }

  // A dropped token's state is its last one: copy it down the planes it did not take part in.
  void carry_hidden_states() {
    for (int layer = 0; layer < layers_; ++layer) {
      for (int s = 0; s < chunk_.num_sequences; ++s) {
        const int32_t* kept = kept_of(layer, s);
        const int32_t* const end = kept + tokens(s, layer + 1);
        for (int r = start(0, s); r < start(0, s + 1); ++r) {
          if (kept != end && *kept == r) {
            ++kept;
          } else {
            copy_row(hidden_plane(layer) + row(r), hidden_plane(layer + 1) + row(r));
          }
        }
      }
    }
  }

  // ---- small things ----------------------------------------------------------------------------

  size_t row(int r) const { return static_cast<size_t>(r) * static_cast<size_t>(hidden_); }
  void copy_row(const float* from, float* to) const {
    memcpy(to, from, static_cast<size_t>(hidden_) * sizeof(float));
  }
  float* hidden_plane(int layer) const {
    return chunk_.out.hidden_states +
           static_cast<size_t>(layer) * static_cast<size_t>(chunk_.total_tokens) * hidden_;
  }
  uint16_t* sequence_qkv(int layer, int s) const { return qkv_ + 3 * row(start(layer, s)); }
  size_t padded_start(int layer, int s) const {
    return static_cast<size_t>(start(layer, s)) + 16 * static_cast<size_t>(s);
  }
  float* column_sums(int layer, int s, int head) const {
    return column_sums_ + static_cast<size_t>(head) * padded_rows_ + padded_start(layer, s);
  }
  const int32_t* kept_of(int layer, int s) const {
    return kept_ + static_cast<size_t>(layer) * rows(0) + start(layer + 1, s);
  }
  NormArgs norm_args(const Norm& norm) const { return {norm.weight, norm.bias, spec_.norm_eps}; }

  // Asks for a row that is `hidden` wide and that another core may have written.
  void fetch(const float* x) const {
    for (int i = 0; i < hidden_; i += 16) __builtin_prefetch(x + i, 0, kToL2);
  }

  const Layer& weights(int layer) const { return package_.layers[static_cast<size_t>(layer)]; }
  // The compact row in which a row that layer `layer` keeps entered it.
  int source_row(int layer, int r) const {
    return selects_[static_cast<size_t>(layer)] ? source_[r] : r;
  }
  float* next_x(int layer, int first) const { return x_[(layer + 1) % 2] + row(first); }

  // t.rows to u8; `gelu_max`: a GELU epilogue has just found their largest values.
  void quantize(const Linear& linear, Rows in_hand, const float* gelu_max, RowScratch& t) const {
    const QuantizeArgs how{linear.static_activation, linear.input_scale, linear.input_zero_point};
    const int at = in_hand.at;
    kernels_.quantize(t.rows + at, in_hand.count, linear.k, gelu_max ? gelu_max + 16 * at : nullptr,
                      how, t.a + static_cast<size_t>(at) * linear.k, t.scale + at, t.zero + at);
  }

  template <typename Out>
  static Product<Out> product(const Linear& linear, int count, const RowScratch& t,
                              const Out& out) {
    GemmArgs g{};
    g.a = t.a;
    g.lda = linear.k;
    g.b = linear.weight;
    g.rows = count;
    g.k = linear.k;
    g.n = linear.n;
    g.last_col = linear.n;
    g.row_scale = t.scale;
    g.row_zero = t.zero;
    g.col_scale = linear.scale;
    g.bias = linear.bias;
    g.col_sum = linear.column_sum.front().value;
    return {linear.format, g, out};
  }
  static Product<BiasOut> bias_product(const Linear& linear, int count, const RowScratch& t) {
    return product(linear, count, t, BiasOut{t.c, linear.n});
  }
  static Product<GeluOut> gelu_product(const Linear& linear, int count, const RowScratch& t) {
    return product(linear, count, t, GeluOut{t.c, linear.n, t.gelu_max});
  }

  template <typename Out>
  void multiply(const Product<Out>& p) const {
    kernels_.gemm(p.format)(p.args, p.out);
  }

  // One product, its columns shared out; returns the number of shares. Each has maxima of its own.
  template <typename Out>
  int multiply_by_columns(const Product<Out>& whole, Member& m) {
    const int n = whole.args.n;
    const ColumnShares shares = column_shares(n);
    dynamic_for(m, shares.count, [&](int i) {
      Product<Out> p = whole;
      p.args.first_col = i * shares.columns;
      p.args.last_col = std::min(p.args.first_col + shares.columns, n);
      if constexpr (std::is_same_v<Out, GeluOut>) {
        p.out.row_max += static_cast<size_t>(i) * 16 * whole.args.rows;
      }
      multiply(p);
    });
    return shares.count;
  }

  const Package& package_;
  const EncoderSpec& spec_;
  const KernelSet& kernels_;
  const Isa isa_;
  Team& team_;
  const Chunk& chunk_;
  const int layers_, hidden_;

  std::vector<int> starts_;    // (layers + 1, sequences + 1)
  std::vector<int> order_;     // sequences, longest first
  std::vector<char> selects_;  // per layer: does any sequence drop (or somebody want scores)
  int longest_ = 0;
  int block_rows_ = 0;
  int rows_by_columns_ = 0;  // the most that any layer shares out by columns has
  size_t padded_rows_ = 0;

  std::atomic<bool> stopped_{false};
  std::atomic<int>* counters_ = nullptr;
  float* x_[2] = {};              // hidden states entering even and odd layers, compact rows
  float* context_ = nullptr;      // attention output
  uint16_t* qkv_ = nullptr;       // bf16
  float* column_sums_ = nullptr;  // (heads, padded rows)
  float* scores_ = nullptr;
  uint64_t* rank_ = nullptr;
  int32_t* source_ = nullptr;       // compact row of layer i + 1 -> compact row of layer i
  int32_t* origin_[2] = {};         // compact row -> row in the chunk's ragged layout
  int32_t* kept_ = nullptr;         // (layers, rows): origins of what each layer kept
  float* hidden_rows_ = nullptr;    // the restore buffer
  std::vector<RowScratch> blocks_;  // by member
  std::vector<void*> attention_;    // by member
  RowScratch all_;                  // of layers that share out columns
};

}  // namespace

Encoder::Encoder(const Package& package, const KernelSet& kernels, Isa isa)
    : package_(package), kernels_(kernels), isa_(isa) {}

void Encoder::run(Team& team, Workspace& workspace, const Chunk& chunk) const {
  ForwardPass pass(package_, kernels_, isa_, team, workspace, chunk);
  team.run([&](int member) { pass.member(member); });
  if (pass.stopped()) StopRequest::stopped();
  pass.report();
}

}  // namespace qla
