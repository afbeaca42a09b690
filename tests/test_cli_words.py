"""What the command line says and prints: its own flags in errors, examples in --help, no escape sequences, no
traceback when a stream is closed."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_tools import COMMAND, ENVIRONMENT, SOURCE, ok, refused, run
from package_tools import tiny_package

from qla_runtime import Engine, LengthConfig, QlaError
from qla_runtime.cli import program, words
from qla_runtime.cli.printing import print_json
from qla_runtime.terminal import visible

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202etxt.exe\u2066"
KINDS = ("span-qa", "sequence-classification", "token-classification", "embedding")


# ---- errors speak of flags --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, arguments, words",
    [
        ("embedding", ["encode", "b", "--threads", "99999"], ["--threads is 99999", "at most 1024"]),
        ("embedding", ["encode", "b", "--threads", "9" * 300], ["--threads is 999", "at most 1024"]),
        ("span-qa", ["answer", "a", "--context", "b", "--threads", "9" * 5000], ["--threads", "invalid number"]),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "9" * 400 + ",1"], ["neither a name"]),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "9" * 300 + ",1"], ["entry 0", "2^31"]),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "1.5,1"], ["entry 0", "write whole numbers"]),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "quick"], ["'quick'", "one value per layer"]),
        ("span-qa", ["answer", "a", "--context", "b", "--latency-ms", "1e999"], ["latency budget is inf"]),
        ("span-qa", ["answer", "a", "--context", "b", "--latency-ms", "nan"], ["latency budget is nan"]),
        ("span-qa", ["answer", "a", "--context", "b", "--max-loss", "-1"], ["largest loss is -1.0"]),
        ("span-qa", ["answer", "a", "--context", "b", "--escalate", "fast:full:2"], ["threshold is 2.0"]),
        ("span-qa", ["answer", "a", "--context", "b", "--topk", "3"], ["--topk", "stands after --"]),
        ("span-qa", ["answer", "a", "--context", "-"], ["context is ''", "visible character"]),
        ("span-qa", ["tag", "a"], ["qla tag needs", "Call qla answer"]),
        ("embedding", ["encode", "a", "--latency-ms", "5", "--length", "fast"], ["not allowed with"]),
        ("embedding", ["encode", "@/tmp"], ["/tmp", "a folder"]),
        ("embedding", ["encode", "@"], ["'': cannot be read", "write @@"]),
        ("embedding", ["encode", "a", "--out", "/no/such/folder/v.npy"], ["--out /no/such/folder/v.npy"]),
        ("embedding", ["encode", "a", "--out", "/tmp"], ["--out /tmp", "written"]),
        ("embedding", ["encode", os.fsdecode(b"caf\xe9")], ["lone surrogate"]),
        ("embedding", ["encode", os.fsdecode(b"@caf\xe9")], ["caf\\udce9", "cannot be read"]),
        ("embedding", ["encode", "a", "--isa", os.fsdecode(b"\xff")], ["--isa", "avx2"]),
        ("embedding", ["rank", "q", "d"], ["qla rank needs", "Call qla encode"]),
        ("sequence-classification", ["rank", "q", "d"], ["qla rank needs", "Call qla classify"]),
        ("sequence-classification", ["classify", "a", "--top-k", "-3"], ["--top-k", "-3 is below 1"]),
        ("token-classification", ["tag", "a", "--aggregation-strategy", "x"], ["--aggregation-strategy", "first"]),
        ("token-classification", ["tag", "a", "--label-scheme", "bilou", "--aggregation-strategy", "first"], [
            "--label-scheme is 'bilou'", "--aggregation-strategy 'first'"]),
        ("embedding", ["encode", "a", "--truncate-dim", "9999"], ["--truncate-dim is 9999", "Leave it out for"]),
        ("embedding", ["encode", "a", "--out", ""], ["--out ''", "written"]),
        ("span-qa", ["answer", "a", "--context", "b", "--null-threshold", "2"], [
            "--null-threshold is 2.0", "or leave it out to compare"]),
        ("span-qa", ["answer", "a", "--context", "b", "--doc-stride", "-1"], [
            "--doc-stride is -1", "leaving it out takes"]),
        (None, ["explain", "--model", "/no/such"], ["no such folder", "leave out --model"]),
        (None, ["explain", "--model", ""], ["the model is ''", "leave out --model"]),
        (None, ["explain", "--model", os.fsdecode(b"\xff/x")], ["no such folder"]),
    ],
)  # fmt: skip
def test_errors_are_one_line_in_the_words_of_the_command_line(packages, kind, arguments, words):
    model = ["--model", packages[kind]] if kind else []
    line = refused(*arguments, *model, text="")
    assert all(word in line for word in words), line
    assert len(line) < 1000
    python = (
        "num_threads",
        "top_k",
        "latency_ms",
        "length=",
        "engine.",
        "()",
        "None",
        "LengthConfig",
        "Traceback",
    )
    assert not [word for word in python if word in line], line


def test_messages_are_translated_by_the_options_of_the_parser():
    flags = words.flags_of(program.parser())
    assert flags["top_k"] == "--top-k" and flags["latency_ms"] == "--latency-ms" and flags["task"] == "--task"
    for message, said in (
        ("top_k is 0; it must be", "--top-k is 0; it must be"),
        ("pass task='embedding' for", "pass --task 'embedding' for"),
        ("or pass task=.", "or pass --task."),
        ("Pass another (max_length=, --max-length)", "Pass another (--max-length)"),
        ("max_length is 3", "--max-length is 3"),
        ("pass json=True", "pass --json"),
        ("Call engine.answer(question, context), or open", "Call qla answer, or open"),
        ("the task is to name a length", "the task is to name a length"),
        ("/tmp/top_k/x: cannot be read", "/tmp/top_k/x: cannot be read"),
    ):
        assert words.in_flags(message, flags) == said


def test_a_message_that_names_an_argument_twice_names_its_flag_once():
    """Every ``(argument=, --flag)`` in the sources."""
    sources = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py")))
    pairs = set(re.findall(r"\w+= ?[,(]? ?--[-a-z]+", sources))
    assert {"max_length=, --max-length", "task=, --task", "scales=, --scales"} <= pairs
    flags = words.flags_of(program.parser())
    for pair in pairs:
        flag = "--" + pair.partition("--")[2]
        assert words.in_flags(f"Pass it ({pair}).", flags) == f"Pass it ({flag})."


# ---- help -------------------------------------------------------------------------------------------


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """By name, all that do something."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= subcommands(child) or {child.prog.removeprefix("qla "): child}
    return found


