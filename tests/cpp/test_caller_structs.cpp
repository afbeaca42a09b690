// Every struct of the C door from callers whose header had fewer fields, and from callers whose
// header has more than this library knows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "package_in_memory.h"
#include "qla/qla.h"

namespace qla {
namespace {

constexpr unsigned char kUntouched = 0xee;

// A struct as a caller has it: a heap block of just its size, so that sanitizers see who goes
// beyond.
class CallerStruct {
 public:
  template <typename T>
  CallerStruct(const T& filled, size_t size) : size_(std::max(size, sizeof size)) {
    bytes_ = std::make_unique<unsigned char[]>(size_);
    std::fill_n(bytes_.get(), size_, kUntouched);
    std::memcpy(bytes_.get(), &filled, std::min(size_, sizeof filled));
    std::memcpy(bytes_.get(), &size, sizeof size);
  }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(bytes_.get());
  }

 private:
  size_t size_;
  std::unique_ptr<unsigned char[]> bytes_;
};

class CallerStructs : public ::testing::Test {
 public:
  void SetUp() override {
    ASSERT_EQ(qla_open_memory(files_.view.data(), files_.view.size(), nullptr, &engine_), QLA_OK)
        << qla_last_error();
    batch_.input_ids = ids_.data();
    batch_.offsets = offsets_.data();
    batch_.num_sequences = 1;
    batch_.struct_size = sizeof batch_;
    outputs_.logits = logits_.data();
    outputs_.struct_size = sizeof outputs_;
  }
  void TearDown() override { qla_free(engine_); }

  // Tries a struct of every size. `ends`: where its fields end; only such a size, and one with the
  // padding that belongs to it, may reach the function behind it.
  template <typename T>
  void try_sizes(const std::string& name, const T& filled, std::vector<size_t> ends,
                 const std::function<qla_status(T*)>& call) {
    ends.push_back(sizeof(size_t));
    for (size_t size = 0; size < sizeof(T) + 64; ++size) {
      CallerStruct given(filled, size);
      const bool known = std::any_of(ends.begin(), ends.end(), [&](size_t end) {
        return size == end || size == (end + alignof(T) - 1) / alignof(T) * alignof(T);
      });
      const qla_status status = call(given.as<T>());
      const std::string message = status == QLA_OK ? "" : qla_last_error();
      const std::string refusal = name + ".struct_size is " + std::to_string(size);
      const bool refused = message.find(refusal) != std::string::npos;
      EXPECT_EQ(refused, !known) << name << ", " << size << " bytes: " << message;
      if (refused) {
        EXPECT_EQ(status, QLA_INVALID_INPUT);
        const char* why = size > sizeof(T) ? "more than this library knows" : "inside a field";
        EXPECT_NE(message.find(why), std::string::npos) << message;
      }
    }
    for (const size_t size : {size_t{4096}, SIZE_MAX / 2 + 1, SIZE_MAX}) {
      T grown = filled;
      grown.struct_size = size;
      EXPECT_EQ(call(&grown), QLA_INVALID_INPUT);
    }
  }

