/* qla.h - the one door into the engine: plain C, opaque handles, caller-owned buffers.
 *
 * Rules that hold for every function here
 *  - It returns a qla_status; on anything but QLA_OK, qla_last_error() on the same thread says
 *    which limit was met, by which value, and what to do about it.
 *  - No exception crosses it, it prints nothing, and it never aborts. After an error the engine
 *    answers the next good call as if nothing had happened.
 *  - Every struct passed by itself starts with its own size (`struct_size = sizeof the_struct`), so
 *    a library newer than its caller reads only what the caller knew about. New fields come at the
 *    end; a size that ends inside a field, or beyond the last one, is refused. Structs passed in
 *    arrays (qla_length_config, qla_file) do not change within a major version.
 *  - A qla_engine may be used from several threads at once: up to `streams` calls run side by side,
 *    the others wait in the order they came.
 */
#ifndef QLA_QLA_H
#define QLA_QLA_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define QLA_API __attribute__((visibility("default")))
#else
#define QLA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define QLA_VERSION_MAJOR 0
#define QLA_VERSION_MINOR 1
#define QLA_VERSION_PATCH 0

typedef enum qla_status {
  QLA_OK = 0,
  QLA_INVALID_INPUT = 1, /* the call is wrong: ids, masks, lengths, sizes */
  QLA_BAD_PACKAGE = 2,   /* the package is missing, damaged or hostile */
  QLA_UNSUPPORTED = 3,   /* well formed, but this build or this CPU cannot do it */
  QLA_OUT_OF_MEMORY = 4,
  QLA_INTERNAL = 5, /* a bug in the engine; please report it */
  QLA_STOPPED = 6   /* the call's own stop callback ended it */
} qla_status;

/* What the model's head computes; see docs/file-format.md. */
typedef enum qla_task {
  QLA_TASK_SPAN_QA = 0,                 /* logits (tokens, 2): start, end */
  QLA_TASK_SEQUENCE_CLASSIFICATION = 1, /* logits (sequences, outputs) */
  QLA_TASK_TOKEN_CLASSIFICATION = 2,    /* logits (tokens, outputs) */
  QLA_TASK_EMBEDDING = 3 /* logits (sequences, hidden): pooled, normalized if asked */
} qla_task;

/* How a length config's values are read; docs/architecture.md, "Length semantics". */
typedef enum qla_length_rule {
  QLA_LENGTH_RATIO = 0, /* share of the sequence's real length, (0, 1] */
  QLA_LENGTH_TOKENS = 1 /* absolute token counts */
} qla_length_rule;

typedef struct qla_engine qla_engine;

/* Asked again and again while a call runs, on the calling thread, between pieces of work that take
 * about a millisecond: anything but 0 ends the call with QLA_STOPPED. It must be quick, must
 * return, and must not use the engine that asks. */
typedef int32_t (*qla_stop)(void* user);

/* One file of a package held in memory. `name` is its name inside the package folder. */
typedef struct qla_file {
  const char* name;
  const void* data; /* model.safetensors must be 64-byte aligned and outlive the engine */
  size_t size;
} qla_file;

typedef struct qla_options {
  size_t struct_size;
  int32_t num_threads; /* threads per stream; 0 = min(affinity, cgroup quota, OMP_NUM_THREADS) */
  int32_t streams;     /* calls that may run at once; 0 means 1 */
  const char* isa;     /* "ref","avx2","avxvnni","avx512vnni","amx"; NULL = best available */
  qla_stop stop;       /* ends the opening; NULL = never. Not used later: see qla_batch */
  void* stop_user;     /* passed to stop */
  const char* weights; /* where the linear layers' weights lie. "mapped": in the mapped file, which
                          all processes share. "resident": in a private copy on pages of 2 MiB.
                          "auto" or NULL: mapped, unless they exceed the last-level cache and the
                          system gives the file no large pages */
} qla_options;

