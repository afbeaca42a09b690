"""Training from end to end: what is learned, logged, exported and drawn.

The models are tiny and random; none of this says anything about accuracy.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import FLOAT32, add_sentence_layout, random_ids, save_checkpoint  # noqa: E402
from safetensors.torch import load  # noqa: E402
from training_tools import (  # noqa: E402
    LOOP,
    SANDWICH,
    STEPS,
    answerer,
    assert_same_run,
    lines,
    qla_train,
    saved,
    squad,
    started,
    table,
    train,
)

import qla_runtime  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.float_model import Model  # noqa: E402
from qla_runtime.settings import add_arguments  # noqa: E402
from qla_runtime.training import assess, command, loop  # noqa: E402
from qla_runtime.training.device import Device  # noqa: E402
from qla_runtime.training.options import LoopOptions  # noqa: E402
from qla_runtime.training.recipe import ParameterGroup  # noqa: E402
from qla_runtime.training.recipes.length_drop import LengthDropOptions  # noqa: E402
from qla_runtime.training.run_folder import read_log  # noqa: E402
from qla_runtime.training.start import Start  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return answerer(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return squad(tmp_path_factory.mktemp("data") / "train.json")


def test_training_learns_and_logs(checkpoint, data, tmp_path):
    out = tmp_path / "run"
    config = LengthConfig.ratio([0.8, 0.6, 0.4])
    options = LoopOptions(steps=120, learning_rate=3e-3, log_steps=10, assess_steps=60, train_word_embeddings=True)
    report = train(
        checkpoint, data, out, loop=options, assess_file=data, assess_lengths={"short": config}, assess_sample=10
    )
    entries = read_log(out)
    curve = [entry["full"] for entry in entries if "full" in entry]
    assert curve[-1] < 0.7 * curve[0]
    figures = [entry for entry in entries if "accuracy" in entry]
    assert [entry["step"] for entry in figures] == [0, 60, 120]
    assert set(figures[0]["accuracy"]) == {"f1 full", "f1 short"}
    assert figures[-1]["accuracy"]["f1 full"] > figures[0]["accuracy"]["f1 full"]
    rates = [entry["learning_rate"] for entry in entries if "full" in entry]
    assert max(rates) <= 3e-3 and rates[-1] < rates[0]
    assert report["steps"] == 120


def test_answers_are_chosen_by_the_engines_rule(checkpoint, tmp_path):
    """Between windows: not the highest logits of all, but those that lead their own window's null the most."""
    path = squad(tmp_path / "long.json", articles=1, context_words=40)
    start = Start.open(checkpoint, path, max_length=24)
    model = start.load_model(0)
    _, measure = assess._squad(model, start.tokenizer(tmp_path), path, 1, False)

    def run(features):
        outputs = [np.full((length, 2), -9.0, np.float32) for length in features.lengths]
        labels = start.features(start.tokenizer(tmp_path), False).labels[: len(outputs)]
        right, wrong = (np.flatnonzero((labels[:, 0] > 0) == inside) for inside in (True, False))
        for window, (first, last) in enumerate(labels):
            if window in right:
                outputs[window][first, 0] = outputs[window][last, 1] = 2.0
        outputs[wrong[-1]][[0, -3]] = [[10.0, 10.0], [6.0, 6.0]]
        return outputs

    assert measure(run) == 1.0


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
@pytest.mark.parametrize("kind", ["span-qa", "sequence-classification", "embedding"])
def test_export_loads_in_transformers_and_in_convert(family, kind, tmp_path):
    """The exported folder's logits, by transformers and by convert's module, are those of the trained model."""
    start = save_checkpoint(tmp_path / "start", family, kind)
    if kind == "embedding":
        add_sentence_layout(start)
    if kind == "sequence-classification":
        data = table(tmp_path / "t.tsv", labels=("0", "1", "2"))
    else:
        data = squad(tmp_path / "t.json") if kind == "span-qa" else lines(tmp_path / "t.txt")
    before = (start / "model.safetensors").read_bytes()
    out = train(start, data, tmp_path / "run", loop=replace(LOOP, steps=2))["checkpoint"]
    assert (start / "model.safetensors").read_bytes() == before

    again = open_checkpoint(out, max_length=16)
    assert again.task.kind == kind
    ids = random_ids(2, 12)
    ours = again.load_model()
    trained = Model(again.encoder, again.task)
    trained.load_state_dict(load(saved(tmp_path / "run")[0]))
    half = dict(rtol=0, atol=0.05)  # float16 weights, states of order 1
    with torch.no_grad():
        found = ours(ids)
        torch.testing.assert_close(found.outputs, trained.eval()(ids).outputs, **half)
        auto = {"span-qa": "ForQuestionAnswering", "sequence-classification": "ForSequenceClassification"}
        loader = getattr(transformers, f"AutoModel{auto.get(kind, '')}")
        theirs, notes = loader.from_pretrained(out, output_loading_info=True)
        assert not notes["missing_keys"] and not notes["unexpected_keys"]
        assert theirs.dtype == torch.float32
        theirs = theirs.eval()(ids)
        if kind == "span-qa":
            torch.testing.assert_close(found.outputs[..., 0], theirs.start_logits, **FLOAT32)
            torch.testing.assert_close(found.outputs[..., 1], theirs.end_logits, **FLOAT32)
        elif kind == "embedding":
            torch.testing.assert_close(found.last_hidden, theirs.last_hidden_state, **FLOAT32)
            assert again.task.normalize and (Path(out) / "1_Pooling" / "config.json").is_file()
        else:
            torch.testing.assert_close(found.outputs, theirs.logits, **FLOAT32)
    assert (Path(out) / "tokenizer.json").is_file()


