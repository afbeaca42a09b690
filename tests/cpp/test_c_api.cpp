// The C door against callers who get it wrong, and callers who want no more.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "package_in_memory.h"
#include "qla/qla.h"

namespace qla {
namespace {

class CApi : public ::testing::Test {
 public:
  void SetUp() override {
    files_ = std::make_unique<Lent>(good_files());
    open(1);
  }
  void TearDown() override { qla_free(engine_); }

  void open(int threads) {
    qla_free(engine_);
    qla_options options{};
    options.struct_size = sizeof options;
    options.num_threads = threads;
    ASSERT_EQ(qla_open_memory(files_->view.data(), files_->view.size(), &options, &engine_), QLA_OK)
        << qla_last_error();
  }

  // Two sequences, of 3 and 5 tokens.
  qla_batch batch() const {
    qla_batch batch{};
    batch.struct_size = sizeof batch;
    batch.input_ids = ids_.data();
    batch.offsets = offsets_.data();
    batch.num_sequences = 2;
    return batch;
  }
  qla_outputs outputs() {
    qla_outputs outputs{};
    outputs.struct_size = sizeof outputs;
    outputs.logits = logits_.data();
    return outputs;
  }

  // The engine says so, and answers the next good call as before.
  void refused(const qla_batch& batch, const std::string& words) {
    refused(batch, outputs(), words);
  }
  void refused(const qla_batch& batch, const qla_outputs& out, const std::string& words) {
    EXPECT_EQ(qla_run(engine_, &batch, &out), QLA_INVALID_INPUT) << words;
    EXPECT_NE(std::string(qla_last_error()).find(words), std::string::npos) << qla_last_error();
    works();
  }
  void works() {
    const qla_batch good = batch();
    const qla_outputs out = outputs();
    logits_.assign(logits_.size(), NAN);
    ASSERT_EQ(qla_run(engine_, &good, &out), QLA_OK) << qla_last_error();
    for (int s = 0; s < 2; ++s) {
      const float* row = logits_.data() + 64 * s;  // of length 1
      EXPECT_NEAR(std::inner_product(row, row + 64, row, 0.0f), 1.0f, 1e-5f);
    }
  }

