// Span QA from somebody else's program: the logits of qla::Engine::run go to qla::top_spans as they
// are. Prints "window first last score" of each span, then the null score.
#include <cstdio>
#include <cstdlib>
#include <qla/qla.hpp>
#include <vector>

int main(int, char** arguments) try {
  qla::Engine engine(arguments[1], {1});
  qla::Batch batch;
  std::vector<std::uint8_t> is_context;
  for (int window = 0; window < 2; ++window) {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 20; ++i) {
      ids.push_back((7 + 31 * i + window) % 100);
      is_context.push_back(i >= 5 && i < 19);
    }
    batch.add(ids);
  }
  const qla::Output out = engine.run(batch);
  const std::int64_t questions[] = {0, 2}, positions[] = {0, 9};
  qla_span_search search{};
  search.start_logits = out.logits.data();
  search.end_logits = out.logits.data() + 1;
  search.logit_stride = 2;
  search.is_context = is_context.data();
  search.offsets = batch.offsets().data();
  search.questions = questions;
  search.num_questions = 1;
  search.positions = positions;
  search.max_tokens = 6;
  search.top_k = std::atoi(arguments[2]);
  search.score = std::atoi(arguments[3]);
  const qla::Answers found = qla::top_spans(search).at(0);
  for (const qla::Span& span : found.spans) {
    std::printf("%d %d %d %.9g\n", span.window, span.first, span.last, span.score);
  }
  std::printf("%.9g\n", found.null_score);
} catch (const qla::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
