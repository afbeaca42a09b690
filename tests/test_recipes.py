"""recipes/: what is not already tested as the package's own functions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="recipes need the [convert] extra")
transformers = pytest.importorskip("transformers", reason="recipes need the [convert] extra")

from checkpoint_tools import add_sentence_layout, save_checkpoint  # noqa: E402
from package_tools import tiny_package  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from training_tools import table  # noqa: E402

from qla_runtime import Engine, LengthConfig  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.evaluation import squad as evaluate  # noqa: E402

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def recipe(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECIPES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def other(first: Path, folder: Path) -> Path:
    """A fine-tune of the same model: every tensor a little elsewhere."""
    open_checkpoint(first)  # it is one
    subprocess.run(["cp", "-r", str(first), str(folder)], check=True)
    tensors = {name: t + 0.1 * torch.randn_like(t) for name, t in load_file(first / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["span-qa", "embedding"])
def test_mean_of_checkpoints(tmp_path, kind):
    first = save_checkpoint(tmp_path / "first", "Bert", kind)
    if kind == "embedding":
        add_sentence_layout(first)
    second = other(first, tmp_path / "second")
    done = recipe("mean_of_checkpoints.py", tmp_path / "mean", 0.75, first, 0.25, second)
    assert done.returncode == 0, done.stderr
    one, two, mean = (open_checkpoint(tmp_path / name) for name in ("first", "second", "mean"))
    assert mean.task == one.task and mean.tokenizer_json == one.tokenizer_json
    states = [source.load_model().state_dict() for source in (one, two, mean)]
    for name, found in states[2].items():
        expected = 0.75 * states[0][name].double() + 0.25 * states[1][name].double()
        # Rounded to float16 once, after float32 roundings that are 2^13 times smaller.
        assert (found - expected).abs().max() <= 2.0**-11 * expected.abs().max() * (1 + 2.0**-9)


def test_mean_refuses(tmp_path):
    first = save_checkpoint(tmp_path / "first", "Bert", "span-qa")
    wider = save_checkpoint(tmp_path / "wider", "Bert", "span-qa", intermediate_size=192)
    for parts, message in (
        ((0.7, first, 0.7, first), "add up to 1"),
        ((0.5, first, 0.5, wider), "is another model"),
        ((1, tmp_path / "nothing"), "nothing"),
        ((0.5, first, 0.5), "a share before each checkpoint"),
        ((first, 0.5), "a share before each checkpoint"),
    ):
        done = recipe("mean_of_checkpoints.py", tmp_path / "mean", *parts)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "mean").exists()
    thesis = tmp_path / "mine" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("mine")
    done = recipe("mean_of_checkpoints.py", thesis.parent, 1, first)
    assert done.returncode != 0 and "is no checkpoint; it is left alone" in done.stderr and thesis.is_file()


def test_sentence_lines(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out.txt"
    text.write_text(
        'He said "Please stop that now." Then he went away to sea. \u00c9mile came home 3 days later.\n'
        "5 men went with Dr. no to sea! Too short. Then he went away to sea.\n",
        encoding="utf-8",
    )
    expected = [
        'He said "Please stop that now."',
        "Then he went away to sea.",
        "\u00c9mile came home 3 days later.",
        "5 men went with Dr. no to sea!",
    ]
    assert recipe("sentence_lines.py", text, out).returncode == 0
    assert sorted(out.read_text(encoding="utf-8").splitlines()) == sorted(expected)
    assert recipe("sentence_lines.py", text, out, "--count", 2).returncode == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2


def test_a_master_is_not_replaced_by_itself(tmp_path):
    first = save_checkpoint(tmp_path / "first", "Bert", "span-qa")
    (tmp_path / "other").mkdir()
    for master, message in ((first, "is the checkpoint itself"), (tmp_path / "other", "is no checkpoint")):
        done = recipe("default_model.py", first, "dev.json", "--out", tmp_path / "out", "--training-data", "none",
                      "--master", master)  # fmt: skip
        assert done.returncode != 0 and message in done.stderr
    assert (first / "config.json").is_file()


def test_config_at_cost(tmp_path):
    package = tiny_package(layers=3).save(tmp_path / "package")
    data = tmp_path / "dev.json"
    context = "the quick brown fox jumps over a lazy dog and some more of them"
    qas = [
        {"id": str(i), "question": "which?", "answers": [{"text": word}]} for i, word in enumerate(context.split())
    ]
    data.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": qas}]}]}))
    done = recipe("config_at_cost.py", package, data, "--share", 0.7, "--steps", 6, "--start", "1,.8,.3")
    lines = [re.fullmatch(r"(\S+)  cost (\S+)  f1 (\S+)(.*)", line).groups() for line in done.stdout.splitlines()]
    assert len(lines) > 1 and lines[0][3] == " <- best"
    assert all(0.5 < float(cost) <= 0.7 for _, cost, _, _ in lines), done.stdout
    values, _, f1, _ = max(lines, key=lambda line: float(line[2]))
    config = LengthConfig.ratio(map(float, values.split(",")), keep_cls=True)
    # It is printed to 0.01.
    assert evaluate.squad(Engine(package), data, config).f1 == pytest.approx(float(f1), abs=0.00501)
    refused = recipe("config_at_cost.py", package, data, "--share", 0.7, "--start", "1,.8")
    assert "3 layers" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.slow
def test_ternary_runs(tmp_path):
    """A float model and a ternary one that it teaches; then the tables."""
    start = save_checkpoint(tmp_path / "start", "Bert", "embedding", max_position_embeddings=128)
    for name, rows in (("train", 60), ("dev", 20)):
        (tmp_path / "glue" / "MRPC").mkdir(parents=True, exist_ok=True)
        table(tmp_path / "glue" / "MRPC" / f"{name}.tsv", labels=("0", "1"), rows=rows)
    places = (start, tmp_path / "glue", tmp_path / "work", "--records", tmp_path / "records")
    chosen = ("--tasks", "MRPC", "--variants", "float,unified", "--seeds", "0")
    done = recipe("ternary_runs.py", *places, *chosen)
    assert done.returncode == 0, done.stderr
    names = ["MRPC-float-0.json", "MRPC-unified-0.json"]
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == names
    float_, ternary = (json.loads((tmp_path / "records" / name).read_text()) for name in names)
    assert (ternary["dev"]["texts"], ternary["select"]["texts"]) == (20, 6)
    assert ternary["dev"]["same"] == 20 and ternary["dev"]["apart"] < 0.01
    assert ternary["bits_per_encoder_weight"] < 0.4 * float_["bits_per_encoder_weight"]
    assert ternary["command"].startswith("qla train qat runs/MRPC-float-0/final data/MRPC/train.tsv ")
    assert str(tmp_path) not in ternary["command"] + float_["command"].replace(str(start), "")

    again = recipe("ternary_runs.py", *places, *chosen)
    assert again.returncode == 0 and again.stderr == ""  # nothing is left to do
    shown = recipe("ternary_table.py", "--records", tmp_path / "records")
    assert shown.returncode == 0, shown.stderr
    assert f"| W2A8, unified | {ternary['dev']['engine']['accuracy']:.1f} |" in shown.stdout
    assert "| all |  |  | 20 of 20 (100.00 %) |  |" in shown.stdout
    wrong = recipe("ternary_runs.py", *places, "--variants", "best")
    assert wrong.returncode == 2 and "--variants holds 'best'; it may hold float, none" in wrong.stderr