  std::unique_ptr<Lent> files_;
  qla_engine* engine_ = nullptr;
  std::vector<int32_t> ids_{1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<int64_t> offsets_{0, 3, 8};
  std::vector<float> logits_ = std::vector<float>(2 * 64);
};

// ---- offsets
// -------------------------------------------------------------------------------------

TEST_F(CApi, OffsetsAreCheckedBeforeAnyIdIsRead) {
  // The ids end where a page begins that nobody may read.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* pages = static_cast<char*>(
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(static_cast<void*>(pages), MAP_FAILED);
  ASSERT_EQ(mprotect(pages + page, page, PROT_NONE), 0);
  auto* ids = reinterpret_cast<int32_t*>(pages + page) - 3;
  ids[0] = ids[1] = ids[2] = 1;
  qla_batch wrong = batch();
  wrong.input_ids = ids;
  const std::vector<std::vector<int64_t>> falling = {
      {0, 8, 3}, {0, 3, 1}, {0, 3, INT64_MIN}, {0, INT64_MIN, 3}, {0, -1, 3}};
  for (const auto& offsets : falling) {
    wrong.offsets = offsets.data();
    refused(wrong, "offsets must rise");
  }
  munmap(pages, 2 * page);
}

TEST_F(CApi, OffsetsOutOfBounds) {
  const std::vector<std::pair<std::vector<int64_t>, std::string>> cases = {
      {{1, 3, 8}, "offsets[0] is 1; it must be 0"},
      {{INT64_MIN, 3, 8}, "offsets[0] is -9223372036854775808"},
      {{0, 0, 8}, "sequence 0 has 0 tokens"},
      {{0, 3, INT64_MAX}, "has 9223372036854775804 tokens, but this model has max_positions = 8"},
      {{0, 9, 10}, "sequence 0 has 9 tokens"}};
  for (const auto& [offsets, words] : cases) {
    qla_batch wrong = batch();
    wrong.offsets = offsets.data();
    refused(wrong, words);
  }
}

TEST_F(CApi, CountsOutOfBounds) {
  for (const int64_t count : {int64_t{0}, int64_t{-1}, INT64_MIN}) {
    qla_batch wrong = batch();
    wrong.num_sequences = count;
    refused(wrong, "it needs at least one");
  }
  qla_batch wrong = batch();
  wrong.num_sequences = INT64_MAX;
  refused(wrong, "at most 1073741823 in one call");
  const double value = 1.0;
  const qla_length_config config{QLA_LENGTH_RATIO, -1, &value, 1};
  wrong = batch();
  wrong.lengths = &config;
  for (const int32_t count : {0, -1, INT32_MIN}) {
    wrong.num_lengths = count;
    refused(wrong, "give both, or neither");
  }
  wrong.num_lengths = 1;
  for (const int32_t index : {-1, 1, INT32_MIN, INT32_MAX}) {
    const std::vector<int32_t> indices{0, index};
    wrong.length_index = indices.data();
    refused(wrong, "length_index of sequence 1 is " + std::to_string(index));
  }
}

TEST_F(CApi, LengthConfigsOutOfBounds) {
  const double below = -1.0, nan = NAN, above = 1.5;
  const std::vector<std::pair<qla_length_config, std::string>> cases = {
      {{QLA_LENGTH_RATIO, -1, nullptr, 1}, "give one entry per layer"},
      {{QLA_LENGTH_RATIO, -1, &above, INT32_MIN}, "give one entry per layer"},
      {{QLA_LENGTH_RATIO, -1, &below, 1}, "positive, finite"},
      {{QLA_LENGTH_RATIO, -1, &nan, 1}, "positive, finite"},
      {{QLA_LENGTH_RATIO, -1, &above, 1}, "may not exceed 1.0"}};
  for (const auto& [config, words] : cases) {
    qla_batch wrong = batch();
    wrong.lengths = &config;
    wrong.num_lengths = 1;
    refused(wrong, words);
  }
}

// ---- pointers
// ------------------------------------------------------------------------------------

TEST_F(CApi, NullPointers) {
  const qla_batch good = batch();
  const qla_outputs out = outputs();
  EXPECT_EQ(qla_run(nullptr, &good, &out), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_run(engine_, nullptr, &out), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_run(engine_, &good, nullptr), QLA_INVALID_INPUT);
  qla_batch wrong = batch();
  wrong.input_ids = nullptr;
  refused(wrong, "input_ids is NULL");
  wrong = batch();
  wrong.offsets = nullptr;
  refused(wrong, "offsets is NULL");
  qla_engine* other = nullptr;
  EXPECT_EQ(qla_open(nullptr, nullptr, &other), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_open("x", nullptr, nullptr), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_open_memory(nullptr, 0, nullptr, &other), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_get_info(engine_, nullptr), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_get_text(engine_, QLA_TEXT_EXPLAIN, nullptr, 0, nullptr), QLA_INVALID_INPUT);
  EXPECT_EQ(qla_crc32c(nullptr, 100), 0u);
  qla_free(nullptr);
  works();
}

TEST_F(CApi, InfoSaysWhatLogitsAreFor) {
  qla_model_info info{};
  info.struct_size = sizeof info;
  ASSERT_EQ(qla_get_info(engine_, &info), QLA_OK);
  EXPECT_EQ(info.task, QLA_TASK_EMBEDDING);
  EXPECT_EQ(info.logits_per_token, 0);
}

TEST_F(CApi, ArraysThatAreNotAligned) {
  const auto shifted = [](const auto* pointer) {
    return reinterpret_cast<decltype(pointer)>(reinterpret_cast<const char*>(pointer) + 1);
  };
  qla_batch wrong = batch();
  wrong.input_ids = shifted(wrong.input_ids);
  refused(wrong, "input_ids is not aligned to 4 bytes");
  wrong = batch();
  wrong.offsets = shifted(wrong.offsets);
  refused(wrong, "offsets is not aligned to 8 bytes");
  qla_outputs out = outputs();
  out.logits = const_cast<float*>(shifted(out.logits));
  refused(batch(), out, "logits is not aligned to 4 bytes");
}

// ---- options
// -------------------------------------------------------------------------------------

TEST_F(CApi, OptionsOutOfBounds) {
  qla_engine* other = nullptr;
  for (const int32_t count : {-1, INT32_MIN, INT32_MAX, 1025}) {
    qla_options options{};
    options.struct_size = sizeof options;
    options.num_threads = count;
    EXPECT_EQ(qla_open_memory(files_->view.data(), files_->view.size(), &options, &other),
              QLA_INVALID_INPUT);
    options.num_threads = 1;
    options.streams = count;
    EXPECT_EQ(qla_open_memory(files_->view.data(), files_->view.size(), &options, &other),
              QLA_INVALID_INPUT);
  }
  qla_options options{};
  options.struct_size = sizeof options;
  options.isa = "\x1b[31mred";
  EXPECT_EQ(qla_open_memory(files_->view.data(), files_->view.size(), &options, &other),
            QLA_INVALID_INPUT);
  EXPECT_EQ(std::string(qla_last_error()).find('\x1b'), std::string::npos);
}

// ---- stopping
// ------------------------------------------------------------------------------------

struct Countdown {
  int left;
  std::atomic<bool> other_thread{false};
  const std::thread::id caller = std::this_thread::get_id();

