// The best answer spans of each question over all its windows: qla_top_spans and qla_best_spans in
// C++.
#pragma once

#include <cstdint>

#include "qla/qla.h"

namespace qla {

// Arguments, ties and errors as qla_top_spans in qla/qla.h says; throws qla::Error.
void top_spans(const qla_span_search& search, const qla_spans& spans);

// Arguments, ties and errors as qla_best_spans in qla/qla.h says; throws qla::Error.
void best_spans(const float* start_logits, const float* end_logits, const uint8_t* is_context,
                const int64_t* offsets, const int64_t* questions, int64_t num_questions,
                int32_t max_tokens, int32_t* window, int32_t* first, int32_t* last, float* score);

}  // namespace qla
