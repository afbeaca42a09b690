#include "spans.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "error.h"
#include "float_mode.h"
#include "portable_exp.h"

namespace qla {
namespace {

constexpr int32_t kMostAnswers = 1024;
constexpr int64_t kWidestStride = 1 << 20;
constexpr int64_t kHighestPosition = int64_t{1} << 40;  // far from where arithmetic overflows
constexpr uint8_t kInvisible = 2;                       // a context token that shows no text

// One of the two columns of logits.
struct Column {
  const float* data;
  int64_t stride;
  float operator[](int64_t token) const { return data[token * stride]; }
};

struct Inputs {
  Column start, end;
  const uint8_t* is_context;
  const int64_t* offsets;
  const int64_t* questions;
  const int64_t* positions;  // nullptr: no two windows share a token
  int32_t max_tokens;
  int32_t top_k;
};

struct Span {
  int64_t window, first, last;  // tokens as global indices
  int64_t from, to;             // the place of its first and last visible token in the context
  double sum;                   // start logit + end logit
  double rank = 0.0;            // by which spans of several windows are ordered
  double score = 0.0;
};

bool same_place(const Span& a, const Span& b) { return a.from == b.from && a.to == b.to; }

using Token = std::optional<int64_t>;

// The softmax over the context tokens [begin, end) of one column, and over the token `null`.
class Softmax {
 public:
  Softmax(const Column& logits, const uint8_t* is_context, int64_t begin, int64_t end,
          Token null = {}) {
    const auto counts = [&](int64_t i) { return is_context[i] || i == null; };
    for (int64_t i = begin; i < end; ++i) {
      if (counts(i)) highest = std::max(highest, logits[i]);
    }
    for (int64_t i = begin; i < end; ++i) {
      if (counts(i)) total += exp_of_negative(static_cast<double>(logits[i]) - highest);
    }
  }

  double operator()(float logit) const {
    return exp_of_negative(static_cast<double>(logit) - highest) / total;
  }

  float highest = -std::numeric_limits<float>::infinity();
  double total = 0.0;  // of exp(logit - highest)
};

// The softmax over several windows, the logits of each less its null's.
class SoftmaxAgainstNull {
 public:
  void add(const Softmax& window, float null) {
    windows_.push_back({window.highest, static_cast<double>(window.highest) - null, window.total});
    top_ = std::max(top_, windows_.back().height);
  }

  // After the last add(): whether the numbered window counts in the sum.
  void sum(const std::vector<bool>& counts) {
    for (size_t w = 0; w < windows_.size(); ++w) {
      if (counts[w]) total_ += windows_[w].total * exp_of_negative(windows_[w].height - top_);
    }
  }

  // With one window this is, to the bit, Softmax's number: its height is the top.
  double operator()(float logit, size_t window) const {
    const Window& own = windows_[window];
    const double below = static_cast<double>(logit) - own.highest;
    return exp_of_negative(below + (own.height - top_)) / total_;
  }

