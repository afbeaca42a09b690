"""Losses: what a task is trained for and how far a student is from its teacher, against sums written out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")

from checkpoint_tools import random_ids  # noqa: E402
from training_tools import LOSS, answerer, batch_of  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.spec import TaskSpec  # noqa: E402
from qla_runtime.training import losses  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return answerer(tmp_path_factory.mktemp("start"))


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
    assert loss.item() == pytest.approx(expected, rel=LOSS)
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
    assert losses.divergence(labels, student, teacher, batch).item() == pytest.approx(expected.item(), rel=LOSS)
    score = replace(labels, labels=("score",), problem="regression")
    assert losses.divergence(score, student[:, :1], student[:, :1] + 2, batch).item() == pytest.approx(4.0)
    embedding = TaskSpec("embedding", 16)
    assert losses.divergence(embedding, student, 3 * student, batch).item() == pytest.approx(0.0, abs=LOSS)
    assert losses.divergence(embedding, student, -student, batch).item() == pytest.approx(2.0)


def test_hidden_distance_written_out(checkpoint):
    """Against loops over layers, sequences and kept tokens; with padding, and a layer that is left out."""
    model = open_checkpoint(checkpoint, max_length=48).load_model()
    lengths, n, ran = [20, 13], 24, [0, 2]
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    config = LengthConfig.ratio([0.7, 0.7, 0.35])
    with torch.no_grad():
        full = model(random_ids(2, n), None, mask, want=["hidden_states"])
        output = model(random_ids(2, n), None, mask, config, (1,), want=["hidden_states", "kept"])
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
    assert expected > 0 and distance.item() == pytest.approx(expected, rel=LOSS)


def test_vote_loss_written_out(checkpoint):
    """Against loops over layers, sequences and tokens; padding, a kept [CLS] and a layer that drops nothing."""
    source = open_checkpoint(checkpoint, max_length=48)
    model = source.load_model()
    lengths, n, margin = [20, 13], 24, 0.5
    mask = torch.arange(n) < torch.tensor(lengths)[:, None]
    config = LengthConfig.ratio([0.7, 0.7, 0.35], keep_cls=True)
    output = model(random_ids(2, n), None, mask, config, want=["scores", "kept"])
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
    assert expected > 0 and loss.item() == pytest.approx(expected, rel=LOSS)


def test_votes_are_learned_by_the_attention_of_dropping_layers(checkpoint):
    model = open_checkpoint(checkpoint, max_length=48).load_model()
    mask = torch.ones(2, 20, dtype=torch.bool)
    weights = torch.full((3, 2, 20), 0.05)
    config = LengthConfig.ratio([0.7, 0.7, 0.7])
    output = model(random_ids(2, 20), None, mask, config, want=["scores", "kept"])
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
            assert weights[layer][b, :n].numpy() == pytest.approx(expected, rel=LOSS)
            assert (weights[layer][b, n:] == 0).all()