typedef struct qla_model_info {
  size_t struct_size;
  int32_t layers, hidden, heads, intermediate, vocab_size;
  int32_t max_positions; /* longest sequence the position table allows, special tokens included */
  int32_t type_vocab_size;
  int32_t task;    /* qla_task */
  int32_t outputs; /* columns of `logits` */
  int32_t num_threads, streams;
  int32_t logits_per_token; /* 1: `logits` have a row for each token; 0: one for each sequence */
} qla_model_info;

typedef struct qla_length_config {
  int32_t rule;         /* qla_length_rule */
  int32_t keep_cls;     /* 1: position 0 always stays; 0: it may go; -1: as the package says */
  const double* values; /* one per layer, not rising */
  int32_t num_values;
} qla_length_config;

/* A ragged batch: sequence i owns input_ids[offsets[i] .. offsets[i+1]). No padding anywhere. */
typedef struct qla_batch {
  size_t struct_size;
  const int32_t* input_ids;
  const int32_t* token_type_ids; /* same length as input_ids; NULL = all 0 */
  const int64_t* offsets;        /* num_sequences + 1 entries, offsets[0] = 0, rising */
  int64_t num_sequences;
  const qla_length_config*
      lengths; /* the different configs of this call; NULL = keep every token */
  int32_t num_lengths;
  const int32_t* length_index; /* per sequence, which of `lengths`; NULL = the first for all */
  qla_stop stop;               /* ends the call; NULL = never. Outputs are then undefined */
  void* stop_user;             /* passed to stop */
} qla_batch;

/* Where results go. Every pointer is the caller's and may be NULL ("not wanted").
 * T = total tokens, S = sequences, L = layers, H = hidden. Rows of a sequence stand at its offsets.
 */
typedef struct qla_outputs {
  size_t struct_size;
  float* last_hidden;   /* (T, H): restored rows, every original position */
  float* logits;        /* (T, outputs) if qla_model_info.logits_per_token, else (S, outputs) */
  int32_t* kept_counts; /* (L, S): tokens that entered layer i's feed-forward */
  int32_t*
      kept; /* (L, T): their original positions, ascending, from the sequence's offset, then -1 */
  float*
      hidden_states; /* (L+1, T, H): after embeddings and after each layer, dropped rows carried */
  float* scores;     /* (L, T): attention column sums; NaN where the token was dropped before */
  int64_t* macs;     /* (S): multiply-accumulates this config costs for this sequence */
  double* stage_seconds; /* (num_stages): wall time by stage on the calling thread; 0.0 for a stage
                            that this library does not have */
  int64_t num_stages;    /* QLA_NUM_STAGES of the caller's header. 0 means 8: the stages there were
                            when this struct had no num_stages */
} qla_outputs;

enum {
  QLA_STAGE_EMBED = 0,     /* lookup, LayerNorm */
  QLA_STAGE_QKV = 1,       /* quantize, QKV projection */
  QLA_STAGE_ATTENTION = 2, /* QK^T, softmax, column sums, P.V */
  QLA_STAGE_SELECT = 3,    /* scores, top-k, restore */
  QLA_STAGE_OUTPUT = 4,    /* quantize, out-projection, residual, LayerNorm */
  QLA_STAGE_FFN = 5,       /* both feed-forward GEMMs, GELU, residual, LayerNorm */
  QLA_STAGE_HEAD = 6,
  QLA_STAGE_WAIT = 7, /* at barriers */
  QLA_NUM_STAGES = 8
};

/* Opens a package folder by mmap: weights are shared by all processes that map them. After a fork
 * the child may use its parent's engines, whatever other threads of the parent were doing. */
QLA_API qla_status qla_open(const char* folder, const qla_options* options, qla_engine** engine);

/* The same from buffers. model.safetensors is used in place; the small files are copied. */
QLA_API qla_status qla_open_memory(const qla_file* files, size_t num_files,
                                   const qla_options* options, qla_engine** engine);