  static int32_t ask(void* self) {
    auto& count = *static_cast<Countdown*>(self);
    if (std::this_thread::get_id() != count.caller) count.other_thread = true;
    return --count.left < 0;
  }
};

TEST_F(CApi, ACallStopsWhereverItIsAsked) {
  for (const int threads : {1, 3}) {
    open(threads);
    const qla_outputs out = outputs();
    qla_batch stopping = batch();
    stopping.stop = Countdown::ask;
    int stops = 0;
    for (int left = 0;; ++left) {  // at the first question, the second, ... until it is through
      Countdown countdown{left};
      stopping.stop_user = &countdown;
      const qla_status status = qla_run(engine_, &stopping, &out);
      EXPECT_FALSE(countdown.other_thread);
      if (status == QLA_OK) break;
      ASSERT_EQ(status, QLA_STOPPED);
      EXPECT_STREQ(qla_last_error(), "stopped on the caller's request");
      ++stops;
    }
    EXPECT_GT(stops, 3) << "asked in every stage";
    works();
  }
}

TEST_F(CApi, ACallerInLineStops) {
  // The first call holds the only stream until the second has been stopped in line.
  std::atomic<bool> inside{false}, second_done{false};
  struct Shared {
    std::atomic<bool>&inside, &done;
  } shared{inside, second_done};
  std::thread first([&] {
    qla_batch holding = batch();
    holding.stop_user = &shared;
    holding.stop = [](void* user) -> int32_t {
      auto& both = *static_cast<Shared*>(user);
      both.inside = true;
      while (!both.done) std::this_thread::yield();
      return 0;
    };
    std::vector<float> logits(2 * 64);
    qla_outputs out{};
    out.struct_size = sizeof out;
    out.logits = logits.data();
    EXPECT_EQ(qla_run(engine_, &holding, &out), QLA_OK);
  });
  while (!inside) std::this_thread::yield();
  Countdown countdown{2};
  qla_batch waiting = batch();
  waiting.stop = Countdown::ask;
  waiting.stop_user = &countdown;
  const qla_outputs out = outputs();
  EXPECT_EQ(qla_run(engine_, &waiting, &out), QLA_STOPPED);
  second_done = true;
  first.join();
  works();
}

TEST_F(CApi, ACallbackThatCallsItsEngineIsRefused) {
  struct Again {
    CApi* test;
    qla_status status;
  } again{this, QLA_OK};
  qla_batch outer = batch();
  outer.stop_user = &again;
  outer.stop = [](void* user) -> int32_t {
    auto& self = *static_cast<Again*>(user);
    CApi* test = self.test;
    const qla_batch inner = test->batch();
    const qla_outputs out = test->outputs();
    self.status = qla_run(test->engine_, &inner, &out);
    return 1;
  };
  const qla_outputs out = outputs();
  EXPECT_EQ(qla_run(engine_, &outer, &out), QLA_STOPPED);
  EXPECT_EQ(again.status, QLA_INVALID_INPUT);
  works();
}

}  // namespace
}  // namespace qla