 private:
  struct Window {
    float highest;
    double height, total;
  };
  std::vector<Window> windows_;
  double top_ = -std::numeric_limits<double>::infinity();
  double total_ = 0.0;
};

void check_arguments(const Inputs& in, int64_t num_questions) {
  if (num_questions < 0) {
    fail(QLA_INVALID_INPUT, "num_questions is %lld; it must not be negative",
         static_cast<long long>(num_questions));
  }
  if (in.max_tokens < 1) {
    fail(QLA_INVALID_INPUT, "max_tokens is %d; an answer has at least 1 token", in.max_tokens);
  }
  if (in.top_k < 1 || in.top_k > kMostAnswers) {
    fail(QLA_INVALID_INPUT, "top_k is %d; ask for 1 to %d answers", in.top_k, kMostAnswers);
  }
  if (in.start.stride < 1 || in.start.stride > kWidestStride) {
    fail(QLA_INVALID_INPUT, "logit_stride is %lld; it must be 1 to %lld",
         static_cast<long long>(in.start.stride), static_cast<long long>(kWidestStride));
  }
  if (num_questions == 0) return;
  if (in.questions[0] != 0 || in.offsets[0] != 0) {
    fail(QLA_INVALID_INPUT, "questions[0] is %lld and offsets[0] is %lld; both must be 0",
         static_cast<long long>(in.questions[0]), static_cast<long long>(in.offsets[0]));
  }
}

// Every range of one question, before any of its tokens is touched.
void check_question(const Inputs& in, int64_t question) {
  const int64_t begin = in.questions[question], end = in.questions[question + 1];
  if (end < begin) {
    fail(QLA_INVALID_INPUT, "questions[%lld] is %lld after %lld; it must not fall",
         static_cast<long long>(question + 1), static_cast<long long>(end),
         static_cast<long long>(begin));
  }
  for (int64_t w = begin; w < end; ++w) {
    const int64_t from = in.offsets[w], to = in.offsets[w + 1];
    if (to < from || to - from > std::numeric_limits<int32_t>::max()) {
      fail(QLA_INVALID_INPUT, "offsets[%lld] is %lld after %lld; offsets must rise",
           static_cast<long long>(w + 1), static_cast<long long>(to), static_cast<long long>(from));
    }
    if (in.positions && (in.positions[w] < 0 || in.positions[w] > kHighestPosition)) {
      fail(QLA_INVALID_INPUT, "positions[%lld] is %lld; a place in the context is 0 to %lld",
           static_cast<long long>(w), static_cast<long long>(in.positions[w]),
           static_cast<long long>(kHighestPosition));
    }
  }
}

void check_finite(const Inputs& in, int64_t question, int64_t token) {
  if (std::isfinite(in.start[token]) && std::isfinite(in.end[token])) return;
  fail(QLA_INVALID_INPUT,
       "question %lld: the logits of token %lld are %g and %g; they must be finite",
       static_cast<long long>(question), static_cast<long long>(token),
       static_cast<double>(in.start[token]), static_cast<double>(in.end[token]));
}

void check_logits(const Inputs& in, int64_t question, int64_t begin, int64_t end) {
  bool any_visible = false;
  for (int64_t i = begin; i < end; ++i) {
    if (!in.is_context[i]) continue;
    any_visible = any_visible || in.is_context[i] != kInvisible;
    check_finite(in, question, i);
  }
  if (!any_visible) {
    fail(QLA_INVALID_INPUT,
         "question %lld has no context token in any window; give it a context that is not empty",
         static_cast<long long>(question));
  }
}

// Keeps `best` in descending order of sums, at most `limit` long, each place once. An equal sum
// stands behind those that came before.
void insert(std::vector<Span>& best, size_t limit, const Span& span) {
  const auto twin = std::find_if(best.begin(), best.end(),
                                 [&](const Span& other) { return same_place(other, span); });
  if (twin != best.end()) {
    if (twin->sum >= span.sum) return;
    best.erase(twin);
  }
  const auto behind = std::upper_bound(best.begin(), best.end(), span,
                                       [](const Span& a, const Span& b) { return a.sum > b.sum; });
  best.insert(behind, span);
  if (best.size() > limit) best.pop_back();
}

// The best spans of one window, best first. p_start * p_end rises with the sum of the logits, and
// the sum of two floats is exact in double for any logits a model gives: no underflow, and no tie
// that is not one. Starts and ends are tried in ascending order and only a higher sum replaces, so
// ties stay with the earlier.
std::vector<Span> search_window(const Inputs& in, int64_t window) {
  const int64_t begin = in.offsets[window], end = in.offsets[window + 1];
  const size_t limit = static_cast<size_t>(in.top_k);
  const auto visible = [&](int64_t i) {
    return in.is_context[i] && in.is_context[i] != kInvisible;
  };
  int64_t context_begin = begin;
  while (context_begin < end && !in.is_context[context_begin]) ++context_begin;
  const int64_t shift = in.positions ? in.positions[window] - context_begin : 0;

  std::vector<Span> best;
  for (int64_t first = begin; first < end; ++first) {
    if (!in.is_context[first]) continue;
    const int64_t stop = first + std::min<int64_t>(end - first, in.max_tokens);
    int64_t from = first;
    while (from < stop && !visible(from)) ++from;
    int64_t to = from;
    for (int64_t last = from; last < stop; ++last) {
      if (!in.is_context[last]) continue;
      if (visible(last)) to = last;
      const double sum = static_cast<double>(in.start[first]) + static_cast<double>(in.end[last]);
      if (best.size() == limit && sum <= best.back().sum) continue;
      insert(best, limit, Span{window, first, last, from + shift, to + shift, sum});
    }
  }
  return best;
}

// The token that says "not here": the window's first, where the context does not begin with it.
Token null_token(const Inputs& in, int64_t window) {
  const int64_t first = in.offsets[window];
  return first == in.offsets[window + 1] || in.is_context[first] ? Token{} : Token{first};
}

// The lowest probability, over the question's windows, that the answer is not there.
double lowest_null(const Inputs& in, int64_t question) {
  double lowest = 1.0;
  for (int64_t w = in.questions[question]; w < in.questions[question + 1]; ++w) {
    const Token null = null_token(in, w);
    if (!null) return 0.0;
    check_finite(in, question, *null);
    const int64_t begin = in.offsets[w], end = in.offsets[w + 1];
    const Softmax starts(in.start, in.is_context, begin, end, null);
    const Softmax ends(in.end, in.is_context, begin, end, null);
    lowest = std::min(lowest, starts(in.start[*null]) * ends(in.end[*null]));
  }
  return lowest;
}

// The first `limit` in descending order of ranks, of equal ranks the higher sum, each place once.
std::vector<Span> take_best(std::vector<Span> spans, size_t limit) {
  std::stable_sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.sum > b.sum;
  });
  std::vector<Span> best;
  for (const Span& span : spans) {
    if (best.size() == limit) break;
    const bool seen = std::any_of(best.begin(), best.end(),
                                  [&](const Span& other) { return same_place(other, span); });
    if (!seen) best.push_back(span);
  }
  return best;
}