def test_pretrained_encoder_gets_a_new_head(tmp_path):
    start = save_checkpoint(tmp_path / "start", "Bert", "embedding")
    data = table(tmp_path / "t.tsv", labels=("no", "maybe", "yes"))
    out = train(start, data, tmp_path / "run", task="sequence-classification")["checkpoint"]
    assert open_checkpoint(out).task.labels == ("maybe", "no", "yes")
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.id2label == {0: "maybe", 1: "no", 2: "yes"}


def test_scores_make_a_regression(tmp_path):
    start = save_checkpoint(tmp_path / "start", "Bert", "embedding")
    data = table(tmp_path / "t.tsv", labels=("0.5", "2.5", "4"))
    data.write_text(data.read_text().replace("label", "score"))
    report = train(start, data, tmp_path / "run", task="sequence-classification", assess_file=data)
    task = open_checkpoint(report["checkpoint"]).task
    assert task.problem == "regression" and task.labels == ("score",)
    assert "spearman full" in read_log(tmp_path / "run")[-1]["accuracy"]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("kind", ["span-qa", "embedding"])
def test_fixed_teacher(kind, live, tmp_path):
    """Its outputs are computed once, or batch by batch; the student starts where the teacher stands."""
    start = save_checkpoint(tmp_path / "start", "Bert", kind)
    data = squad(tmp_path / "t.json") if kind == "span-qa" else lines(tmp_path / "t.txt")
    given = dict(teacher=start) if kind == "span-qa" else dict(task="embedding")
    given["options"] = replace(SANDWICH, hidden_weight=float(live))
    run = tmp_path / "run"
    train(start, data, run, loop=replace(LOOP, steps=2), precision="fp32", live_teacher=live, **given)
    assert (run / "teacher.npy").is_file() != live
    if not live:
        rows = np.load(run / "teacher.npy")
        assert rows.dtype == np.float16 and rows.shape[1] == (2 if kind == "span-qa" else 64)
    first = read_log(tmp_path / "run")[0]
    assert first["full_distance"] < 1e-5 < first["smallest"]
    assert ("full" in first) == (kind == "span-qa")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_products_run_in_the_precision_asked_for(checkpoint, data, precision, dtype):
    """Weights and what a LayerNorm gives stay float32."""
    start, features = started(checkpoint, data)
    model, batch = start.load_model(0), features.batch(np.arange(3))
    found = Device.choose(precision).run(model, batch, want=["query"])
    assert found.query[0].dtype == found.outputs.dtype == dtype
    assert found.last_hidden.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_bf16_trains_like_fp32(checkpoint, data, tmp_path):
    """The same course, to bf16's 8 bits, and not the same numbers."""
    for precision in ("bf16", "fp32"):
        assert train(checkpoint, data, tmp_path / precision, precision=precision)["precision"] == precision
    half, single = ([entry["full"] for entry in read_log(tmp_path / p)] for p in ("bf16", "fp32"))
    assert half == pytest.approx(single, rel=0.05) and all(a != b for a, b in zip(half, single, strict=True))
    assert {value.dtype for value in load(saved(tmp_path / "bf16")[0]).values()} == {torch.float32}


