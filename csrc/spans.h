// The best answer span of each question over all its windows: qla_best_spans in C++.
#pragma once

#include <cstdint>

namespace qla {

// Arguments, ties and errors as qla_best_spans in qla/qla.h says; throws qla::Error.
void best_spans(const float* start_logits, const float* end_logits, const uint8_t* is_context,
                const int64_t* offsets, const int64_t* questions, int64_t num_questions,
                int32_t max_tokens, int32_t* window, int32_t* first, int32_t* last, float* score);

}  // namespace qla
