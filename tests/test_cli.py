"""The command ``qla``, run as a program: what goes to which stream, and its exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from cli_tools import COMMAND, ENVIRONMENT, SOURCE, ok, refused, run

import qla_runtime
from qla_runtime import Engine, hub
from qla_runtime.cli.lengths import read_length

CONTEXT = "The analytical engine was designed by Charles Babbage in London."


# ---- answer ---------------------------------------------------------------------------------------


def test_the_default_model_answers():
    if not (SOURCE / "models" / hub.DEFAULT_PACKAGE / "manifest.json").exists():
        pytest.skip(f"the default package {hub.DEFAULT_PACKAGE} is not in this tree; run qla convert")
    shown = ok("answer", "Where was the analytical engine designed?", "--context", CONTEXT)
    assert shown.splitlines()[0] == "London"
    for word in ("score", "characters 57 to 63", "kept", "MACs", " ms"):
        assert word in shown


def test_answer_shows_kept_tokens(packages):
    shown = ok(
        "answer",
        "who?",
        "--context",
        "ada, bob.",
        "--model",
        packages["span-qa"],
        "--length",
        "9,4",
        "--show-kept",
    )
    assert "kept    9 4 of 15 tokens" in shown and "tokens(9, 4)" in shown
    bars = [line for line in shown.splitlines() if line.startswith("  layer")]
    assert len(bars) == 2 and bars[0].count("█") > bars[1].count("█") > 0
    assert "read by the last layer: [CLS]" in shown


def test_json_is_alone_on_standard_output(packages, tmp_path):
    (tmp_path / "context.txt").write_text("ada lives in london.", encoding="utf-8")
    context = f"@{tmp_path / 'context.txt'}"
    arguments = ["answer", "who?", "--context", context, "--model", packages["span-qa"], "--json"]
    result = json.loads(ok(*arguments, "--length", "fast", "--threads", "1", "--isa", "ref"))
    expected = Engine(packages["span-qa"]).answer("who?", "ada lives in london.", length="fast")
    assert {key: result[key] for key in expected} == expected
    assert len(result["kept"]) == 2 and result["seconds"] > 0


# ---- the other tasks ------------------------------------------------------------------------------


def test_encode(packages, tmp_path):
    engine = Engine(packages["embedding"])
    texts = tmp_path / "texts.txt"
    texts.write_text("first\n\nsecond one\r\n", encoding="utf-8-sig")
    model = ["--model", packages["embedding"]]
    vectors = json.loads(ok("encode", f"@{texts}", "@@home", "-", *model, "--json", text="from a pipe\n"))
    expected = engine.encode(["first", "", "second one", "@home", "from a pipe"])
    assert np.array_equal(np.array(vectors, np.float32), expected)
    done = run("encode", "first", *model, "--out", str(tmp_path / "v.npy"))
    assert (done.returncode, done.stdout) == (0, "") and "wrote 1 x 64" in done.stderr
    assert np.array_equal(np.load(tmp_path / "v.npy"), expected[:1])
    assert "(64 numbers)" in ok("encode", "first", *model)


def test_encode_reports_cut_texts(packages):
    done = run("encode", "a b c " * 40, "--model", packages["embedding"])
    assert done.returncode == 0
    assert done.stderr.startswith("qla: warning: 1 of 1 sentences") and len(done.stderr.splitlines()) == 1


def test_classify(packages):
    model = ["--model", packages["sequence-classification"]]
    engine = Engine(packages["sequence-classification"])
    assert json.loads(ok("classify", "good", "bad", *model, "--json")) == engine.classify(["good", "bad"])
    shown = ok("classify", "good", "--pair", "bad", *model, "--top-k", "all")
    expected = engine.classify("good", "bad", top_k=None)["scores"]
    assert shown == "good\t" + "  ".join(f"{s['label']} {s['score']:.4f}" for s in expected) + "\n"


@pytest.mark.parametrize(
    "task, arguments",
    [
        ("sequence-classification", ("classify",)),
        ("token-classification", ("tag",)),
        ("ranker", ("rank", "what")),
    ],
)
def test_cut_texts_are_reported(packages, task, arguments):
    done = run(*arguments, "short", "a b c " * 400, "--model", packages[task])
    assert done.returncode == 0
    assert done.stderr == "qla: warning: 1 of 2 texts are longer than the model reads, and were cut\n"


def test_rank(packages):
    model = ["--model", packages["ranker"]]
    ranked = json.loads(ok("rank", "what", "a", "bb", "ccc", *model, "--json"))
    assert ranked == Engine(packages["ranker"]).rank("what", ["a", "bb", "ccc"])
    assert len(ok("rank", "what", "a", "bb", "ccc", *model, "--top-k", "2").splitlines()) == 2


def test_settings_of_encode_and_rank(packages):
    engine, model = Engine(packages["embedding"]), ["--model", packages["embedding"]]
    flags = ["--prompt", "q: ", "--truncate-dim", "16", "--normalize"]
    vectors = json.loads(ok("encode", "first", "second", *model, *flags, "--json"))
    expected = engine.encode(["first", "second"], prompt="q: ", truncate_dim=16, normalize_embeddings=True)
    assert np.array_equal(np.array(vectors, np.float32), expected)
    assert json.loads(ok("encode", "first", *model, "--prompt-name", "query", "--json")) == [
        engine.encode_query("first").tolist()
    ]
    assert "'query', 'document'" in refused("encode", "first", *model, "--prompt-name", "passage")
    assert "not allowed with argument" in run("encode", "a", *model, "--prompt", "b", "--prompt-name", "c").stderr
    ranker, model = Engine(packages["ranker"]), ["--model", packages["ranker"]]
    ranked = json.loads(ok("rank", "what", "a", "bb", *model, "--raw-scores", "--prompt", "find: ", "--json"))
    assert ranked == ranker.rank("what", ["a", "bb"], raw_scores=True, prompt="find: ")


def test_tag(packages):
    model = ["--model", packages["token-classification"]]
    (result,) = json.loads(ok("tag", "ada in london", *model, "--json"))
    expected = Engine(packages["token-classification"]).tag("ada in london")
    assert result["truncated"] is False and result["macs"] == expected.macs
    assert result["spans"] == list(expected) and expected
    assert ok("tag", "ada in london", *model).startswith("ada in london\n")


def test_explain(packages):
    assert "kernels" in ok("explain", "--model", packages["embedding"])
    facts = json.loads(ok("explain", "--model", packages["embedding"], "--json"))
    assert facts["task"] == "embedding" and "balanced" in facts["lengths"]
    assert facts["explain"] == Engine(packages["embedding"]).explain()


# ---- evaluation -----------------------------------------------------------------------------------


def test_eval_squad(packages, tmp_path):
    engine = Engine(packages["span-qa"])
    contexts = ["ada lives in london.", "bob bakes bread.", "the sea is deep."]
    truth = [engine.answer("who?", context)["answer"] for context in contexts]
    data = [
        {"paragraphs": [{"context": c, "qas": [{"id": str(i), "question": "who?", "answers": [{"text": a}]}]}]}
        for i, (c, a) in enumerate(zip(contexts, [f"The {truth[0]}!", "nothing alike", truth[2]], strict=True))
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": data}))
    arguments = ["eval", "squad", str(path), "--model", packages["span-qa"]]
    score = json.loads(ok(*arguments, "--json", "--articles", "odd"))
    assert (score["exact_match"], score["f1"], score["questions"]) == (100, 100, 2)
    assert json.loads(ok(*arguments, "--json", "--articles", "even"))["exact_match"] == 0
    assert json.loads(ok(*arguments, "--json", "--limit", "1", "--length", "fast"))["length"] == "fast"
    assert "exact match 66.67" in ok(*arguments)
    assert "exact match 66.67" in ok("eval", "squad", "-", *arguments[3:], text=path.read_text())


def test_eval_sts(packages, tmp_path):
    engine = Engine(packages["embedding"])
    pairs = [("a cat", "a cat"), ("a cat", 'a dog, "old"'), ("the sea", "x"), ("it rains", "it rained")]
    cosines = [float(engine.encode(a) @ engine.encode(b)) for a, b in pairs]
    rows = [f"g\tf\ty\t{i}\t{c:.6f}\t{a}\t{b}" for i, (c, (a, b)) in enumerate(zip(cosines, pairs, strict=True))]
    path = tmp_path / "sts.csv"
    path.write_text("\n".join(rows) + "\n")
    score = json.loads(ok("eval", "sts", str(path), "--model", packages["embedding"], "--json"))
    assert score["spearman"] == pytest.approx(100) and score["pairs"] == 4
    piped = json.loads(ok("eval", "sts", "-", "--model", packages["embedding"], "--json", text=path.read_text()))
    assert piped | {"seconds": 0} == score | {"seconds": 0}


# ---- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, arguments, words",
    [
        (None, [], ["COMMAND"]),
        (None, ["answer"], ["QUESTION", "--context", "qla answer --help"]),
        (None, ["dance"], ["'dance'"]),
        ("span-qa", ["answer", "", "--context", "a"], ["question", "visible character"]),
        ("span-qa", ["answer", "a", "--context", "@/no/such/file"], ["/no/such/file", "write @@"]),
        (
            "span-qa",
            ["answer", "a", "--context", "b", "--length", "quick"],
            ["'quick'", "full, balanced, fast"],
        ),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "1.0"], ["1 entries", "2 layers"]),
        (
            "span-qa",
            ["answer", "a", "--context", "b", "--length", ".5,.9"],
            ["entry 1 is 0.9", "may not rise"],
        ),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "1,1"], ["'1,1'", "'full'"]),
        ("span-qa", ["answer", "a", "--context", "b", "--length", "1,,1"], ["'1,,1'", "one ratio"]),
        ("span-qa", ["answer", "a", "--context", "b", "--threads", "0"], ["--threads", "0 is below 1"]),
        ("span-qa", ["answer", "a", "--context", "b", "--isa", "mmx"], ["'mmx'", "avx2"]),
        ("span-qa", ["encode", "a"], ["qla encode needs", "Call qla answer"]),
        ("span-qa", ["eval", "squad", "/no/such/file"], ["/no/such/file", "cannot be read"]),
        ("embedding", ["encode", "-"], ["no texts", "at least one"]),
        ("sequence-classification", ["classify", "a", "--pair", "b", "--pair", "c"], ["1 texts", "2 texts"]),
        ("sequence-classification", ["classify", "a", "--top-k", "0"], ["0 is below 1"]),
        ("sequence-classification", ["classify", "a", "--top-k", "few"], ["'few'"]),
    ],
)
def test_refusals_are_one_line(packages, kind, arguments, words):
    model = ["--model", packages[kind]] if kind else []
    line = refused(*arguments, *model, text="")
    assert all(word in line for word in words), line


def test_a_checkpoint_prints_the_convert_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert f"qla convert {tmp_path}" in refused("explain", "--model", str(tmp_path))


def test_help_and_version_need_no_model():
    for arguments in (["--help"], ["answer", "--help"], ["convert", "--help"], ["eval", "squad", "--help"]):
        assert "usage: qla" in ok(*arguments)
    assert ok("--version") == f"qla {qla_runtime.__version__}\n"


def test_interrupted():
    """Ctrl-C while it waits for a text: status 130, nothing printed."""
    # Whoever started the tests in the background may have had SIGINT ignored, which children inherit.
    code = """if True:
        import signal
        from qla_runtime import cli
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("ready", flush=True)
        exit(cli.main(["encode", "-", "--json"]))
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, **pipes)
    assert command.stdout.readline() == b"ready\n"
    time.sleep(0.2)
    command.send_signal(signal.SIGINT)
    output, errors = command.communicate(timeout=60)
    assert (command.returncode, output, errors) == (130, b"", b"")


def test_a_reader_that_leaves_is_no_error(packages):
    command = " ".join([*COMMAND, "explain", "--model", packages["embedding"], "| true; echo ${PIPESTATUS[0]}"])
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize(
    "text, config",
    [
        ("fast", "fast"),
        ("e5-long", "e5-long"),
        ("1.0,.5", qla_runtime.LengthConfig.ratio((1.0, 0.5))),
        ("1, .5", qla_runtime.LengthConfig.ratio((1.0, 0.5))),
        ("9,4", qla_runtime.LengthConfig.tokens((9, 4))),
    ],
)
def test_lengths_of_the_command_line(text, config):
    assert read_length(text) == config