QLA_API void qla_free(qla_engine* engine);

QLA_API qla_status qla_get_info(const qla_engine* engine, qla_model_info* info);

/* Texts the engine holds: copied to `buffer` with a closing NUL when `capacity` suffices;
 * `*length` always receives the length without it. */
typedef enum qla_text {
  QLA_TEXT_CONFIG = 0,         /* config.json as opened */
  QLA_TEXT_LENGTH_CONFIGS = 1, /* length_configs.json as opened */
  QLA_TEXT_EXPLAIN = 2,        /* which kernels run, why, on how many threads, and package facts */
  QLA_TEXT_TOKENIZER = 3       /* tokenizer.json as opened */
} qla_text;
QLA_API qla_status qla_get_text(const qla_engine* engine, qla_text which, char* buffer,
                                size_t capacity, size_t* length);

/* Runs one ragged batch. Same sequence and length config in, same bits out: whatever else is in
 * the batch, however many threads, whichever instruction set. */
QLA_API qla_status qla_run(qla_engine* engine, const qla_batch* batch, const qla_outputs* outputs);

/* Span QA: the best answer span of each question over all of its windows.
 * Window w's tokens are [offsets[w], offsets[w+1]) of start/end/is_context (global indices);
 * question q owns windows [questions[q], questions[q+1]). One softmax over the context tokens of
 * all windows of a question; score = p_start * p_end, start <= end, at most max_tokens long. This
 * is qla_top_spans with top_k = 1 and QLA_SPAN_SCORE_ALL_WINDOWS, for logits in two arrays of their
 * own; logits as qla_run gives them go to qla_top_spans without a copy.
 * Ties go to the earlier window, start, end. A question whose windows hold no context token is an
 * error. Results per question: window (its index w), first and last token inside it, score. */
QLA_API qla_status qla_best_spans(const float* start_logits, const float* end_logits,
                                  const uint8_t* is_context, const int64_t* offsets,
                                  const int64_t* questions, int64_t num_questions,
                                  int32_t max_tokens, int32_t* window, int32_t* first,
                                  int32_t* last, float* score);

/* What the score of an answer span is: p_start * p_end, and what the two softmaxes run over. The
 * first token of a window ([CLS]) stands for "no answer here", null, unless it is a context token;
 * its logits must be finite. */
typedef enum qla_span_score {
  /* The context tokens of all windows, the logits of each window less those of its null: a window
   * that holds no answer adds next to nothing, so the score keeps its meaning in long contexts.
   * Windows whose best span is the answer too count once. The highest sum of such logits is best.
   * With one window, this is QLA_SPAN_SCORE_ALL_WINDOWS to the bit. */
  QLA_SPAN_SCORE_AGAINST_NULL = 0,
  /* The context tokens of all windows, as qla_best_spans. */
  QLA_SPAN_SCORE_ALL_WINDOWS = 1,
  /* The context tokens of the span's own window and its null, as transformers. The highest score is
   * best. */
  QLA_SPAN_SCORE_WITH_NULL = 2
} qla_span_score;

/* Windows, questions and tokens are as for qla_best_spans. */
typedef struct qla_span_search {
  size_t struct_size;
  const float* start_logits;
  const float* end_logits;
  int64_t logit_stride; /* floats from one token's logit to the next token's. 1: two arrays of their
                           own; 2: qla_outputs.logits, with end_logits = start_logits + 1 */
  const uint8_t* is_context; /* 0: no context token; 2: one that shows no text (white space): an
                                answer needs another token, too; else: a context token */
  const int64_t* offsets;
  const int64_t* questions;
  int64_t num_questions;
  const int64_t* positions; /* per window: the place of its first context token in the whole
                               context, by which spans that two windows share are found; NULL: the
                               windows share none */
  int32_t max_tokens;
  int32_t top_k; /* spans per question, 1 to 1024 */
  int32_t score; /* qla_span_score */
} qla_span_search;

