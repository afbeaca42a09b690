"""Calls of transformers 4.57's question answering pipeline, and how its results for them are recorded.

transformers 5 has no such pipeline. So the results are recorded in two steps::

    python tests/pipeline_cases.py LOGITS                   # here: the engine's logits of every window
    python tests/pipeline_cases.py LOGITS TOKENIZER_JSON    # with transformers 4.57.6: recorded_answers.json

The model of the second step looks its logits up in LOGITS. So the results differ from the engine's by rounding
alone, and a window that is cut otherwise is not found at all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded_answers.json")

LIGHTHOUSE = (
    "The lighthouse on Gull Rock was built in 1874 by Ada Whitcombe, an engineer from Hull. It is 31 "
    "metres tall and stands two miles off the coast. Its lamp burned whale oil until 1902, when paraffin "
    "took its place. The last keeper, Tom Eade, left the rock in the winter of 1986 after thirty-one "
    "years of service; the light has been automatic since then. Ada Whitcombe's drawings hang in the town "
    "hall of Hull, next to a portrait of her brother Samuel, who drowned near the rock in 1869. In "
    "summer, boats bring visitors to the lighthouse from Thornmouth harbour. The crossing takes forty "
    "minutes, and seals can be seen on the ledges below the tower. The gallery is reached by 148 steps. A "
    "bell, cast in Leeds in 1873, was rung by hand in fog; it weighs half a tonne and is now kept on the "
    "quay at Thornmouth. In 1911 a storm broke the windows of the lantern room, and the keepers held the "
    "light with lamps from a fishing boat for six nights."
)
BERLIN = "My name is Wolfgang and I live in Berlin"
WINDOWS = {"max_seq_len": 64, "doc_stride": 20}

CASES: dict[str, dict] = {
    "one question": {"question": "Where do I live?", "context": BERLIN},
    "a list of one": {"question": ["Where do I live?"], "context": [BERLIN]},
    "two questions, one context": {"question": ["Where do I live?", "What is my name?"], "context": BERLIN},
    "two questions, two contexts": {
        "question": ["Where do I live?", "Who built it?"],
        "context": [BERLIN, LIGHTHOUSE],
    },
    "top_k": {"question": "Where do I live?", "context": BERLIN, "top_k": 4},
    "top_k of two": {"question": ["Where do I live?", "What is my name?"], "context": BERLIN, "top_k": 2},
    "not aligned to words": {
        "question": "How long did Tom Eade serve?",
        "context": LIGHTHOUSE,
        "align_to_words": False,
        "top_k": 3,
    },
    "aligned to words": {"question": "How long did Tom Eade serve?", "context": LIGHTHOUSE, "top_k": 3},
    "short answers": {
        "question": "Who built the lighthouse?",
        "context": LIGHTHOUSE,
        "max_answer_len": 2,
        "top_k": 3,
    },
    "short answers, not aligned": {
        "question": "Who built the lighthouse?",
        "context": LIGHTHOUSE,
        "max_answer_len": 2,
        "top_k": 3,
        "align_to_words": False,
    },
    "windows": {"question": "Where is the bell now?", "context": LIGHTHOUSE, "top_k": 3, **WINDOWS},
    "windows that share an answer": {
        "question": "Who was the last keeper?",
        "context": LIGHTHOUSE,
        "max_seq_len": 48,
        "doc_stride": 30,
    },
    "stride by default": {"question": "How many steps are there?", "context": LIGHTHOUSE, "max_seq_len": 40},
    "no answer": {
        "question": "Who was the first person on the moon?",
        "context": LIGHTHOUSE,
        "handle_impossible_answer": True,
        "top_k": 5,
        **WINDOWS,
    },
    "no answer, the best alone": {
        "question": "Which planet is the largest?",
        "context": BERLIN,
        "handle_impossible_answer": True,
    },
    "more than there are": {"question": "Who?", "context": "Ada.", "top_k": 20},
}


def write_logits(path: Path) -> None:
    """Runs the packaged model on every window of every case."""
    from qla_runtime import Engine

    engine = Engine.from_pretrained()
    found = {}
    for case in CASES.values():
        questions, contexts = case["question"], case["context"]
        questions = [questions] if isinstance(questions, str) else questions
        contexts = [contexts] * len(questions) if isinstance(contexts, str) else contexts
        longest = case.get("max_seq_len", 384)
        stride = case.get("doc_stride", min(longest // 2, 128))
        names = ["question"] * len(questions)
        batch = engine.text_encoder.cutting_at(longest).windows(questions, contexts, stride, names).batch
        for first, end in zip(batch.offsets[:-1], batch.offsets[1:], strict=True):
            ids, types = batch.ids[first:end].tolist(), batch.type_ids[first:end].tolist()
            logits = engine.forward([ids], token_type_ids=[types]).logits[0]
            found[" ".join(map(str, ids))] = logits.astype(float).tolist()
    path.write_text(json.dumps(found))
    print(f"wrote {path}; the tokenizer is {engine.path / 'tokenizer.json'}", file=sys.stderr)


def record(logits: Path, tokenizer: Path) -> None:
    """Prints what transformers 4.57 gives for the cases."""
    import torch
    import transformers
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

    known = json.loads(logits.read_text())

    class Model(transformers.BertForQuestionAnswering):
        """Looks its logits up."""

        def forward(self, input_ids, attention_mask=None, token_type_ids=None):
            rows = torch.tensor([known[" ".join(map(str, ids.tolist()))] for ids in input_ids])
            return QuestionAnsweringModelOutput(start_logits=rows[..., 0], end_logits=rows[..., 1])

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    reader = transformers.BertTokenizerFast(tokenizer_file=str(tokenizer), model_max_length=512, **special)
    pipe = transformers.pipeline("question-answering", model=Model(config), tokenizer=reader)
    found = {name: pipe(**case) for name, case in CASES.items()}
    print(json.dumps({"transformers": transformers.__version__, "results": found}, indent=1))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_logits(Path(sys.argv[1]))
    else:
        record(Path(sys.argv[1]), Path(sys.argv[2]))