// The spans of a question's windows, window by window, the best of each first.
using Found = std::vector<std::vector<Span>>;

std::vector<Span> flat(const Found& found) {
  std::vector<Span> spans;
  for (const auto& window : found) spans.insert(spans.end(), window.begin(), window.end());
  return spans;
}

std::vector<Span> score_all_windows(const Inputs& in, int64_t begin, int64_t end, Found found) {
  for (auto& window : found) {
    for (Span& span : window) span.rank = span.sum;
  }
  std::vector<Span> best = take_best(flat(found), static_cast<size_t>(in.top_k));
  const Softmax starts(in.start, in.is_context, in.offsets[begin], in.offsets[end]);
  const Softmax ends(in.end, in.is_context, in.offsets[begin], in.offsets[end]);
  for (Span& span : best) span.score = starts(in.start[span.first]) * ends(in.end[span.last]);
  return best;
}

std::vector<Span> score_with_null(const Inputs& in, int64_t begin, int64_t end, Found found) {
  for (int64_t w = begin; w < end; ++w) {
    const Token null = null_token(in, w);
    const Softmax starts(in.start, in.is_context, in.offsets[w], in.offsets[w + 1], null);
    const Softmax ends(in.end, in.is_context, in.offsets[w], in.offsets[w + 1], null);
    for (Span& span : found[static_cast<size_t>(w - begin)]) {
      span.rank = span.score = starts(in.start[span.first]) * ends(in.end[span.last]);
    }
  }
  return take_best(flat(found), static_cast<size_t>(in.top_k));
}

std::vector<Span> score_against_null(const Inputs& in, int64_t begin, int64_t end, Found found) {
  SoftmaxAgainstNull starts, ends;
  for (int64_t w = begin; w < end; ++w) {
    const Token null = null_token(in, w);
    const float start = null ? in.start[*null] : 0.0f, stop = null ? in.end[*null] : 0.0f;
    starts.add(Softmax(in.start, in.is_context, in.offsets[w], in.offsets[w + 1]), start);
    ends.add(Softmax(in.end, in.is_context, in.offsets[w], in.offsets[w + 1]), stop);
    for (Span& span : found[static_cast<size_t>(w - begin)]) {
      span.rank = span.sum - (static_cast<double>(start) + static_cast<double>(stop));
    }
  }
  std::vector<Span> best = take_best(flat(found), static_cast<size_t>(in.top_k));
  // Two windows that share the answer are no rivals: one of them counts.
  std::vector<bool> counts;
  for (int64_t w = begin; w < end; ++w) {
    const auto& here = found[static_cast<size_t>(w - begin)];
    counts.push_back(!here.empty() && (w == best[0].window || !same_place(here[0], best[0])));
  }
  starts.sum(counts);
  ends.sum(counts);
  for (Span& span : best) {
    const auto window = static_cast<size_t>(span.window - begin);
    span.score = starts(in.start[span.first], window) * ends(in.end[span.last], window);
  }
  return best;
}

