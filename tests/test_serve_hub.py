"""POST / and POST /models/NAME: what huggingface_hub's InferenceClient sends, without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine
from qla_runtime.activations import softmax

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

QUESTION = "Who wrote the first program?"
CONTEXT = "In 1843 Ada Lovelace wrote the first program, for an engine that was never built."
ASKED = {"question": QUESTION, "context": CONTEXT}
KEYS = ("answer", "score", "start", "end")


def test_an_answer(server: Running):
    best = server.engines["squad"].answer(QUESTION, CONTEXT)
    found = server.ok("/", {"inputs": ASKED, "parameters": {}})
    assert found == {key: best[key] for key in KEYS}
    assert CONTEXT[found["start"] : found["end"]] == found["answer"] == "Ada Lovelace"


def test_several_answers_and_several_questions(server: Running):
    engine = server.engines["squad"]
    parameters = {"top_k": 3, "max_answer_len": 4, "doc_stride": 8, "handle_impossible_answer": True}
    best = engine.answer(
        QUESTION, CONTEXT, top_k=3, max_answer_tokens=4, doc_stride=8, handle_impossible_answer=True
    )
    assert server.ok("/", {"inputs": ASKED, "parameters": parameters}) == best["answers"]
    other = {"question": "When?", "context": CONTEXT}
    found = server.ok("/", {"inputs": [ASKED, other], "length": "fast"})
    expected = engine.answer([QUESTION, "When?"], CONTEXT, "fast")
    assert found == [{key: each[key] for key in KEYS} for each in expected]


def test_parameters_that_this_server_has_not(server: Running):
    for name, value in (("align_to_words", True), ("max_seq_len", 128), ("top_k", 0)):
        found = server.post("/", {"inputs": ASKED, "parameters": {name: value}})
        assert (found.status, f"parameters.{name}" in found.json["error"]) == (422, True)


def test_vectors_and_similarities(server: Running):
    engine = server.engines["minilm"]
    found = server.ok("/models/minilm", {"inputs": [QUESTION, CONTEXT], "normalize": True})
    expected = engine.encode([QUESTION, CONTEXT], normalize_embeddings=True)
    assert np.array_equal(np.array(found, np.float32), expected)
    compared = {"source_sentence": QUESTION, "sentences": [CONTEXT]}
    (score,) = server.ok("/models/minilm", {"inputs": compared, "parameters": {}})
    assert score == pytest.approx(float(expected[0] @ expected[1]), abs=1e-6)


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_tags(server: Running, strategy: str):
    text = "ada lives in london"
    spans = server.engines["tags"].tag(text, aggregation_strategy=strategy)
    assert spans, "the tiny model tags nothing here"
    found = server.ok("/models/tags", {"inputs": text, "parameters": {"aggregation_strategy": strategy}})
    for entry, span in zip(found, spans, strict=True):
        assert entry["entity" if strategy == "none" else "entity_group"] == span["label"]
        assert [entry[key] for key in ("score", "start", "end")] == [
            span[key] for key in ("score", "start", "end")
        ]
        assert entry["word"] == span["word" if strategy == "none" else "text"]


def test_tags_of_several_texts_and_ignored_labels(server: Running):
    texts = ["ada lives in london", "bob"]
    found = server.ok("/models/tags", {"inputs": texts})
    assert found == [server.ok("/models/tags", {"inputs": text}) for text in texts]
    every = {entry["entity_group"] for spans in found for entry in spans}
    none = server.ok("/models/tags", {"inputs": texts, "parameters": {"ignore_labels": [*every, "O"]}})
    assert none == [[], []]


def test_labels_of_the_pipeline(server: Running):
    engine = server.engines["labels"]
    scores = engine.classify("abc", top_k=None)["scores"]
    assert server.ok("/models/labels", {"inputs": "abc", "parameters": {}}) == [scores]
    assert server.ok("/models/labels", {"inputs": "abc", "parameters": {"top_k": 1}}) == [scores[:1]]
    pair = {"text": "abc", "text_pair": "de"}
    assert server.ok("/models/labels", {"inputs": pair}) == [engine.classify("abc", "de", top_k=None)["scores"]]


def test_labels_without_parameters_are_predictions(server: Running):
    assert server.ok("/models/labels", {"inputs": "abc"}) == server.ok("/predict", {"inputs": "abc"})


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_function_to_apply(server: Running, function: str):
    raw = {e["label"]: e["score"] for e in server.ok("/predict", {"inputs": "abc", "raw_scores": True})}
    logits = np.array(list(raw.values()))
    expected = {"softmax": softmax(logits), "sigmoid": 1 / (1 + np.exp(-logits)), "none": logits}[function]
    (found,) = server.ok("/models/labels", {"inputs": "abc", "parameters": {"function_to_apply": function}})
    assert [entry["label"] for entry in found] == list(raw)
    assert [entry["score"] for entry in found] == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_ranker_ranks_and_labels(server: Running):
    body = {"query": "abc", "texts": ["de", "abc"]}
    assert server.ok("/models/ranker", body) == server.ok("/rerank", body)
    (labels,) = server.ok("/models/ranker", {"inputs": {"text": "abc", "text_pair": "de"}})
    (ranked,) = server.engines["ranker"].rank("abc", ["de"])
    assert labels == [{"label": "relevance", "score": ranked["score"]}]


def test_zero_shot(tmp_path):
    from route_tools import running

    labels = ["contradiction", "neutral", "entailment"]
    package = tiny_package("sequence-classification", problem="single_label", labels=labels)
    engine = Engine(package.save(tmp_path / "nli"), num_threads=1)
    text, classes = "the match was lost", ["sport", "politics"]
    body = {"inputs": text, "parameters": {"candidate_labels": classes, "hypothesis_template": "it is {}"}}
    with running({"nli": engine}) as server:
        one_of = server.ok("/", body)
        several = server.ok("/", {**body, "parameters": {**body["parameters"], "multi_label": True}})
        refused = server.post(
            "/", {**body, "parameters": {"candidate_labels": classes, "hypothesis_template": "x"}}
        )
        ids = server.ok("/tokenize", {"inputs": "a"})
        assert ids
    probabilities = [engine.classify(text, f"it is {name}", top_k=None)["scores"] for name in classes]
    by_label = [{e["label"]: e["score"] for e in each} for each in probabilities]
    for entry in several:
        mine = by_label[classes.index(entry["label"])]
        expected = mine["entailment"] / (mine["entailment"] + mine["contradiction"])
        assert entry["score"] == pytest.approx(expected, abs=1e-6)
    assert sum(entry["score"] for entry in one_of) == pytest.approx(1)
    assert [entry["score"] for entry in one_of] == sorted((e["score"] for e in one_of), reverse=True)
    assert refused.status == 422


def test_zero_shot_needs_an_entailment_label(server: Running):
    found = server.post("/models/labels", {"inputs": "abc", "parameters": {"candidate_labels": ["a", "b"]}})
    assert (found.status, "entailment" in found.json["error"]) == (424, True)


def test_the_model_field_chooses_at_the_root_too(server: Running):
    assert server.ok("/", {"inputs": "abc", "model": "minilm"}) == server.ok("/models/minilm", {"inputs": "abc"})
    assert server.ok("/invocations", {"inputs": ASKED})["answer"] == "Ada Lovelace"
