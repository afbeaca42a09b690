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

}  // namespace
}  // namespace qla
