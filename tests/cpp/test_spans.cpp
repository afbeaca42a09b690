// The span search against the slowest search that is obviously right, and its refusals.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "error.h"
#include "spans.h"

namespace qla {
namespace {

struct Case {
  std::vector<float> start, end;
  std::vector<uint8_t> is_context;
  std::vector<int64_t> offsets{0}, questions{0};
  int32_t max_tokens = 30;

  void add_window(const std::vector<float>& starts, const std::vector<float>& ends,
                  const std::vector<uint8_t>& context) {
    start.insert(start.end(), starts.begin(), starts.end());
    end.insert(end.end(), ends.begin(), ends.end());
    is_context.insert(is_context.end(), context.begin(), context.end());
    offsets.push_back(static_cast<int64_t>(start.size()));
  }
  void end_question() { questions.push_back(static_cast<int64_t>(offsets.size()) - 1); }
};

struct Answer {
  int32_t window = -1, first = -1, last = -1;
  float score = -1.0f;
};

std::vector<Answer> run(const Case& c) {
  const size_t n = c.questions.size() - 1;
  std::vector<int32_t> window(n), first(n), last(n);
  std::vector<float> score(n);
  best_spans(c.start.data(), c.end.data(), c.is_context.data(), c.offsets.data(),
             c.questions.data(), static_cast<int64_t>(n), c.max_tokens, window.data(), first.data(),
             last.data(), score.data());
  std::vector<Answer> answers;
  for (size_t i = 0; i < n; ++i) answers.push_back({window[i], first[i], last[i], score[i]});
  return answers;
}

// exp(logit) / sum of exp over the question's context tokens, in long double.
long double probability(const Case& c, const std::vector<float>& logits, size_t question,
                        int64_t token) {
  long double total = 0;
  const int64_t begin = c.offsets[c.questions[question]];
  for (int64_t i = begin; i < c.offsets[c.questions[question + 1]]; ++i) {
    if (c.is_context[i]) total += std::exp(static_cast<long double>(logits[i]) - logits[token]);
  }
  return 1 / total;
}

Answer brute_force(const Case& c, size_t question) {
  Answer best;
  long double best_score = -1;
  for (int64_t w = c.questions[question]; w < c.questions[question + 1]; ++w) {
    const int64_t from = c.offsets[w], to = c.offsets[w + 1];
    for (int64_t i = from; i < to; ++i) {
      for (int64_t j = i; j < to && j - i + 1 <= c.max_tokens; ++j) {
        if (!c.is_context[i] || !c.is_context[j]) continue;
        const long double score =
            probability(c, c.start, question, i) * probability(c, c.end, question, j);
        if (score <= best_score) continue;
        best_score = score;
        best = {static_cast<int32_t>(w), static_cast<int32_t>(i - from),
                static_cast<int32_t>(j - from), static_cast<float>(score)};
      }
    }
  }
  return best;
}

Case random_case(std::mt19937& random) {
  Case c;
  c.max_tokens = static_cast<int32_t>(1 + random() % 6);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const auto draw = [&](size_t n) {
    std::vector<float> logits(n);
    for (float& logit : logits) logit = normal(random);
    return logits;
  };
  for (int question = 0; question < 3; ++question) {
    for (size_t window = 0; window <= random() % 3; ++window) {
      const size_t n = 1 + random() % 12;
      std::vector<uint8_t> context(n);
      for (uint8_t& flag : context) flag = random() % 3 != 0;
      if (window == 0) context[random() % n] = 1;
      c.add_window(draw(n), draw(n), context);
    }
    c.end_question();
  }
  return c;
}

TEST(Spans, AgreeWithBruteForce) {
  std::mt19937 random(11);
  for (int round = 0; round < 500; ++round) {
    const Case c = random_case(random);
    const auto answers = run(c);
    for (size_t q = 0; q < answers.size(); ++q) {
      const Answer expected = brute_force(c, q);
      ASSERT_EQ(answers[q].window, expected.window);
      ASSERT_EQ(answers[q].first, expected.first);
      ASSERT_EQ(answers[q].last, expected.last);
      // Both are rounded once to float from something far more precise.
      ASSERT_NEAR(answers[q].score, expected.score, 6.0e-8f * expected.score);
    }
  }
}

TEST(Spans, TiesGoToTheEarlierWindowStartAndEnd) {
  Case c;
  const std::vector<float> flat(5, 1.0f);
  c.add_window(flat, flat, {0, 0, 1, 1, 1});
  c.add_window(flat, flat, {1, 1, 1, 1, 1});
  c.end_question();
  const Answer answer = run(c)[0];
  EXPECT_EQ(answer.window, 0);
  EXPECT_EQ(answer.first, 2);
  EXPECT_EQ(answer.last, 2);
  EXPECT_FLOAT_EQ(answer.score, 1.0f / 64.0f);
}

TEST(Spans, LogitsFarApartStillRank) {
  Case c;  // every allowed span has a probability that even a double rounds to zero
  c.max_tokens = 1;
  c.add_window({0.0f, 900.0f, 5.0f}, {900.0f, 0.0f, 5.0f}, {1, 1, 1});
  c.end_question();
  EXPECT_EQ(run(c)[0].first, 0);  // sums 900, 900, 10
  c.end[1] = 1.0f;
  EXPECT_EQ(run(c)[0].first, 1);
  EXPECT_EQ(run(c)[0].score, 0.0f);
}

TEST(Spans, TokensOutsideTheContextMayHoldAnything) {
  Case c;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  c.add_window({nan, 1.0f, 1e30f}, {nan, 1.0f, 1e30f}, {0, 1, 0});
  c.end_question();
  EXPECT_EQ(run(c)[0].first, 1);
  EXPECT_EQ(run(c)[0].score, 1.0f);
}

TEST(Spans, ManyTokensAllowedIsNoOverflow) {
  Case c;
  c.max_tokens = std::numeric_limits<int32_t>::max();
  c.add_window({9.0f, 0.0f}, {0.0f, 9.0f}, {1, 1});
  c.end_question();
  EXPECT_EQ(run(c)[0].last, 1);
}

void expect_refused(const Case& c, const std::string& words) {
  try {
    run(c);
    FAIL() << "not refused: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.code, QLA_INVALID_INPUT);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(Spans, RefusesWhatMakesNoSense) {
  Case good;
  good.add_window({1.0f, 2.0f}, {1.0f, 2.0f}, {1, 1});
  good.end_question();
  ASSERT_EQ(run(good)[0].last, 1);

  Case c = good;
  c.max_tokens = 0;
  expect_refused(c, "max_tokens is 0");
  c = good;
  c.is_context = {0, 0};
  expect_refused(c, "question 0 has no context token");
  c = good;
  c.end_question();  // a question without windows
  expect_refused(c, "question 1 has no context token");
  c = good;
  c.offsets = {0, -1};
  expect_refused(c, "offsets[1] is -1");
  c = good;
  c.questions = {0, -1};
  expect_refused(c, "questions[1] is -1");
  c = good;
  c.offsets = {1, 2};
  expect_refused(c, "offsets[0] is 1");
  for (const float wrong : {NAN, INFINITY, -INFINITY}) {
    c = good;
    c.end[1] = wrong;
    expect_refused(c, "must be finite");
  }
}

TEST(Spans, RefusesNullAndTakesNoQuestions) {
  EXPECT_THROW(best_spans(nullptr, nullptr, nullptr, nullptr, nullptr, 1, 1, nullptr, nullptr,
                          nullptr, nullptr),
               Error);
  EXPECT_THROW(best_spans(nullptr, nullptr, nullptr, nullptr, nullptr, -1, 1, nullptr, nullptr,
                          nullptr, nullptr),
               Error);
  EXPECT_NO_THROW(best_spans(nullptr, nullptr, nullptr, nullptr, nullptr, 0, 1, nullptr, nullptr,
                             nullptr, nullptr));
}

// ---- qla_top_spans
// ---------------------------------------------------------------------------------

struct Found {
  std::vector<int32_t> counts, window, first, last;
  std::vector<float> score, null_score;
};

Found top(const Case& c, int32_t top_k, qla_span_score rule,
          const std::vector<int64_t>& positions = {}) {
  const size_t n = c.questions.size() - 1, all = n * static_cast<size_t>(std::max(top_k, 0));
  std::vector<float> pairs;  // as qla_run gives them: (tokens, 2)
  for (size_t i = 0; i < c.start.size(); ++i) {
    pairs.push_back(c.start[i]);
    pairs.push_back(c.end[i]);
  }
  Found found{std::vector<int32_t>(n),   std::vector<int32_t>(all), std::vector<int32_t>(all),
              std::vector<int32_t>(all), std::vector<float>(all),   std::vector<float>(n)};
  qla_span_search search{};
  search.struct_size = sizeof search;
  search.start_logits = pairs.data();
  search.end_logits = pairs.data() + 1;
  search.logit_stride = 2;
  search.is_context = c.is_context.data();
  search.offsets = c.offsets.data();
  search.questions = c.questions.data();
  search.num_questions = static_cast<int64_t>(n);
  search.positions = positions.empty() ? nullptr : positions.data();
  search.max_tokens = c.max_tokens;
  search.top_k = top_k;
  search.score = rule;
  const qla_spans spans{sizeof(qla_spans),      found.counts.data(), found.window.data(),
                        found.first.data(),     found.last.data(),   found.score.data(),
                        found.null_score.data()};
  top_spans(search, spans);
  return found;
}

TEST(TopSpans, TheFirstOfAllWindowsIsBestSpansToTheBit) {
  std::mt19937 random(12);
  for (int round = 0; round < 200; ++round) {
    const Case c = random_case(random);
    const auto expected = run(c);
    for (const int32_t top_k : {1, 4}) {
      const Found found = top(c, top_k, QLA_SPAN_SCORE_ALL_WINDOWS);
      for (size_t q = 0; q < expected.size(); ++q) {
        const size_t row = q * static_cast<size_t>(top_k);
        ASSERT_EQ(found.window[row], expected[q].window);
        ASSERT_EQ(found.first[row], expected[q].first);
        ASSERT_EQ(found.last[row], expected[q].last);
        ASSERT_EQ(found.score[row], expected[q].score);
      }
    }
  }
}

TEST(TopSpans, InOneWindowAllWindowsAndAgainstNullAreTheSameBits) {
  std::mt19937 random(13);
  std::normal_distribution<float> normal(0.0f, 6.0f);
  for (int round = 0; round < 200; ++round) {
    Case c;
    std::vector<float> start(12), end(12);
    for (float& logit : start) logit = normal(random);
    for (float& logit : end) logit = normal(random);
    c.add_window(start, end, {0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0});
    c.end_question();
    const Found a = top(c, 8, QLA_SPAN_SCORE_ALL_WINDOWS),
                b = top(c, 8, QLA_SPAN_SCORE_AGAINST_NULL);
    ASSERT_EQ(a.first, b.first);
    ASSERT_EQ(a.last, b.last);
    ASSERT_EQ(a.score, b.score);
  }
}

TEST(TopSpans, ASpanThatTwoWindowsShareComesOnce) {
  Case c;  // tokens 0 to 3 of the context: both windows hold 1 and 2, and find 2 the best
  c.max_tokens = 1;
  c.add_window({0, 1, 2, 9}, {0, 1, 2, 9}, {0, 1, 1, 1});
  c.add_window({0, 2, 8, 1}, {0, 2, 8, 1}, {0, 1, 1, 1});
  c.end_question();
  const Found shared = top(c, 6, QLA_SPAN_SCORE_AGAINST_NULL, {0, 1});
  EXPECT_EQ(shared.counts[0], 4);
  EXPECT_EQ(shared.window, (std::vector<int32_t>{0, 0, 0, 1, -1, -1}));
  EXPECT_EQ(shared.first, (std::vector<int32_t>{3, 2, 1, 3, -1, -1}));
  // The second window's best span is the answer too, so the first one's softmax stands alone.
  const double p = 1 / (1 + std::exp(-7.0) + std::exp(-8.0));
  EXPECT_NEAR(shared.score[0], p * p, 1e-7);
  EXPECT_EQ(top(c, 6, QLA_SPAN_SCORE_AGAINST_NULL).counts[0], 6);  // nothing known of sharing
}

TEST(TopSpans, TokensWithoutTextAreNoAnswerOfTheirOwn) {
  Case c;
  c.max_tokens = 2;
  c.add_window({0, 9, 1, 1}, {0, 9, 1, 1}, {0, 2, 1, 2});
  c.end_question();
  const Found found = top(c, 5, QLA_SPAN_SCORE_AGAINST_NULL);
  // All allowed spans show token 2 alone, so one is left: the best, which begins before it.
  EXPECT_EQ(found.counts[0], 1);
  EXPECT_EQ(found.first[0], 1);
  EXPECT_EQ(found.last[0], 2);
  c.is_context = {0, 2, 2, 2};
  EXPECT_THROW(top(c, 1, QLA_SPAN_SCORE_AGAINST_NULL), Error);
}

TEST(TopSpans, NullIsTheLowestOfAllWindows) {
  Case c;
  c.add_window({3, 1}, {2, 1}, {0, 1});
  c.add_window({0, 5}, {1, 5}, {0, 1});
  c.end_question();
  const auto p = [](double null, double token) { return 1 / (1 + std::exp(token - null)); };
  EXPECT_NEAR(top(c, 1, QLA_SPAN_SCORE_WITH_NULL).null_score[0], p(0, 5) * p(1, 5), 1e-8);
  EXPECT_NEAR(top(c, 1, QLA_SPAN_SCORE_WITH_NULL).score[0], p(5, 0) * p(5, 1), 1e-7);
  c.is_context = {1, 1, 1, 1};  // no token stands for null
  EXPECT_EQ(top(c, 1, QLA_SPAN_SCORE_WITH_NULL).null_score[0], 0.0f);
}

TEST(TopSpans, RefusesWhatItCannotMean) {
  Case c;
  c.add_window({0, 1}, {0, 1}, {0, 1});
  c.end_question();
  EXPECT_THROW(top(c, 0, QLA_SPAN_SCORE_WITH_NULL), Error);
  EXPECT_THROW(top(c, 1025, QLA_SPAN_SCORE_WITH_NULL), Error);
  EXPECT_THROW(top(c, 1, static_cast<qla_span_score>(3)), Error);
  c.start[0] = NAN;  // the null's logits are read
  EXPECT_THROW(top(c, 1, QLA_SPAN_SCORE_AGAINST_NULL), Error);
  qla_span_search search{};
  EXPECT_THROW(top_spans(search, qla_spans{}), Error);  // no max_tokens, top_k, logit_stride
  search.max_tokens = search.top_k = 1;
  for (const int64_t stride : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    search.logit_stride = stride;
    EXPECT_THROW(top_spans(search, qla_spans{}), Error);
  }
  search.logit_stride = 2;
  EXPECT_NO_THROW(top_spans(search, qla_spans{}));  // no questions
  search.num_questions = 1;
  EXPECT_THROW(top_spans(search, qla_spans{}), Error);  // no pointers
}

}  // namespace
}  // namespace qla
