"""What a server counts and logs: text-embeddings-inference's names, and ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import serve_tools
from serve_tools import EMBEDDER, Served

from qla_runtime import Engine

HISTOGRAMS = (
    "te_request_duration", "te_request_tokenization_duration", "te_request_queue_duration",
    "te_request_inference_duration", "te_request_input_length", "te_batch_next_size", "te_batch_next_tokens",
)  # fmt: skip
TEXTS = ["a short text", "a text of some more words than that", "word " * 400]


@pytest.fixture(scope="module")
def counted() -> Iterator[Served]:
    with serve_tools.running(f"minilm={EMBEDDER}", "--drain-s", "0") as served:
        yield served


def values(served: Served) -> dict[str, float]:
    """Every sample by its name and labels."""
    lines = served.get("/metrics").body.decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def grown(served: Served, *bodies: dict) -> dict[str, float]:
    """What some requests add to the samples."""
    before = values(served)
    for body in bodies:
        served.post("/embed", body)
    return {name: value - before.get(name, 0.0) for name, value in values(served).items()}


def test_the_names_of_text_embeddings_inference(counted):
    found = grown(counted, {"inputs": "one"}, {"inputs": ["two", "three"]})
    assert found['te_request_count{method="single"}'] == 1
    assert found['te_request_count{method="batch"}'] == 1
    assert found['te_request_success{method="single"}'] == 1
    assert found['te_request_success{method="batch"}'] == 1
    assert {found[f"{name}_count"] for name in HISTOGRAMS} == {2}
    assert found["te_queue_size"] == 0


def test_failures_say_why(counted):
    found = grown(counted, {"inputs": []}, {"inputs": "x", "length": "unknown"}, {"input": "x"}, {"inputs": "x"})
    assert found['te_request_failure{err="validation"}'] == 3
    assert found['te_request_success{method="single"}'] == 1
    assert sum(value for name, value in found.items() if name.startswith("te_request_count")) == 4


def test_ours_count_what_ran(counted):
    engine = Engine.from_pretrained(EMBEDDER)
    found = grown(counted, {"inputs": TEXTS, "length": "fast"})
    tokens = [len(each.ids) for each in engine.text_encoder.encode(TEXTS).encodings]
    fast = engine.lengths["fast"].config
    assert found['qla_tokens_total{model="minilm"}'] == sum(tokens)
    assert found['qla_kept_tokens_total{model="minilm"}'] == sum(fast.kept(n)[-1] for n in tokens)
    assert found['qla_full_macs_total{model="minilm"}'] == sum(map(engine.macs, tokens))
    assert found['qla_kept_macs_total{model="minilm"}'] == sum(engine.macs(n, "fast") for n in tokens)
    assert found['qla_length_total{length="fast",model="minilm"}'] == 3
    assert found['qla_truncated_total{model="minilm"}'] == 1


def test_budgets_that_were_met(counted):
    found = grown(counted, {"inputs": "a text", "latency_ms": 1e6}, {"inputs": "a text", "latency_ms": 1e-3})
    assert found['qla_budget_total{met="true",model="minilm"}'] == 1
    assert found['qla_budget_total{met="false",model="minilm"}'] == 1


def test_configs_that_are_spelled_out_make_no_label_of_their_own(counted):
    found = grown(counted, {"inputs": "a text", "length": "ratio(1, 1, 1, 0.5, 0.5, 0.5)"})
    assert found['qla_length_total{length="other",model="minilm"}'] == 1
    assert not any("ratio(" in name for name in found)


def test_a_line_for_every_request():
    with serve_tools.running(EMBEDDER, "--log-requests", "--drain-s", "0") as served:
        served.embed("a text", length="fast")
        served.embed([])
        served.get("/health")
        served.terminate()
        assert served.process.stdout is not None
        good, bad = map(json.loads, served.process.stdout)
    assert (good["method"], good["path"], good["status"], good["client"]) == ("POST", "/embed", 200, "127.0.0.1")
    assert good["qla-length"] == "fast" and good["compute-tokens"] == 4 and good["ms"] > 0
    assert bad["status"] == 400 and bad["bytes"] == len(b'{"inputs": []}')
    assert re.fullmatch(r"\d+\.\d+", str(good["time"]))