// The best spans of one question over all of its windows, best first, with their scores.
std::vector<Span> search_question(const Inputs& in, int64_t question, qla_span_score rule) {
  const int64_t begin = in.questions[question], end = in.questions[question + 1];
  check_logits(in, question, in.offsets[begin], in.offsets[end]);
  Found found;
  for (int64_t w = begin; w < end; ++w) {
    if (const Token null = null_token(in, w); null && rule != QLA_SPAN_SCORE_ALL_WINDOWS) {
      check_finite(in, question, *null);
    }
    found.push_back(search_window(in, w));
  }
  switch (rule) {
    case QLA_SPAN_SCORE_ALL_WINDOWS:
      return score_all_windows(in, begin, end, std::move(found));
    case QLA_SPAN_SCORE_WITH_NULL:
      return score_with_null(in, begin, end, std::move(found));
    default:
      return score_against_null(in, begin, end, std::move(found));
  }
}

}  // namespace

void top_spans(const qla_span_search& search, const qla_spans& spans) {
  const FloatMode mode;
  const Inputs in{{search.start_logits, search.logit_stride},
                  {search.end_logits, search.logit_stride},
                  search.is_context,
                  search.offsets,
                  search.questions,
                  search.positions,
                  search.max_tokens,
                  search.top_k};
  const int64_t count = search.num_questions;
  if (count > 0 && !(search.start_logits && search.end_logits && search.is_context &&
                     search.offsets && search.questions && spans.counts && spans.window &&
                     spans.first && spans.last && spans.score)) {
    fail(QLA_INVALID_INPUT, "every pointer but positions and null_score must be given");
  }
  if (search.score < QLA_SPAN_SCORE_AGAINST_NULL || search.score > QLA_SPAN_SCORE_WITH_NULL) {
    fail(QLA_INVALID_INPUT, "score is %d; it must be a qla_span_score", search.score);
  }
  const auto rule = static_cast<qla_span_score>(search.score);
  check_arguments(in, count);
  for (int64_t q = 0; q < count; ++q) check_question(in, q);

  for (int64_t q = 0; q < count; ++q) {
    const std::vector<Span> best = search_question(in, q, rule);
    spans.counts[q] = static_cast<int32_t>(best.size());
    for (int64_t k = 0, row = q * in.top_k; k < in.top_k; ++k, ++row) {
      const bool found = k < static_cast<int64_t>(best.size());
      const Span span = found ? best[static_cast<size_t>(k)] : Span{};
      const int64_t begin = found ? in.offsets[span.window] : 1;
      spans.window[row] = found ? static_cast<int32_t>(span.window) : -1;
      spans.first[row] = static_cast<int32_t>(span.first - begin);
      spans.last[row] = static_cast<int32_t>(span.last - begin);
      spans.score[row] = static_cast<float>(span.score);
    }
    if (spans.null_score) spans.null_score[q] = static_cast<float>(lowest_null(in, q));
  }
}

void best_spans(const float* start_logits, const float* end_logits, const uint8_t* is_context,
                const int64_t* offsets, const int64_t* questions, int64_t num_questions,
                int32_t max_tokens, int32_t* window, int32_t* first, int32_t* last, float* score) {
  if (num_questions > 0 && !(start_logits && end_logits && is_context && offsets && questions &&
                             window && first && last && score)) {
    fail(QLA_INVALID_INPUT, "every pointer of qla_best_spans must be given");
  }
  qla_span_search search{};
  search.struct_size = sizeof search;
  search.start_logits = start_logits;
  search.end_logits = end_logits;
  search.logit_stride = 1;
  search.is_context = is_context;
  search.offsets = offsets;
  search.questions = questions;
  search.num_questions = num_questions;
  search.max_tokens = max_tokens;
  search.top_k = 1;
  search.score = QLA_SPAN_SCORE_ALL_WINDOWS;
  std::vector<int32_t> counts(static_cast<size_t>(std::max<int64_t>(num_questions, 0)));
  qla_spans spans{sizeof(qla_spans), counts.data(), window, first, last, score, nullptr};
  top_spans(search, spans);
}

}  // namespace qla
