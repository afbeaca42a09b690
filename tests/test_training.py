"""Training: what is drawn, what is lost and learned, and that a run survives whatever interrupts it.

The models are tiny and random; none of this says anything about accuracy.
"""

from __future__ import annotations

import importlib.machinery
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from checkpoint_tools import add_sentence_layout, random_ids, save_checkpoint  # noqa: E402

import qla_runtime  # noqa: E402
from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError, QlaError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.float_model import Model  # noqa: E402
from qla_runtime.model.spec import TaskSpec  # noqa: E402
from qla_runtime.ragged import Ragged  # noqa: E402
from qla_runtime.training import length_drop, loop, losses  # noqa: E402
from qla_runtime.training.data import Batch, Features, read_labelled, read_questions  # noqa: E402
from qla_runtime.training.device import Device  # noqa: E402
from qla_runtime.training.length_drop import LengthDropOptions, train_length_drop  # noqa: E402
from qla_runtime.training.loop import Diverged, Loop, LoopOptions  # noqa: E402
from qla_runtime.training.run_folder import RunFolder, read_log  # noqa: E402
from qla_runtime.training.start import Start  # noqa: E402
from qla_runtime.training.teacher import LiveTeacher  # noqa: E402

STEPS = 6
LOOP = LoopOptions(steps=STEPS, learning_rate=1e-3, checkpoint_minutes=0, log_steps=1)
SANDWICH = LengthDropOptions(batch_tokens=256, random_passes=2, layer_drop=0.3)


def squad(path: Path, articles: int = 4, context_words: int = 30) -> Path:
    """A SQuAD file in the words of the tiny tokenizer; the answer is what stands after the question's word."""
    data = []
    for a in range(articles):
        words = [f"w{5 + (a * 11 + i * 7) % 90}" for i in range(context_words)]
        context = " ".join(words)
        qas = []
        for i in range(0, context_words - 2, 3):
            text = f"{words[i + 1]} {words[i + 2]}"
            start = len(" ".join(words[: i + 1])) + 1
            answer = {"text": text, "answer_start": start}
            qas.append({"id": f"{a}-{i}", "question": f"{words[i]} w4", "answers": [answer]})
        data.append({"title": str(a), "paragraphs": [{"context": context, "qas": qas}]})
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


