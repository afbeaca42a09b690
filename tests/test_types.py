"""What type checkers know: mypy and pyright on a program of a user, mypy on the engine, stubtest on `_core`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed")

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
from typing_extensions import assert_type

import numpy as np
from numpy.typing import NDArray

from qla_runtime import EncoderOutput, Engine, Escalate, LengthConfig, pipeline
from qla_runtime.pipelines import QuestionAnsweringPipeline, TokenClassificationPipeline
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.prepared import Prepared
from qla_runtime.tasks.results import Answer, Label, Ranked, Spans

with Engine.from_pretrained(num_threads=2) as engine:
    one = engine.answer("Who?", "Ada.", "fast", top_k=3)
    assert_type(one, Answer)
    assert_type(one["answer"], str)
    assert_type(one["score"], float)
    assert_type(one["start"], int)
    assert_type(one["no_answer"], bool)
    assert_type(one["budget_met"], bool | None)
    assert_type([entry["end"] for entry in one.get("answers", [])], list[int])
    assert_type(one.get("ran", []), list[str])
    LengthConfig(**one["length_config"])
    if (accuracy := one["accuracy"]) is not None:
        assert_type(accuracy["value"], float)
    one["anwser"]  # no such key
    one["score"].upper()  # a float has none
    start: str = one["start"]  # an int
    one["label"]  # an answer has none

    many = engine.answer(["Who?", "What?"], "Ada.", latency_ms=5, progress=True)
    assert_type(many, list[Answer])
    assert_type(engine.answer((q for q in ("a", "b")), ("c", "d")), list[Answer])
    assert_type(engine.answer(np.array(["a"]), ["b"], Escalate("fast", "full", 0.5)), list[Answer])
    many["answer"]  # a list
    engine.answer("Who?")  # no context
    engine.answer("Who?", "Ada.", latency="5")  # no such option
    engine.answer("Who?", "Ada.", top_k="3")  # a number
    engine.answer(b"Who?", "Ada.")  # bytes

    assert_type(engine.classify("good"), Label)
    assert_type(engine.classify("good", "better")["label"], str)
    assert_type(engine.classify(["good", "bad"], top_k=None), list[Label])
    scores = engine.classify("good", top_k=2).get("scores", [])
    assert_type([entry["score"] for entry in scores], list[float])
    engine.classify(["good"])["label"]  # a list
    engine.classify("good", details=True)  # an option of answer()

    assert_type(engine.rank("query", ["a", "b"], top_k=1), list[Ranked])
    assert_type(engine.rank("query", ["a"])[0]["index"], int)
    engine.rank("query", ["a"])[0]["label"]  # a relevance has none

    spans = engine.tag("Ada in London", aggregation_strategy="first")
    assert_type(spans, Spans)
    assert_type(spans.confidence, float)
    assert_type(spans[0]["text"], str)
    assert_type(engine.tag(["a", "b"], ignore_labels={"O"}), list[Spans])
    engine.tag(["a"]).truncated  # a list
    spans["text"]  # a list, too

    assert_type(engine.encode(["a"]), NDArray[np.float32])
    assert_type(engine.encode_query("a", truncate_dim=64), NDArray[np.float32])
    engine.encode_query("a", width=64)  # no such option

    output = engine.forward([[1, 2], [3]], length=["full", "fast"])
    assert_type(output, EncoderOutput)
    assert_type(output.kept[0][0], NDArray[np.int32])
    assert_type(output.stage_seconds, dict[str, float] | None)
    output.logits[0]  # None for embeddings

    prepared = engine.prepare(engine.as_task(AnswerTask).answer("Who?", "Ada."), latency_ms=5)
    assert_type(prepared, Prepared[Answer])
    assert_type(engine.run([prepared, prepared]), list[list[Answer]])
    engine.run(prepared)  # a list is wanted

oracle = pipeline("question-answering", num_threads=2, length="fast")
assert_type(oracle, QuestionAnsweringPipeline)
oracle(question="Who?", context="Ada.", top_k=3, latency_ms=5)["answer"]
oracle(question=3)  # texts are wanted
assert_type(pipeline("ner", "package", aggregation_strategy="simple"), TokenClassificationPipeline)
pipeline(model="package")("a text", top_k=None)
"""
"""Lines with a comment are wrong, and no other ones."""


def mypy(*arguments: str, cwd: Path = ROOT) -> str:
    cache = ROOT / "build" / "mypy-cache"
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", f"--cache-dir={cache}", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"MYPYPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


WRONG = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "  #" in line}


def test_a_users_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output = mypy("--follow-imports=silent", "--no-pretty", program.name, cwd=tmp_path)
    found = {int(line.split(":")[1]) for line in output.splitlines() if ": error:" in line}
    assert len(WRONG) > 15 and found == WRONG, output


def test_a_users_program_by_pyright(tmp_path):
    """Pyright is a program for node: its package fetches both at first use."""
    pytest.importorskip("pyright", reason="pyright is not installed")
    command = [sys.executable, "-m", "pyright"]
    if subprocess.run([*command, "--version"], capture_output=True).returncode:
        pytest.skip("pyright cannot fetch node or itself: there is no network")
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)], "include": ["program.py"]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command += ["--project", str(tmp_path), "--pythonpath", sys.executable, "--outputjson"]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    found = [entry for entry in json.loads(output)["generalDiagnostics"] if entry["severity"] == "error"]
    assert {entry["range"]["start"]["line"] + 1 for entry in found} == WRONG, output


def test_the_stub_of_core_is_true(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text("qla_runtime._core.Engine\n")  # the class, not its members: it has pybind11's metaclass
    command = [
        sys.executable,
        "-m",
        "mypy.stubtest",
        "qla_runtime._core",
        "--concise",
        "--allowlist",
        str(allowed),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_engine_and_its_tasks():
    assert mypy("qla_runtime/engine.py", "qla_runtime/runner.py", "qla_runtime/tasks") == ""
