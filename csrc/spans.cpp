#include "spans.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "float_mode.h"
#include "portable_exp.h"

namespace qla {
namespace {

constexpr double kLowest = -std::numeric_limits<double>::infinity();

struct Inputs {
  const float* start;
  const float* end;
  const uint8_t* is_context;
  const int64_t* offsets;
  const int64_t* questions;
  int32_t max_tokens;
};

struct Span {
  int64_t window = 0, first = 0, last = 0;  // tokens as global indices
  double sum = kLowest;                     // start logit + end logit
};

// The probability of `logit` in a softmax over the context tokens [begin, end).
double softmax(const float* logits, const uint8_t* is_context, int64_t begin, int64_t end,
               float logit) {
  float highest = logit;
  for (int64_t i = begin; i < end; ++i) {
    if (is_context[i]) highest = std::max(highest, logits[i]);
  }
  double total = 0.0;
  for (int64_t i = begin; i < end; ++i) {
    if (is_context[i]) total += exp_of_negative(static_cast<double>(logits[i]) - highest);
  }
  return exp_of_negative(static_cast<double>(logit) - highest) / total;
}

void check_arguments(const Inputs& in, int64_t num_questions) {
  if (num_questions < 0) {
    fail(QLA_INVALID_INPUT, "num_questions is %lld; it must not be negative",
         static_cast<long long>(num_questions));
  }
  if (in.max_tokens < 1) {
    fail(QLA_INVALID_INPUT, "max_tokens is %d; an answer has at least 1 token", in.max_tokens);
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
  }
}

void check_logits(const Inputs& in, int64_t question, int64_t begin, int64_t end) {
  bool any_context = false;
  for (int64_t i = begin; i < end; ++i) {
    if (!in.is_context[i]) continue;
    any_context = true;
    if (!std::isfinite(in.start[i]) || !std::isfinite(in.end[i])) {
      fail(QLA_INVALID_INPUT,
           "question %lld: the logits of token %lld are %g and %g; they must be finite",
           static_cast<long long>(question), static_cast<long long>(i),
           static_cast<double>(in.start[i]), static_cast<double>(in.end[i]));
    }
  }
  if (!any_context) {
    fail(QLA_INVALID_INPUT,
         "question %lld has no context token in any window; give it a context that is not empty",
         static_cast<long long>(question));
  }
}

// p_start * p_end rises with the sum of the logits, and the sum of two floats is exact in double
// for any logits a model gives: no underflow, and no tie that is not one. Starts and ends are tried
// in ascending order and only a higher sum replaces, so ties stay with the earlier.
void improve(Span& best, const Inputs& in, int64_t window) {
  const int64_t begin = in.offsets[window], end = in.offsets[window + 1];
  for (int64_t first = begin; first < end; ++first) {
    if (!in.is_context[first]) continue;
    const int64_t stop = std::min<int64_t>(end, first + in.max_tokens);
    for (int64_t last = first; last < stop; ++last) {
      if (!in.is_context[last]) continue;
      const double sum = static_cast<double>(in.start[first]) + static_cast<double>(in.end[last]);
      if (sum > best.sum) best = Span{window, first, last, sum};
    }
  }
}

}  // namespace

void best_spans(const float* start_logits, const float* end_logits, const uint8_t* is_context,
                const int64_t* offsets, const int64_t* questions, int64_t num_questions,
                int32_t max_tokens, int32_t* window, int32_t* first, int32_t* last, float* score) {
  const FloatMode mode;
  const Inputs in{start_logits, end_logits, is_context, offsets, questions, max_tokens};
  if (num_questions > 0 && !(start_logits && end_logits && is_context && offsets && questions &&
                             window && first && last && score)) {
    fail(QLA_INVALID_INPUT, "every pointer of qla_best_spans must be given");
  }
  check_arguments(in, num_questions);
  for (int64_t q = 0; q < num_questions; ++q) check_question(in, q);

  for (int64_t q = 0; q < num_questions; ++q) {
    const int64_t begin = offsets[questions[q]], end = offsets[questions[q + 1]];
    check_logits(in, q, begin, end);
    Span best;
    for (int64_t w = questions[q]; w < questions[q + 1]; ++w) improve(best, in, w);
    const double p_start = softmax(start_logits, is_context, begin, end, start_logits[best.first]);
    const double p_end = softmax(end_logits, is_context, begin, end, end_logits[best.last]);
    window[q] = static_cast<int32_t>(best.window);
    first[q] = static_cast<int32_t>(best.first - offsets[best.window]);
    last[q] = static_cast<int32_t>(best.last - offsets[best.window]);
    score[q] = static_cast<float>(p_start * p_end);
  }
}

}  // namespace qla