def table(path: Path, labels=("no", "yes"), rows: int = 40) -> Path:
    lines = ["sentence1\tsentence2\tlabel"]
    lines += [f"w{5 + i} w{6 + i}\tw{7 + i % 9}\t{labels[i % len(labels)]}" for i in range(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def lines(path: Path) -> Path:
    path.write_text("\n\n".join(" ".join(f"w{4 + (i + j) % 90}" for j in range(3 + i % 9)) for i in range(40)))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("start") / "tiny-qa", "Bert", "span-qa")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return squad(tmp_path_factory.mktemp("data") / "train.json")


def train(checkpoint: Path, data: Path, out: Path, **changes):
    settings = dict(loop=LOOP, options=SANDWICH, max_length=24 if data.suffix == ".json" else 16, progress=False)
    return train_length_drop(checkpoint, data, out, **{**settings, **changes})


def saved(out: Path) -> tuple[bytes, dict]:
    """The newest checkpoint: bytes of the weights, and the state."""
    folder = max((out / "checkpoints").glob("step-*"))
    return (folder / "model.safetensors").read_bytes(), torch.load(folder / "state.pt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    (weights, state), (other_weights, other_state) = saved(one), saved(other)
    assert weights == other_weights
    assert {**state, "seconds": 0, "optimizer": 0, "random": 0} == {
        **other_state, "seconds": 0, "optimizer": 0, "random": 0
    }  # fmt: skip
    for key in ("exp_avg", "exp_avg_sq", "step"):
        for number, moments in state["optimizer"]["state"].items():
            assert torch.equal(moments[key], other_state["optimizer"]["state"][number][key])
    losses = [
        [{k: v for k, v in entry.items() if "second" not in k} for entry in read_log(run)] for run in (one, other)
    ]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------ sandwich


def test_smallest_keeps_the_bound_in_every_layer():
    chosen = length_drop.smallest(6, LengthDropOptions(), True, np.random.default_rng(0))
    assert chosen.skip == frozenset()
    assert chosen.length.values == pytest.approx([0.8**i for i in range(1, 7)])


def test_random_lies_between_the_bound_and_the_layer_before():
    draw = np.random.default_rng(0)
    shrinks = []
    for _ in range(200):
        ratios = np.array([1.0, *length_drop.random(6, LengthDropOptions(), True, draw).length.values])
        shrinks.append(1 - ratios[1:] / ratios[:-1])
    shrinks = np.array(shrinks)
    assert (shrinks >= 0).all() and (shrinks <= 0.2 + 1e-12).all()
    assert np.abs(shrinks.mean(0) - 0.1).max() < 0.02  # uniform


def test_smallest_of_any_shape():
    """Given as a config: random sub-models drop, layer by layer, up to the share of their tokens that it drops."""
    shape = (1.0, 0.8, 0.8, 0.4, 0.2, 0.05)
    options, draw = LengthDropOptions(smallest=shape), np.random.default_rng(0)
    assert length_drop.smallest(6, options, True, draw).length.values == pytest.approx(shape)
    least = np.array(shape) / np.array((1.0, *shape[:-1]))
    kept = []
    for _ in range(500):
        ratios = np.array([1.0, *length_drop.random(6, options, True, draw).length.values])
        kept.append(ratios[1:] / ratios[:-1])
    assert (np.array(kept) >= least - 1e-12).all() and (np.array(kept) <= 1 + 1e-12).all()
    assert np.mean(kept, axis=0) == pytest.approx((1 + least) / 2, abs=0.05)  # 500 draws: 5 sigma is 0.048
    with pytest.raises(InputError, match="6 entries, but this model has 2 layers"):
        length_drop.smallest(2, options, True, draw)


def test_layer_that_is_left_out_drops_no_tokens():
    options = LengthDropOptions(layer_drop=0.5)
    draw = np.random.default_rng(1)
    left_out = Counter()
    for _ in range(100):
        chosen = length_drop.smallest(6, options, True, draw)
        ratios = [1.0, *chosen.length.values]
        for i in range(6):
            assert ratios[i + 1] == pytest.approx(ratios[i] * (1.0 if i in chosen.skip else 0.8))
        left_out.update(chosen.skip)
    assert all(30 < left_out[i] < 70 for i in range(6))


def test_skipped_layer_is_the_identity(checkpoint):
    source = open_checkpoint(checkpoint, max_length=48)
    model = source.load_model()
    ids = random_ids(2, 20)
    length = LengthConfig.ratio([0.9, 0.9, 0.5])
    shorter = Model(replace(source.encoder, layers=2), source.task).eval()
    shorter.encoder.layers[0] = model.encoder.layers[0]
    shorter.encoder.layers[1] = model.encoder.layers[2]
    shorter.encoder.embeddings, shorter.head = model.encoder.embeddings, model.head
    expected = shorter(ids, length=LengthConfig.ratio([0.9, 0.5]))
    logits, output = model(ids, length=length, skip={1})
    assert torch.equal(logits, expected[0])
    assert len(output.hidden_states) == 4 and torch.equal(output.hidden_states[1], output.hidden_states[2])


def test_passes_and_their_weights(checkpoint, data):
    """The full pass runs whole, sub-models learn its detached logits, and the batch's loss is the mean."""
    start = Start.open(checkpoint, data, max_length=24)
    model = start.load_model(0)
    calls = []

    class Spy:
        device = torch.device("cpu")

        def run(self, model, batch, length=None, skip=(), score_gradient=False):
            calls.append((length, skip))
            return model(batch.input_ids, batch.token_type_ids, batch.mask, length, skip, score_gradient)

        def forward(self, model, batch):
            return self.run(model, batch)[0]

    features = start.features(start.tokenizer(data.parent), False)
    options = replace(SANDWICH, task_weight=2.0, distill_weight=3.0, vote_weight=5.0)
    recipe = length_drop.LengthDrop(model, features, Spy(), options)
    batch = recipe.batch(np.arange(5))
    passes = list(recipe.losses(batch, np.random.default_rng(3)))
    names = ["smallest", "random", "random"]
    assert [list(part.terms) for part in passes] == [["full"], *([name, f"{name}_votes"] for name in names)]
    assert calls[0] == (None, ())
    assert len({length for length, _ in calls}) == 4 and all(length is not None for length, _ in calls[1:])
    for part, weights in zip(passes, [(2.0,)] + [(3.0, 5.0)] * 3, strict=True):
        weighted = sum(w * term.item() for w, term in zip(weights, part.terms.values(), strict=True))
        assert part.total.item() == pytest.approx(weighted / 4)

    full = model(batch.input_ids, batch.token_type_ids, batch.mask)[0]
    small = model(batch.input_ids, batch.token_type_ids, batch.mask, *calls[1])[0]
    expected = losses.divergence(model.task, small, full, batch)
    assert passes[1].terms["smallest"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_sub_models_take_turns(checkpoint, data):
    """A batch runs the full model and one sub-model; over many batches each kind has its share."""
    start = Start.open(checkpoint, data, max_length=24)
    features = start.features(start.tokenizer(data.parent), False)
    options = replace(SANDWICH, random_passes=2, take_turns=True, vote_weight=0.0)
    recipe = length_drop.LengthDrop(start.load_model(0), features, Device.choose("fp32"), options)
    batch, seen = recipe.batch(np.arange(2)), Counter()
    for number in range(60):
        full, sub = recipe.losses(batch, np.random.default_rng(number))
        (name,) = sub.terms
        assert sub.total.item() == pytest.approx(sub.terms[name].item() / 2)
        assert full.total.item() == pytest.approx(full.terms["full"].item() / 2)
        seen[name] += 1
    assert 8 <= seen["smallest"] <= 32 and seen["random"] == 60 - seen["smallest"]  # a third, 60 draws


def test_hidden_distance_written_out(checkpoint):
    """Against loops over layers, sequences and kept tokens; with padding, and a layer that is left out."""
    model = open_checkpoint(checkpoint, max_length=48).load_model()
    lengths, n, ran = [20, 13], 24, [0, 2]
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    config = LengthConfig.ratio([0.7, 0.7, 0.35])
    with torch.no_grad():
        full = model(random_ids(2, n), None, mask)[1]
        output = model(random_ids(2, n), None, mask, config, (1,))[1]
    student, teacher = ([o.hidden_states[1 + layer] for layer in ran] for o in (output, full))
    distance = losses.hidden_distance(student, teacher, output.kept, mask)

    expected = 0.0
    for layer in range(2):
        difference = power = 0.0
        for b in range(2):
            for place in output.kept[layer][b].tolist():
                if place >= 0:
                    difference += ((student[layer][b, place] - teacher[layer][b, place]) ** 2).sum().item()
                    power += (teacher[layer][b, place] ** 2).sum().item()
        expected += difference / power / 2
    assert expected > 0 and distance.item() == pytest.approx(expected, rel=1e-4)


def test_passes_with_a_live_teacher(checkpoint, data):
    """Every pass learns a frozen model, sub-models also what its tokens became; by turns, one pass a batch."""
    start = Start.open(checkpoint, data, max_length=24)
    features = start.features(start.tokenizer(data.parent), False)
    device, model = Device.choose("fp32"), start.load_model(0)
    with torch.no_grad():
        model.head.weight += 1.0
    options = replace(SANDWICH, task_weight=2.0, distill_weight=3.0, hidden_weight=4.0, vote_weight=0.0)
    recipe = length_drop.LengthDrop(model, features, device, options, LiveTeacher(start.source, device))
    batch = recipe.batch(np.arange(3))
    full, *subs = recipe.losses(batch, np.random.default_rng(0))
    target = start.load_model(0)(batch.input_ids, batch.token_type_ids, batch.mask)[0]
    own = model(batch.input_ids, batch.token_type_ids, batch.mask)[0]
    expected = losses.divergence(model.task, own, target, batch).item()
    assert full.terms["full_distance"].item() == pytest.approx(expected, rel=1e-5) and expected > 1e-3
    for part in subs:
        (distance, hidden), passes = part.terms.values(), 1 + len(subs)
        assert part.total.item() == pytest.approx((3.0 * distance.item() + 4.0 * hidden.item()) / passes)
    recipe = length_drop.LengthDrop(
        model, features, device, replace(options, take_turns=True), LiveTeacher(start.source, device)
    )
    seen = Counter()
    for number in range(60):
        (part,) = recipe.losses(batch, np.random.default_rng(number))
        seen[next(iter(part.terms))] += 1
    assert sum(seen.values()) == 60 and min(seen["full"], seen["smallest"], seen["random"]) >= 6


def test_hidden_weight_needs_a_live_teacher(checkpoint, data, tmp_path):
    for options, live, message in (
        (replace(SANDWICH, hidden_weight=1.0), False, "only a live teacher tells"),
        (SANDWICH, True, "live_teacher is set without a teacher"),
    ):
        with pytest.raises(InputError, match=message):
            train(checkpoint, data, tmp_path / "run", options=options, live_teacher=live)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------- votes


def test_vote_loss_written_out(checkpoint):
    """Against loops over layers, sequences and tokens; padding, a kept [CLS] and a layer that drops nothing."""
    source = open_checkpoint(checkpoint, max_length=48)
    model = source.load_model()
    lengths, n, margin = [20, 13], 24, 0.5
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    config = LengthConfig.ratio([0.7, 0.7, 0.35], keep_cls=True)
    _, output = model(random_ids(2, n), None, mask, config, (), True)
    weights = torch.rand(3, 2, n, generator=torch.Generator().manual_seed(0)) / n
    loss = losses.vote_loss(output, weights, mask, True, margin)

    expected = 0.0
    for b in range(2):
        alive = list(range(lengths[b]))
        for scores, kept, weight in zip(output.scores, output.kept, weights, strict=True):
            votes = dict(zip(alive, scores[b].tolist(), strict=False))
            stay = [p for p in kept[b].tolist() if p >= 0]
            if len(stay) < len(alive):
                lowest = min(votes[p] for p in stay if p != 0)
                for p in alive[1:]:
                    lacking = max(0.0, margin + math.log(lowest) - math.log(votes[p]))
                    expected += weight[b, p].item() * lacking / 2 / len(output.scores)
            alive = stay
    assert expected > 0 and loss.item() == pytest.approx(expected, rel=1e-4)


def test_votes_are_learned_by_the_attention_of_dropping_layers(checkpoint):
    model = open_checkpoint(checkpoint, max_length=48).load_model()
    mask = torch.ones(2, 20, dtype=torch.bool)
    weights = torch.full((3, 2, 20), 0.05)
    config = LengthConfig.ratio([0.7, 0.7, 0.7])
    for gradient in (False, True):
        model.zero_grad()
        _, output = model(random_ids(2, 20), None, mask, config, (), gradient)
        assert output.scores[0].requires_grad == gradient
    losses.vote_loss(output, weights, mask, True, 0.5).backward()
    first, last = model.encoder.layers[0], model.encoder.layers[2]
    assert first.qkv.weight.grad.abs().sum() > 0
    assert last.qkv.weight.grad is None or (last.qkv.weight.grad == 0).all()  # drops nothing: 0.7 after 0.7


def test_importance_is_the_teachers_probability_and_at_first_the_question():
    teacher = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    framing = torch.tensor([[True, True, False, False, True], [True, False, True, False, False]])
    batch = replace(batch_of([[True] * 5, [True] * 3 + [False] * 2]), framing=framing)
    weights = losses.importance(TaskSpec("span-qa", 384), teacher, batch, 4)
    for layer in range(4):
        for b, n in enumerate([5, 3]):
            expected = (softmax(teacher[b, :n, 0].numpy()) + softmax(teacher[b, :n, 1].numpy())) / 2
            expected += (0.75, 0.5, 0.25, 0.0)[layer] * framing[b, :n].numpy() / framing[b].sum().item()
            assert weights[layer][b, :n].numpy() == pytest.approx(expected, rel=1e-5)
            assert (weights[layer][b, n:] == 0).all()


def test_framing_is_all_but_the_context(checkpoint, data):
    start = Start.open(checkpoint, data, max_length=24)
    features = start.features(start.tokenizer(data.parent), False)
    batch = features.batch(np.arange(7))
    for row in range(7):
        n = int(batch.mask[row].sum())
        types, framing = batch.token_type_ids[row, :n], batch.framing[row]
        assert framing[:n].tolist() == [t == 0 or i == n - 1 for i, t in enumerate(types.tolist())]
        assert not framing[n:].any()


# -------------------------------------------------------------------------------------------- losses


def batch_of(mask, labels=None) -> Batch:
    mask = torch.tensor(mask)
    return Batch(
        torch.zeros(mask.shape, dtype=torch.int64), torch.zeros(mask.shape, dtype=torch.int64), mask, labels,
        np.arange(len(mask)),
    )  # fmt: skip


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_span_distance_is_forward_kl_of_start_and_end():
    """Written out in numpy: KL(teacher || student) over real tokens, start and end alike, batch mean."""
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(2, 2, 5, 2)).astype(np.float32)
    lengths = [5, 3]
    expected = 0.0
    for b, n in enumerate(lengths):
        for side in range(2):
            p, q = softmax(teacher[b, :n, side]), softmax(student[b, :n, side])
            expected += (p * np.log(p / q)).sum() / 4
    student = torch.tensor(student, requires_grad=True)
    teacher = torch.tensor(teacher, requires_grad=True)
    batch = batch_of([[True] * 5, [True] * 3 + [False] * 2])
    loss = losses.divergence(TaskSpec("span-qa", 384), student, teacher, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert teacher.grad is None
    assert (student.grad[1, 3:] == 0).all() and (student.grad[0] != 0).all()  # padding, and both sides


def test_span_loss_gives_padding_no_share():
    logits = torch.zeros(1, 6, 2)
    batch = batch_of([[True] * 4 + [False] * 2], torch.tensor([[1, 2]]))
    assert losses.task_loss(TaskSpec("span-qa", 384), logits, batch).item() == pytest.approx(np.log(4))


def test_other_tasks_distances():
    batch = batch_of([[True]] * 2)
    labels = TaskSpec("sequence-classification", 16, labels=("a", "b", "c"))
    student, teacher = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = (p * (p / q).log()).sum() / 2
    assert losses.divergence(labels, student, teacher, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    score = replace(labels, labels=("score",), problem="regression")
    assert losses.divergence(score, student[:, :1], student[:, :1] + 2, batch).item() == pytest.approx(4.0)
    embedding = TaskSpec("embedding", 16)
    assert losses.divergence(embedding, student, 3 * student, batch).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.divergence(embedding, student, -student, batch).item() == pytest.approx(2.0)


# ---------------------------------------------------------------------------------------------- data


def test_plan_takes_every_feature_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(3, 100, 500)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.zeros(offsets[-1], np.int32)
    features = Features(Ragged(ids, offsets, ids), None, limit=512)
    plan = features.plan(512, np.random.default_rng(7))
    assert sorted(np.concatenate(plan)) == list(range(500))
    padded = [len(rows) * features.batch(rows).mask.shape[1] for rows in plan]
    assert max(padded) <= 512 and np.mean(padded) > 420
    assert all(features.batch(rows).mask.shape[1] % 16 == 0 for rows in plan)
    again, other = (features.plan(512, np.random.default_rng(seed)) for seed in (7, 8))
    assert all(np.array_equal(a, b) for a, b in zip(plan, again, strict=True))
    assert not np.array_equal(np.concatenate(plan), np.concatenate(other))


def test_windows_point_to_the_answer_or_to_cls(checkpoint, tmp_path):
    """Window by window: the labelled tokens spell the answer; without the whole answer they are [CLS]."""
    path = squad(tmp_path / "long.json", articles=1, context_words=60)
    start = Start.open(checkpoint, path, max_length=24)
    features = start.features(start.tokenizer(tmp_path), False)
    vocabulary = json.loads(start.source.tokenizer_json)["model"]["vocab"]
    words = {number: word for word, number in vocabulary.items()}
    window, found = 0, 0
    for question in start.items:
        answer = question.context[question.start : question.end].split()
        for _ in range(100):
            begin, end = features.ragged.offsets[window : window + 2]
            tokens = [words[int(i)] for i in features.ragged.ids[begin:end]]
            context = tokens[tokens.index("[SEP]") + 1 : -1]
            first, last = features.labels[window]
            inside = any(context[i : i + 2] == answer for i in range(len(context)))
            assert tokens[first : last + 1] == (answer if inside else ["[CLS]"])
            found += inside
            window += 1
            if context[-1] == question.context.split()[-1]:  # the last window of a question
                break
    assert window == len(features) and len(start.items) < found < window


@pytest.mark.parametrize(
    ("content", "first"),
    [
        ("sentence\tlabel\nit works\t1\nno\t0\n", ("it works", "1")),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n1\tc\td\tno\n", (("a", "b"), "yes")),
        ("index\tquestion\tsentence\tlabel\n0\ta\tb\tyes\n1\tc\td\tno\n", (("a", "b"), "yes")),
        ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\"a\tb\n0\t7\t8\tc\td\n", (('"a', "b"), "1")),
        ("gj04\t1\t\tThe sailors rode.\nr\t0\t*\tRode the.\n", ("The sailors rode.", "1")),
    ],
    ids=["SST-2", "RTE", "QNLI", "MRPC", "CoLA"],
)  # fmt: skip
def test_glue_layouts(tmp_path, content, first):
    path = tmp_path / "train.tsv"
    path.write_text(content)
    data = read_labelled(path)
    assert (data.texts[0], data.labels[0]) == first and len(data.labels) == 2 and not data.scores


def test_answer_that_stands_elsewhere_is_found(tmp_path):
    path = squad(tmp_path / "a.json", articles=1)
    content = json.loads(path.read_text())
    answer = content["data"][0]["paragraphs"][0]["qas"][3]["answers"][0]
    right = answer["answer_start"]
    answer["answer_start"] += 1
    path.write_text(json.dumps(content))
    assert read_questions(path)[3].start == right


# --------------------------------------------------------------------------------------- interruption


@pytest.fixture(scope="module")
def whole_run(checkpoint, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(checkpoint, data, out, loop=replace(LOOP, accumulation=2))
    return out


@pytest.mark.parametrize("at", [1, 4])
def test_killed_and_continued_equals_uninterrupted(checkpoint, data, whole_run, tmp_path, monkeypatch, at):
    """Killed in the middle of a step: what the step did is lost, and nothing else."""
    out = tmp_path / "run"
    options = replace(LOOP, accumulation=2)
    advance = Loop._advance

    def killed(self, stream, steps):
        if self._step == at:
            next(stream)
            torch.rand(100)
            raise SystemExit
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", killed)
    with pytest.raises(SystemExit):
        train(checkpoint, data, out, loop=options)
    monkeypatch.undo()
    assert RunFolder(out, json.loads((out / "run.json").read_text())["settings"]).latest() == at
    train(checkpoint, data, out, loop=options)
    assert_same_run(out, whole_run)
    assert len(list((out / "checkpoints").iterdir())) == 2  # older ones are gone, no leftovers


def test_sigterm_writes_a_checkpoint_first(checkpoint, data, whole_run, tmp_path, monkeypatch):
    out = tmp_path / "run"
    options = replace(LOOP, accumulation=2, checkpoint_minutes=1000)
    advance = Loop._advance

    def interrupted(self, stream, steps):
        if self._step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, stream, steps)

    monkeypatch.setattr(Loop, "_advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, data, out, loop=options)
    monkeypatch.undo()
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-0000003"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(checkpoint, data, out, loop=options)
    assert_same_run(out, whole_run)


def test_finished_run_is_not_trained_again(checkpoint, data, whole_run, monkeypatch):
    before = saved(whole_run)[0]
    monkeypatch.setattr(Loop, "_advance", None)
    train(checkpoint, data, whole_run, loop=replace(LOOP, accumulation=2))
    assert saved(whole_run)[0] == before


def test_other_settings_are_refused_by_name(checkpoint, data, whole_run):
    with pytest.raises(InputError, match="learning_rate was 0.001 and is now 0.1"):
        train(checkpoint, data, whole_run, loop=replace(LOOP, accumulation=2, learning_rate=0.1))


def test_settings_may_change_while_nothing_is_learned(checkpoint, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    monkeypatch.setattr(Loop, "_advance", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        train(checkpoint, data, out)
    monkeypatch.undo()
    assert train(checkpoint, data, out, loop=replace(LOOP, steps=2))["steps"] == 2


def test_folder_is_one_process_at_a_time(checkpoint, data, tmp_path):
    with RunFolder(tmp_path / "run", {}), pytest.raises(InputError, match="another process"):
        RunFolder(tmp_path / "run", {})


def test_nan_loss_leaves_the_last_checkpoint(checkpoint, data, tmp_path, monkeypatch):
    out, task_loss, calls = tmp_path / "run", losses.task_loss, []

    def poisoned(*arguments):
        calls.append(1)
        return task_loss(*arguments) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(length_drop, "task_loss", poisoned)
    with pytest.raises(Diverged, match=r"step 4: full is nan.*learning rate.*step 3 is intact"):
        train(checkpoint, data, out)
    weights, state = saved(out)
    assert state["step"] == 3 and b"nan" not in weights
    monkeypatch.undo()
    train(checkpoint, data, out)  # the same command continues
    assert saved(out)[1]["step"] == STEPS


def test_full_disk_leaves_the_last_checkpoint(checkpoint, data, tmp_path, monkeypatch):
    """A limit on file sizes makes the third checkpoint fail in its writes, as a full disk would."""
    out, save, limits = tmp_path / "run", RunFolder.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, step, *arguments):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        return save(self, step, *arguments)

    monkeypatch.setattr(RunFolder, "save", full)
    try:
        with pytest.raises(QlaError, match=r"checkpoint of step 3 is lost.*step 2 is intact") as error:
            train(checkpoint, data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not isinstance(error.value, InputError)
    monkeypatch.undo()
    names = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert names == ["step-0000001", "step-0000002"]
    train(checkpoint, data, out)
    assert saved(out)[1]["step"] == STEPS


def test_damaged_checkpoint_is_named(checkpoint, data, tmp_path):
    out = tmp_path / "run"
    train(checkpoint, data, out)
    (out / "final").rename(out / "old")
    newest = max((out / "checkpoints").iterdir())
    (newest / "state.pt").write_bytes((newest / "state.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{newest.name}: this checkpoint is damaged.*Delete"):
        train(checkpoint, data, out)


# --------------------------------------------------------------------------------------- end to end


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
    from safetensors.torch import load

    trained.load_state_dict(load(saved(tmp_path / "run")[0]))
    half = dict(rtol=0, atol=0.05)  # float16 weights, states of order 1
    with torch.no_grad():
        outputs = ours(ids)
        torch.testing.assert_close(outputs[0], trained.eval()(ids)[0], **half)
        auto = {"span-qa": "ForQuestionAnswering", "sequence-classification": "ForSequenceClassification"}
        loader = getattr(transformers, f"AutoModel{auto.get(kind, '')}")
        theirs, notes = loader.from_pretrained(out, output_loading_info=True)
        assert not notes["missing_keys"] and not notes["unexpected_keys"]
        assert theirs.dtype == torch.float32
        theirs = theirs.eval()(ids)
        exact = dict(rtol=0, atol=2e-5)
        if kind == "span-qa":
            torch.testing.assert_close(outputs[0][..., 0], theirs.start_logits, **exact)
            torch.testing.assert_close(outputs[0][..., 1], theirs.end_logits, **exact)
        elif kind == "embedding":
            torch.testing.assert_close(outputs[1].last_hidden, theirs.last_hidden_state, **exact)
            assert again.task.normalize and (Path(out) / "1_Pooling" / "config.json").is_file()
        else:
            torch.testing.assert_close(outputs[0], theirs.logits, **exact)
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


def test_bf16(checkpoint, data, tmp_path):
    train(checkpoint, data, tmp_path / "bf16", precision="bf16")
    train(checkpoint, data, tmp_path / "fp32", precision="fp32")
    for half, single in zip(read_log(tmp_path / "bf16"), read_log(tmp_path / "fp32"), strict=True):
        assert half["full"] == pytest.approx(single["full"], rel=0.05)


def test_minutes_become_steps(checkpoint, data, tmp_path):
    report = train(checkpoint, data, tmp_path / "run", loop=LoopOptions(minutes=0.02))
    assert report["steps"] == json.loads((tmp_path / "run" / "run.json").read_text())["steps"] >= 1


def test_learning_rate_ends_at_zero():
    options = LoopOptions(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [loop.learning_rate(options, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[10] == 1.0 and rates[-1] == pytest.approx(1 / 90)


def test_plot(whole_run, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from qla_runtime.training.plot import plot

    plot(whole_run, tmp_path / "log.png")
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")


# ------------------------------------------------------------------------------------- command line


def qla_train(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "qla_runtime.cli", "train", "length-drop", *map(str, arguments)]


def test_command(checkpoint, data, tmp_path):
    """Interrupted at the keyboard, continued by the same command; results alone on standard output."""
    out = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parents[1])}
    command = qla_train(
        checkpoint, data, out, "--steps", 150, "--batch-tokens", 256, "--max-length", 24, "--json",
        "--eval", data, "--eval-length", ".9,.6,.3", "--eval-sample", 4, "--log-steps", 1,
        "--smallest", ".9,.5,.2",
    )  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    while not (out / "log.jsonl").is_file() or len(read_log(out)) < 4:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (130, b""), said
    assert b"the same command continues" in said
    stopped = saved(out)[1]["step"]
    assert 0 < stopped < 150

    done = subprocess.run(command, capture_output=True, env=environment, check=True)
    report = json.loads(done.stdout)
    assert report["steps"] == 150 and report["checkpoint"] == str(out / "final")
    assert [entry["step"] for entry in read_log(out) if "full" in entry] == list(range(1, 151))
    assert "f1 .9,.6,.3" in read_log(out)[-1]["accuracy"]

    refused = subprocess.run([*command, "--seed", "1"], capture_output=True, env=environment, timeout=120)
    assert refused.returncode == 2 and refused.stdout == b""
    assert b"seed was 0 and is now 1" in refused.stderr and len(refused.stderr.splitlines()) == 1


# ----------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "not laid out like SQuAD"),
        ("a.json", "[]", "not laid out like SQuAD"),
        ("a.json", '{"data": []}', "holds no questions"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5", "answers": []}]}]}]}',
         r"data\[0\].paragraphs\[0\].qas\[0\]: has no answers"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5"}]}]}]}', "answers"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": "w5", "answers": '
         '[{"text": "w7", "answer_start": 0}]}]}]}]}', "does not hold the answer 'w7'"),
        ("a.json", '{"data": [{"paragraphs": [{"context": "w5", "qas": [{"question": 5, "answers": '
         '[{"text": "w5", "answer_start": 0}]}]}]}]}', "must be texts"),
        ("a.tsv", "", "is empty"),
        ("a.tsv", "a\tb\nc\td\n", "names no label column"),
        ("a.tsv", "sentence\tlabel\n", "no rows"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\n", "line 3 has 1 columns"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\t1\n", "every row has the label '1'"),
        ("a.tsv", "sentence\tlabel\nw5\t1\nw6\t7\n", "label '7' is none that the checkpoint's head gives"),
        ("a.txt", "\n \n", "holds no text"),
        ("a.json", b"\xff\xff", "no UTF-8"),
        ("missing.json", None, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_data(tmp_path, name, content, message):
    kinds = {".json": "span-qa", ".tsv": "sequence-classification", ".txt": "embedding"}
    start = save_checkpoint(tmp_path / "start", "Bert", kinds[Path(name).suffix])
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        train(start, path, tmp_path / "run", task=kinds[path.suffix])
    assert not (tmp_path / "run").exists()


def test_smallest_of_another_model(checkpoint, data, tmp_path):
    """Refused before anything is tokenized or written."""
    with pytest.raises(InputError, match="2 entries, but this model has 3 layers"):
        train(checkpoint, data, tmp_path / "run", options=replace(SANDWICH, smallest=(1.0, 0.5)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "message"), [("fast", b"is no length config"), ("9,5,2", b"holds counts; give shares")]
)
def test_smallest_that_is_no_ratio(checkpoint, data, tmp_path, values, message):
    environment = os.environ | {"PYTHONPATH": str(Path(qla_runtime.__file__).parents[1])}
    command = qla_train(checkpoint, data, tmp_path / "run", "--steps", 1, "--smallest", values)
    refused = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert refused.returncode == 2 and message in refused.stderr and len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("own", "task", "message"),
    [
        ("sequence-classification", "span-qa", "its head is for sequence-classification.*--new-head"),
        ("span-qa", "embedding", "its head is for span-qa.*sentence encoder"),
        ("token-classification", None, "the checkpoint does token-classification"),
        ("embedding", None, "pass task="),
    ],
)
def test_head_that_does_not_fit(tmp_path, data, own, task, message):
    start = save_checkpoint(tmp_path / "start", "Bert", own)
    with pytest.raises(InputError, match=message):
        train(start, data, tmp_path / "run", task=task)


def test_teacher_with_another_tokenizer(checkpoint, data, tmp_path):
    teacher = save_checkpoint(tmp_path / "teacher", "Roberta", "span-qa")
    with pytest.raises(InputError, match="tokenizer is not the student's"):
        train(checkpoint, data, tmp_path / "run", teacher=teacher)


def test_folder_of_something_else(checkpoint, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="no training run; it is left alone"):
        train(checkpoint, data, tmp_path / "run")


@pytest.mark.parametrize(
    "wrong",
    [{}, {"steps": 5, "minutes": 1.0}, {"steps": 0}, {"steps": 5, "learning_rate": float("nan")},
     {"steps": 5, "warmup": 1.0}, {"steps": 5, "clip": 0.0}],
)  # fmt: skip
def test_bad_options(wrong):
    with pytest.raises(InputError):
        LoopOptions(**wrong)


def test_bad_sandwich():
    with pytest.raises(InputError, match="ratio_bound is 1.0"):
        LengthDropOptions(ratio_bound=1.0)
    with pytest.raises(InputError, match="entries may not rise"):
        LengthDropOptions(smallest=(0.5, 0.6))


def test_intel_extension_keeps_plain_float32(checkpoint, data, tmp_path, monkeypatch):
    """A stand-in for the extension (which ties torch to 2.8): what it is asked for, and that training goes on."""
    asked = {}

    def optimize(model, **options):
        asked.update(options)
        return model, options["optimizer"]

    stand_in = types.ModuleType("intel_extension_for_pytorch")
    stand_in.optimize = optimize
    stand_in.__spec__ = importlib.machinery.ModuleSpec(stand_in.__name__, None)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    train(checkpoint, data, tmp_path / "without", loop=replace(LOOP, steps=1))
    assert not asked  # another torch
    monkeypatch.setattr(torch, "__version__", "2.8.0+cpu")
    train(checkpoint, data, tmp_path / "with", loop=replace(LOOP, steps=1))
    assert asked["weights_prepack"] is asked["split_master_weight_for_bf16"] is False
    assert asked["dtype"] == torch.float32 and saved(tmp_path / "with")[1]["step"] == 1