  const Lent files_{good_files()};
  qla_engine* engine_ = nullptr;
  const std::vector<int32_t> ids_{1, 2, 3};
  const std::vector<int64_t> offsets_{0, 3};
  std::vector<float> logits_ = std::vector<float>(64);
  qla_batch batch_{};
  qla_outputs outputs_{};
};

#define END(type, field) (offsetof(type, field) + sizeof(type::field))

TEST_F(CallerStructs, Options) {
  try_sizes<qla_options>(
      "qla_options", qla_options{},
      {END(qla_options, num_threads), END(qla_options, streams), END(qla_options, isa),
       END(qla_options, stop), END(qla_options, stop_user), END(qla_options, weights)},
      [&](const qla_options* options) {
        qla_engine* other = nullptr;
        const qla_status status =
            qla_open_memory(files_.view.data(), files_.view.size(), options, &other);
        qla_free(other);
        return status;
      });
}

TEST_F(CallerStructs, ModelInfo) {
  try_sizes<qla_model_info>(
      "qla_model_info", qla_model_info{},
      {END(qla_model_info, layers), END(qla_model_info, hidden), END(qla_model_info, heads),
       END(qla_model_info, intermediate), END(qla_model_info, vocab_size),
       END(qla_model_info, max_positions), END(qla_model_info, type_vocab_size),
       END(qla_model_info, task), END(qla_model_info, outputs), END(qla_model_info, num_threads),
       END(qla_model_info, streams), END(qla_model_info, logits_per_token)},
      [&](qla_model_info* info) { return qla_get_info(engine_, info); });
}

TEST_F(CallerStructs, ConfigInfo) {
  try_sizes<qla_config_info>(
      "qla_config_info", qla_config_info{},
      {END(qla_config_info, name), END(qla_config_info, length), END(qla_config_info, in_frontier),
       END(qla_config_info, macs), END(qla_config_info, macs_share), END(qla_config_info, metric),
       END(qla_config_info, accuracy), END(qla_config_info, data)},
      [&](qla_config_info* info) { return qla_get_config(engine_, 0, info); });
}

TEST_F(CallerStructs, Batch) {
  try_sizes<qla_batch>(
      "qla_batch", batch_,
      {END(qla_batch, input_ids), END(qla_batch, token_type_ids), END(qla_batch, offsets),
       END(qla_batch, num_sequences), END(qla_batch, lengths), END(qla_batch, num_lengths),
       END(qla_batch, length_index), END(qla_batch, stop), END(qla_batch, stop_user)},
      [&](const qla_batch* batch) { return qla_run(engine_, batch, &outputs_); });
}

TEST_F(CallerStructs, Outputs) {
  try_sizes<qla_outputs>(
      "qla_outputs", outputs_,
      {END(qla_outputs, last_hidden), END(qla_outputs, logits), END(qla_outputs, kept_counts),
       END(qla_outputs, kept), END(qla_outputs, hidden_states), END(qla_outputs, scores),
       END(qla_outputs, macs), END(qla_outputs, stage_seconds), END(qla_outputs, num_stages)},
      [&](const qla_outputs* outputs) { return qla_run(engine_, &batch_, outputs); });
}

TEST_F(CallerStructs, SpanSearch) {
  qla_span_search search{};  // of no questions
  search.logit_stride = search.max_tokens = search.top_k = 1;
  const qla_spans spans{sizeof spans, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  try_sizes<qla_span_search>(
      "qla_span_search", search,
      {END(qla_span_search, start_logits), END(qla_span_search, end_logits),
       END(qla_span_search, logit_stride), END(qla_span_search, is_context),
       END(qla_span_search, offsets), END(qla_span_search, questions),
       END(qla_span_search, num_questions), END(qla_span_search, positions),
       END(qla_span_search, max_tokens), END(qla_span_search, top_k), END(qla_span_search, score)},
      [&](const qla_span_search* given) { return qla_top_spans(given, &spans); });
}

TEST_F(CallerStructs, Spans) {
  qla_span_search search{};
  search.struct_size = sizeof search;
  search.logit_stride = search.max_tokens = search.top_k = 1;
  try_sizes<qla_spans>("qla_spans", qla_spans{},
                       {END(qla_spans, counts), END(qla_spans, window), END(qla_spans, first),
                        END(qla_spans, last), END(qla_spans, score), END(qla_spans, null_score)},
                       [&](const qla_spans* given) { return qla_top_spans(&search, given); });
}

// ---- what a field that the caller lacks means

TEST_F(CallerStructs, AShorterInfoIsFilledUpToItsEnd) {
  qla_model_info info{};
  info.struct_size = offsetof(qla_model_info, heads);
  info.heads = -7;
  EXPECT_EQ(qla_get_info(engine_, &info), QLA_OK);
  EXPECT_EQ(info.struct_size, offsetof(qla_model_info, heads));
  EXPECT_EQ(info.hidden, 64);
  EXPECT_EQ(info.heads, -7);
}

TEST_F(CallerStructs, AShorterBatchLacksItsLastFields) {
  batch_.stop = [](void*) -> int32_t { return 1; };
  EXPECT_EQ(qla_run(engine_, &batch_, &outputs_), QLA_STOPPED);
  batch_.struct_size = offsetof(qla_batch, stop);  // what version 0.1.0 had
  EXPECT_EQ(qla_run(engine_, &batch_, &outputs_), QLA_OK);
}

TEST_F(CallerStructs, StageSecondsAreAsManyAsTheCallerHasRoomFor) {
  static constexpr double kEmpty = -1.0;
  const auto stages = [&](int64_t num_stages, size_t struct_size) {
    std::vector<double> seconds(32, kEmpty);
    outputs_.stage_seconds = seconds.data();
    outputs_.num_stages = num_stages;
    outputs_.struct_size = struct_size;
    EXPECT_EQ(qla_run(engine_, &batch_, &outputs_), QLA_OK) << qla_last_error();
    return seconds;
  };
  const auto count = [](const std::vector<double>& seconds) {
    return std::find(seconds.begin(), seconds.end(), kEmpty) - seconds.begin();
  };
  const size_t without_count = offsetof(qla_outputs, num_stages);
  EXPECT_EQ(count(stages(31, without_count)), 8);  // nobody reads the field behind the struct
  EXPECT_EQ(count(stages(0, sizeof outputs_)), 8);
  for (const int64_t room : {1, 7, 8, 9, 31}) {
    const std::vector<double> seconds = stages(room, sizeof outputs_);
    EXPECT_EQ(count(seconds), room);
    EXPECT_GT(seconds[QLA_STAGE_EMBED], 0.0);
    for (int64_t i = QLA_NUM_STAGES; i < room; ++i) EXPECT_EQ(seconds[i], 0.0);
  }
}

TEST_F(CallerStructs, StageCountsThatCannotBeAreRefused) {
  std::vector<double> seconds(QLA_NUM_STAGES);
  outputs_.stage_seconds = seconds.data();
  for (const int64_t count : {int64_t{-1}, int64_t{1025}, INT64_MIN, INT64_MAX}) {
    outputs_.num_stages = count;
    EXPECT_EQ(qla_run(engine_, &batch_, &outputs_), QLA_INVALID_INPUT);
    const std::string words = "num_stages is " + std::to_string(count) + "; it must be 0 to 1024";
    EXPECT_NE(std::string(qla_last_error()).find(words), std::string::npos) << qla_last_error();
  }
}

}  // namespace
}  // namespace qla
