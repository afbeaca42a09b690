"""POST / and POST /models/NAME: what huggingface_hub's InferenceClient sends, without it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, pipeline
from qla_runtime.activations import softmax

pytest.importorskip("starlette", reason="needs the extra [serve]")
if TYPE_CHECKING:
    from route_tools import Running

QUESTION = "Who wrote the first program?"
CONTEXT = "In 1843 Ada Lovelace wrote the first program, for an engine that was never built."
ASKED = {"question": QUESTION, "context": CONTEXT}


def piped(server: Running, name: str, task: str, *inputs: Any, **options: Any) -> Any:
    """What the pipeline gives that transformers had."""
    return pipeline(task, server.engines[name])(*inputs, **options)


def test_an_answer(server: Running):
    found = server.ok("/", {"inputs": ASKED, "parameters": {}})
    assert found == piped(server, "squad", "question-answering", ASKED)
    assert CONTEXT[found["start"] : found["end"]] == found["answer"] == "Ada Lovelace"


def test_several_answers_and_several_questions(server: Running):
    parameters = {"top_k": 3, "max_answer_len": 4, "doc_stride": 4, "handle_impossible_answer": True}
    parameters |= {"max_seq_len": 24, "align_to_words": False}
    found = server.ok("/", {"inputs": ASKED, "parameters": parameters})
    assert found == piped(server, "squad", "question-answering", ASKED, **parameters)
    assert len(found) == 3
    both = [ASKED, {"question": "When?", "context": CONTEXT}]
    found = server.ok("/", {"inputs": both, "length": "fast"})
    assert found == piped(server, "squad", "question-answering", both, length="fast")


def test_parameters_that_do_not_fit(server: Running):
    for name, value in (("top_k", 0), ("max_seq_len", "long"), ("beams", 3)):
        found = server.post("/", {"inputs": ASKED, "parameters": {name: value}})
        assert (found.status, f"parameters.{name}" in found.json["error"]) == (422, True)


def test_vectors_and_similarities(server: Running):
    engine = server.engines["minilm"]
    found = server.ok("/models/minilm", {"inputs": [QUESTION, CONTEXT], "normalize": True})
    expected = engine.encode([QUESTION, CONTEXT], normalize_embeddings=True)
    assert np.array_equal(np.array(found, np.float32), expected)
    compared = {"source_sentence": QUESTION, "sentences": [CONTEXT]}
    (score,) = server.ok("/models/minilm", {"inputs": compared, "parameters": {}})
    # 384 products, added in another order.
    assert score == pytest.approx(float(expected[0] @ expected[1]), abs=16 * 2.0**-24)


@pytest.mark.parametrize("strategy", [None, "none", "simple", "first", "average", "max"])
def test_tags(server: Running, strategy: str | None):
    text = "ada lives in london"
    expected = piped(server, "tags", "token-classification", text, aggregation_strategy=strategy or "simple")
    found = server.ok("/models/tags", {"inputs": text, "parameters": {"aggregation_strategy": strategy}})
    assert found == expected
    assert found, "the tiny model tags nothing here"
    assert found[0].keys() >= {"entity" if strategy == "none" else "entity_group", "word", "score", "start", "end"}


def test_tags_of_several_texts_windows_and_ignored_labels(server: Running):
    texts = ["ada lives in london", "bob"]
    found = server.ok("/models/tags", {"inputs": texts})
    assert found == [server.ok("/models/tags", {"inputs": text}) for text in texts]
    every = {entry["entity_group"] for spans in found for entry in spans}
    none = server.ok("/models/tags", {"inputs": texts, "parameters": {"ignore_labels": [*every, "O"]}})
    assert none == [[], []]
    long = "ada lives in london " * 20
    options = {"aggregation_strategy": "first", "stride": 5}
    assert server.ok("/models/tags", {"inputs": long, "parameters": options}) == piped(
        server, "tags", "token-classification", long, **options
    )


def test_labels_of_the_pipeline(server: Running):
    every = piped(server, "labels", "text-classification", "abc", top_k=None)
    assert server.ok("/models/labels", {"inputs": "abc", "parameters": {}}) == [every]
    assert server.ok("/models/labels", {"inputs": "abc", "parameters": {"top_k": 1}}) == [every[:1]]
    both = ["abc", {"text": "abc", "text_pair": "de"}]
    found = server.ok("/models/labels", {"inputs": both, "parameters": {}})
    assert found == piped(server, "labels", "text-classification", both, top_k=None)
    assert server.ok("/models/labels", {"inputs": both[1]}) == found[1:]


def test_labels_without_parameters_are_predictions(server: Running):
    assert server.ok("/models/labels", {"inputs": "abc"}) == server.ok("/predict", {"inputs": "abc"})


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_function_to_apply(server: Running, function: str):
    options = {"function_to_apply": function}
    (found,) = server.ok("/models/labels", {"inputs": "abc", "parameters": options})
    assert found == piped(server, "labels", "text-classification", "abc", top_k=None, **options)
    raw = {e["label"]: e["score"] for e in server.ok("/predict", {"inputs": "abc", "raw_scores": True})}
    logits = np.array([raw[entry["label"]] for entry in found])
    expected = {"softmax": softmax(logits), "sigmoid": 1 / (1 + np.exp(-logits)), "none": logits}[function]
    assert [entry["score"] for entry in found] == pytest.approx(expected.tolist(), abs=4 * 2.0**-24)  # float32 exp


def test_a_ranker_ranks_and_labels(server: Running):
    body = {"query": "abc", "texts": ["de", "abc"]}
    assert server.ok("/models/ranker", body) == server.ok("/rerank", body)
    (labels,) = server.ok("/models/ranker", {"inputs": {"text": "abc", "text_pair": "de"}})
    (ranked,) = server.engines["ranker"].rank("abc", ["de"])
    assert labels == [{"label": "relevance", "score": ranked["score"]}]


def test_zero_shot(tmp_path: Path):
    from route_tools import running

    labels = ["contradiction", "neutral", "entailment"]
    package = tiny_package("sequence-classification", problem="single_label", labels=labels)
    engine = Engine(package.save(tmp_path / "nli"), num_threads=1)
    text, classes = "the match was lost", ["sport", "politics"]
    parameters = {"candidate_labels": classes, "hypothesis_template": "it is {}", "multi_label": False}
    with running({"nli": engine}) as server:
        for more in ({}, {"multi_label": True}):
            found = server.ok("/", {"inputs": text, "parameters": {**parameters, **more}})
            expected = pipeline("zero-shot-classification", engine)(text, **{**parameters, **more})
            assert [entry["label"] for entry in found] == expected["labels"]
            assert [entry["score"] for entry in found] == expected["scores"]
        for template in ("x", "{0.size}", "{:>99999999999}"):
            refused = server.post(
                "/", {"inputs": text, "parameters": {**parameters, "hypothesis_template": template}}
            )
            assert (refused.status, "hypothesis_template" in refused.json["error"]) == (422, True)
        parameters |= {"candidate_labels": ["a"] * 32, "hypothesis_template": "word " * 20_000 + "{}"}
        refused = server.post("/", {"inputs": text, "parameters": parameters})
    assert (refused.status, "have 3200640 characters together" in refused.json["error"]) == (413, True)


def test_zero_shot_needs_an_entailment_label(server: Running):
    found = server.post("/models/labels", {"inputs": "abc", "parameters": {"candidate_labels": ["a", "b"]}})
    assert (found.status, "entailment" in found.json["error"]) == (422, True)


def test_the_model_field_chooses_at_the_root_too(server: Running):
    assert server.ok("/", {"inputs": "abc", "model": "minilm"}) == server.ok("/models/minilm", {"inputs": "abc"})
    assert server.ok("/invocations", {"inputs": ASKED})["answer"] == "Ada Lovelace"