@dataclass(frozen=True)
class HeadFirst(LengthDropOptions):
    """LengthDrop whose head learns ten times faster and does not decay, and whose first layer stands still."""

    def make(self, model, features, device, teacher):
        recipe = super().make(model, features, device, teacher)
        first = list(model.encoder.layers[0].parameters())
        taken = {id(parameter) for parameter in [*model.head.parameters(), *first]}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
        recipe.parameter_groups = lambda: [
            ParameterGroup(list(model.head.parameters()), learning_rate=10.0, weight_decay=0.0),
            ParameterGroup(first, learning_rate=0.0),
            ParameterGroup(rest, weight_decay=2.0),
        ]
        return recipe


def test_parameter_groups_have_their_own_rates_and_decays(checkpoint, data, tmp_path):
    """Adam's first step is the learning rate times the gradient's sign; decay comes before it."""
    options = HeadFirst(**{**SANDWICH.settings(), "layer_drop": 0.0})
    once = replace(LOOP, steps=1, warmup=0.0, weight_decay=0.1, clip=1e6)
    train(checkpoint, data, tmp_path / "run", options=options, loop=once, precision="fp32")
    before = Start.open(checkpoint, data, max_length=24).load_model(0).state_dict()
    after = load(saved(tmp_path / "run")[0])
    for name, decay, rate in (
        ("head.weight", 0.0, 1e-2),
        ("encoder.layers.1.ffn_in.weight", 0.2 * 1e-3, 1e-3),
        ("encoder.layers.1.ffn_in.bias", 0.2 * 1e-3, 1e-3),
    ):
        step = (after[name] - (1 - decay) * before[name]).abs()
        # AdamW's first step is the rate times the gradient's sign, but for epsilon beside a small gradient.
        assert step.median().item() == pytest.approx(rate, rel=1e-3), name
    still = [name for name in before if name.startswith("encoder.layers.0.")]
    assert all(torch.equal(before[name], after[name]) for name in [*still, "encoder.embeddings.word.weight"])


def test_minutes_become_steps(checkpoint, data, tmp_path):
    report = train(checkpoint, data, tmp_path / "run", loop=LoopOptions(minutes=0.02))
    assert report["steps"] == json.loads((tmp_path / "run" / "run.json").read_text())["steps"] >= 1