def test_every_command_has_an_example_that_parses():
    commands = {
        name: parser for name, parser in subcommands(program.parser()).items() if not name.startswith("bench")
    }
    assert {"answer", "eval rank", "train length-drop"} < set(commands)
    for name, parser in commands.items():
        _, example = parser.format_help().split("example:\n  ")
        line = shlex.split(example.splitlines()[0])
        assert line[: 1 + len(name.split())] == ["qla", *name.split()]
        assert callable(program.parser().parse_args(line[1:]).command)
    assert "example:\n  qla answer" in ok("answer", "--help")


# ---- escapes ----------------------------------------------------------------------------------------


def test_what_a_terminal_obeys_is_shown_as_a_replacement():
    assert visible("a\tb\nc é 日本 \u200f") == "a\tb\nc é 日本 \u200f"
    for obeyed in ("\x1b", "\0", "\r", "\x07", "\x08", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028"):
        assert visible(f"a{obeyed}b") == "a\ufffdb"


def obeyed(output: bytes) -> set[str]:
    return {c for c in output.decode() if c != "\n" and c != "\t" and visible(c) != c}


def test_texts_of_packages_and_callers_are_not_obeyed(tmp_path):
    answering = tiny_package("span-qa")
    answering.config["name"] = "n" + EVIL
    answering.length_configs["configs"][1]["name"] = "c" + EVIL
    answering.length_configs["configs"][0]["accuracy"] = {"metric": "m" + EVIL, "value": 1.0, "data": "d" + EVIL}
    qa = str(answering.save(tmp_path / "qa"))
    labels = ["l" + EVIL, "b", "c"]
    classifier = str(tiny_package("sequence-classification", labels=labels).save(tmp_path / "classifier"))
    tagger = str(tiny_package("token-classification", labels=["O", "B-" + EVIL]).save(tmp_path / "tagger"))
    ranker = str(tiny_package("sequence-classification", problem="regression", labels=[EVIL]).save(tmp_path / "r"))
    evil = "a b " + EVIL
    for arguments in (
        ["explain", "--model", qa],
        ["trace", evil, "--context", evil, "--model", qa],
        ["answer", evil, "--context", evil, "--model", qa, "--length", "c" + EVIL],
        ["answer", evil, "--context", evil, "--model", qa, "--show-kept"],
        ["answer", "a?", "--context", "a b", "--model", qa, "--length", "nope" + EVIL],
        ["answer", "a", "--context", "b", "--model", classifier],
        ["encode", "a", "--model", qa],
        ["classify", evil, "--top-k", "all", "--model", classifier],
        ["classify", evil * 90, "--model", classifier],
        ["rank", evil, evil, "--model", ranker],
        ["tag", evil, "--model", tagger],
        ["explain", "--model", str(tmp_path / ("no" + EVIL))],
        ["explain", "--" + EVIL],
        ["encode", "@" + EVIL, "--model", qa],
    ):
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, env=ENVIRONMENT, timeout=120)
        assert not obeyed(done.stdout) and not obeyed(done.stderr), arguments
        assert done.stdout or done.stderr
    assert not obeyed(Engine(qa).explain().encode())
    for arguments in (["answer", evil, "--context", evil, "--model", qa], ["tag", evil, "--model", tagger]):
        done = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, env=ENVIRONMENT, timeout=120)
        assert done.returncode == 0 and not obeyed(done.stdout) and json.loads(done.stdout)