/* Results; every pointer is the caller's. Q = questions. Only null_score may be NULL. */
typedef struct qla_spans {
  size_t struct_size;
  int32_t* counts;   /* (Q): spans found, top_k at most */
  int32_t* window;   /* (Q, top_k), best first; -1 behind the last */
  int32_t* first;    /* (Q, top_k): first token inside the window; -1 behind the last */
  int32_t* last;     /* (Q, top_k) */
  float* score;      /* (Q, top_k) */
  float* null_score; /* (Q): the probability that no window holds an answer: p_start * p_end of the
                        first token, as in QLA_SPAN_SCORE_WITH_NULL, the lowest of all windows */
} qla_spans;

/* Span QA: the best answer spans of each question over all of its windows. They may overlap, but no
 * two have the same visible tokens; the better one stays. Ties go to the earlier window, start,
 * end. A question whose windows hold no visible context token is an error. */
QLA_API qla_status qla_top_spans(const qla_span_search* search, const qla_spans* spans);

/* CRC-32C (Castagnoli) of a buffer: the checksum of package files. */
QLA_API uint32_t qla_crc32c(const void* data, size_t size);

/* "ref avx2 avxvnni avx512vnni amx": the instruction sets usable here and now, space separated. */
QLA_API const char* qla_available_isas(void);

/* Why the last call on this thread failed; never NULL. */
QLA_API const char* qla_last_error(void);

QLA_API const char* qla_version(void);

/* ---- The package's own length configs: those it names, then its frontier. ---- */

/* Texts and values belong to the engine and live as long as it does. */
typedef struct qla_config_info {
  size_t struct_size;
  const char* name; /* "full", "balanced"; an entry of the frontier without a name: "frontier-1" */
  qla_length_config length; /* as qla_batch.lengths takes it */
  int32_t in_frontier;      /* 1: not named by the package, but found worth having by its search */
  int64_t macs;             /* of one sequence of the package's max_length tokens */
  double macs_share;        /* macs as a share of keeping every token */
  const char* metric;       /* what was measured with it, such as "f1"; NULL where nothing was */
  double accuracy;          /* its value */
  const char* data;         /* on which data; NULL where nothing was measured */
} qla_config_info;

QLA_API qla_status qla_config_count(const qla_engine* engine, int32_t* count);
QLA_API qla_status qla_get_config(const qla_engine* engine, int32_t index, qla_config_info* info);
QLA_API qla_status qla_find_config(const qla_engine* engine, const char* name,
                                   qla_config_info* info);

/* ---- Latency budgets: the best of these configs that is predicted to run in time. ----
 * Call qla_fit_costs once. For each batch then call qla_choose_config, qla_run with the config that
 * it gives, and qla_saw_call with the time that qla_run took. qla.hpp does so in one call. */

/* Measures what calls take here, in about half a second for a model like MiniLM, best on a quiet
 * machine. A later call measures again and forgets what qla_saw_call told. */
QLA_API qla_status qla_fit_costs(qla_engine* engine);

/* The most accurate config predicted to run within `milliseconds`; the fastest where none is. The
 * one of the most multiply-accumulates counts as the most accurate where `full` and another one
 * were not measured on the same data. `expected` receives the prediction in milliseconds. Sequences
 * are [offsets[i], offsets[i+1]). An error before qla_fit_costs. */
QLA_API qla_status qla_choose_config(const qla_engine* engine, const int64_t* offsets,
                                     int64_t num_sequences, double milliseconds,
                                     qla_config_info* info, double* expected);

/* Tells what a call took for which qla_choose_config expected `expected`, both in milliseconds.
 * Predictions follow the machine's pace by that: neighbours, its frequency, a fit made in bad time.
 */
QLA_API qla_status qla_saw_call(qla_engine* engine, double expected, double took);

#ifdef __cplusplus
}
#endif

#endif