def test_learning_rate_rises_to_the_peak_and_falls_to_zero():
    """Step 100, which is never taken, would have rate 0: no step is wasted on it."""
    options = LoopOptions(steps=100, learning_rate=0.5, warmup=0.1)
    rates = [loop.learning_rate(options, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx(np.linspace(0.05, 0.5, 10))
    assert rates[10:] == pytest.approx(np.linspace(0.5, 0.0, 91)) and rates[100] == 0.0


def test_plot_shows_the_log(checkpoint, data, tmp_path):
    """Every loss, as logged and smoothed, over its steps; and the accuracy. The file is no blank page."""
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    from qla_runtime.training.plot import draw, plot

    train(
        checkpoint, data, tmp_path / "run", loop=replace(LOOP, assess_steps=2), assess_file=data, assess_sample=5
    )
    log = read_log(tmp_path / "run")
    losses = [entry for entry in log if "accuracy" not in entry]
    figures = [entry for entry in log if "accuracy" in entry]
    above, below = draw(log).axes
    shown = {line.get_label(): line for line in above.get_lines()}
    names = {"full", "smallest", "smallest_votes", "random", "random_votes"}
    assert {name for name in shown if not name.startswith("_")} == names
    raw = [line for name, line in shown.items() if name.startswith("_")]
    for name in names:
        values = [entry[name] for entry in losses]
        assert any(line.get_ydata().tolist() == values for line in raw)
        smooth = [np.mean(values[: i + 1]) for i in range(STEPS)]  # fewer than what a mean takes
        assert shown[name].get_xdata().tolist() == list(range(1, STEPS + 1))
        assert shown[name].get_ydata().tolist() == pytest.approx(smooth)
    (line,) = below.get_lines()
    assert line.get_xdata().tolist() == [0, 2, 4, 6]
    assert line.get_ydata().tolist() == [entry["accuracy"]["f1 full"] for entry in figures]

    plot(tmp_path / "run", tmp_path / "log.png")
    pixels = image.imread(tmp_path / "log.png")
    assert pixels.shape[:2] == (900, 1200) and (pixels[..., :3].min(-1) < 0.9).mean() > 0.01


@pytest.mark.parametrize(
    ("values", "message"), [("fast", b"is no length config"), ("9,5,2", b"holds counts; give shares")]
)
def test_smallest_that_is_no_ratio(checkpoint, data, tmp_path, values, message):
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parents[1])}
    command = qla_train(checkpoint, data, tmp_path / "run", "--steps", 1, "--smallest", values)
    refused = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert refused.returncode == 2 and message in refused.stderr and len(refused.stderr.splitlines()) == 1


class WithoutTeacher(LengthDropOptions):
    """A recipe that learns from no teacher, and so has no option for one."""

    @classmethod
    def add_arguments(cls, group):
        names = [field.name for field in fields(cls) if field.name != "batch_tokens"]
        add_arguments(group, cls, *names)


def test_a_recipe_need_not_know_teachers(checkpoint, data, tmp_path):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser, WithoutTeacher)
    arguments = [checkpoint, data, tmp_path / "run", "--steps", 1, "--layer-drop", 0.5]
    assert command.run(parser.parse_args(list(map(str, arguments))), str)["steps"] == 1


@pytest.mark.parametrize(
    "wrong",
    [{}, {"steps": 5, "minutes": 1.0}, {"steps": 0}, {"steps": 5, "learning_rate": float("nan")},
     {"steps": 5, "warmup": 1.0}, {"steps": 5, "clip": 0.0}],
)  # fmt: skip
def test_bad_options(wrong):
    with pytest.raises(InputError):
        LoopOptions(**wrong)


class CountedAdamW(torch.optim.AdamW):
    """What the stand-in below returns, told from the loop's own optimizer."""

    steps = 0

    def step(self, *arguments):
        type(self).steps += 1
        return super().step(*arguments)


def test_intel_extension_keeps_plain_float32(checkpoint, data, tmp_path, monkeypatch):
    """A stand-in for the extension, which ties torch to 2.8: what it is asked for, and that training goes on with
    what it returns and ends at the same bits."""
    asked = []

    def optimize(model, *, optimizer, **options):
        asked.append({"training": model.training, **options})
        optimizer.__class__ = CountedAdamW
        return model, optimizer

    stand_in = types.ModuleType("intel_extension_for_pytorch")
    stand_in.optimize = optimize
    stand_in.__spec__ = importlib.machinery.ModuleSpec(stand_in.__name__, None)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    train(checkpoint, data, tmp_path / "without")
    assert not asked and CountedAdamW.steps == 0  # another torch
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    train(checkpoint, data, tmp_path / "with")
    off = {"weights_prepack": False, "split_master_weight_for_bf16": False, "fuse_update_step": False}
    assert asked == [{"training": True, "dtype": torch.float32, "inplace": True, **off}]
    assert CountedAdamW.steps == STEPS
    assert_same_run(tmp_path / "with", tmp_path / "without")