# ---- texts ------------------------------------------------------------------------------------------


def test_a_context_from_standard_input(packages):
    text = "ada lives\nin london.\r\n"
    arguments = ["answer", "who?", "--context", "-", "--model", packages["span-qa"], "--json"]
    expected = Engine(packages["span-qa"]).answer("who?", text)
    assert json.loads(ok(*arguments, text=text))["answer"] == expected["answer"]
    shown = json.loads(ok("trace", "who?", *arguments[2:], "--length", "fast", text=text))
    assert shown["context"] == text


@pytest.mark.parametrize("kind, command", [("embedding", "encode"), ("token-classification", "tag")])
def test_line_n_of_a_file_is_result_n(packages, tmp_path, kind, command):
    lines = ["first", "", "third", "  ", "fifth"]
    plain = json.loads(ok(command, *lines, "--model", packages[kind], "--json"))
    for name, data in {
        "lf": "\n".join(lines) + "\n",
        "crlf": "\r\n".join(lines) + "\r\n",
        "bom": "\ufeff" + "\n".join(lines),
    }.items():
        path = tmp_path / name
        path.write_text(data, encoding="utf-8", newline="")
        found = json.loads(ok(command, f"@{path}", "--model", packages[kind], "--json"))
        assert found == plain, name


def test_a_blank_document_keeps_its_index(packages):
    ranked = json.loads(ok("rank", "what", "-", "--model", packages["ranker"], "--json", text="a\n\nbb\n"))
    assert sorted(entry["index"] for entry in ranked) == [0, 1, 2]


def test_texts_that_begin_with_a_dash(packages):
    vectors = Engine(packages["embedding"]).encode(["-5 degrees", "-x", "--help"])
    found = json.loads(
        ok("encode", "--model", packages["embedding"], "--json", "--", "-5 degrees", "-x", "--help")
    )
    assert np.array_equal(np.array(found, np.float32), vectors)


def test_tag_has_strategies(packages):
    text = "ada lives in london"
    engine = Engine(packages["token-classification"])
    for strategy in ("pieces", "none", "first"):
        arguments = ["tag", text, "--aggregation-strategy", strategy, "--model", packages["token-classification"]]
        (found,) = json.loads(ok(*arguments, "--json"))
        assert found["spans"] == list(engine.tag(text, aggregation_strategy=strategy))
    ignored = ["--ignore-label", "O", "--ignore-label", "PER"]
    (found,) = json.loads(ok("tag", text, *ignored, "--model", packages["token-classification"], "--json"))
    assert {span["label"] for span in found["spans"]} <= {"LOC"}


# ---- JSON -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, place",
    [
        (math.nan, "the result is nan"),
        ([[1.0, 2.0], [3.0, -math.inf]], "the result[1][1] is -inf"),
        ([{"score": 1.0}, {"score": np.float32(math.inf)}], "the result[1].score is inf"),
        ({"kept": np.array([[1.0, math.nan]])}, "the result.kept[0][1] is nan"),
    ],
)
def test_json_holds_no_number_that_json_does_not_have(value, place, capsys):
    with pytest.raises(QlaError) as caught:
        print_json(value)
    assert str(caught.value).startswith(place + ", ") and "--json" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_json_of_arrays_and_length_configs(capsys):
    print_json({"a": np.arange(2), "b": np.float32(0.5), "c": LengthConfig.ratio([1.0, 0.5]), "d": Path("e")})
    config = {"rule": "ratio", "values": [1.0, 0.5], "keep_cls": None}
    assert json.loads(capsys.readouterr().out) == {"a": [0, 1], "b": 0.5, "c": config, "d": "e"}


# ---- streams ----------------------------------------------------------------------------------------


def shell(packages, script: str) -> subprocess.CompletedProcess:
    environment = ENVIRONMENT | {"QLA": shlex.join(COMMAND), "MODEL": packages["embedding"]}
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=environment, cwd="/", timeout=120
    )


@pytest.mark.parametrize(
    "script, status",
    [
        ("$QLA --help | true; exit ${PIPESTATUS[0]}", 0),
        ("$QLA --version | true; exit ${PIPESTATUS[0]}", 0),
        ("PYTHONUNBUFFERED=1 $QLA --help | true; exit ${PIPESTATUS[0]}", 0),
        ("yes | head -2000 | $QLA encode - --model $MODEL | head -1 >/dev/null; exit ${PIPESTATUS[2]}", 0),
        ("$QLA explain --model $MODEL >&-", 0),
        ("$QLA encode a --model $MODEL --json >&-", 0),
        ("$QLA explain --model /no/such 2>&-", 2),
        ("$QLA encode a b --model $MODEL >/dev/null 2>&-", 0),
        ("$QLA encode - --model $MODEL <&- 2>/dev/null", 2),
    ],
)
def test_closed_streams_bring_no_traceback(packages, script, status):
    done = shell(packages, script)
    assert (done.returncode, done.stderr) == (status, ""), done.stderr


@pytest.mark.parametrize("buffered", ["PYTHONUNBUFFERED=", "PYTHONUNBUFFERED=1"])
@pytest.mark.parametrize("command", ["explain --model $MODEL", "--help", "--version"])
def test_a_full_disk_is_one_sentence(packages, buffered, command):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full here")
    done = shell(packages, f"{buffered} $QLA {command} >/dev/full")
    assert done.returncode == 2
    said = "qla: error: standard output cannot be written (No space left on device); send it elsewhere"
    assert done.stderr.splitlines() == [said]


def test_progress_stays_off_standard_output(packages):
    done = run("encode", "a", "b", "--model", packages["embedding"], "--json")
    assert done.returncode == 0 and json.loads(done.stdout)
