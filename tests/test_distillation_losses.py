"""The losses of quantization-aware training, against their formulas in plain loops over real tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")

from training_tools import LOSS, batch_of  # noqa: E402

from qla_runtime.training.distillation import map_loss, prediction_loss, score_loss, state_loss  # noqa: E402

B, HEADS, N, H, LAYERS, LENGTHS = 2, 3, 6, 8, 2, (6, 4)
MASK = torch.tensor([[i < n for i in range(N)] for n in LENGTHS])


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensors(layers: np.ndarray) -> list:
    return [torch.from_numpy(layer).requires_grad_() for layer in layers]


def check(loss, student: np.ndarray, teacher: np.ndarray, expected: float) -> None:
    """And no gradient is NaN, or reaches what is padding."""
    mine = tensors(student)
    found = loss(mine, [torch.from_numpy(layer) for layer in teacher], MASK)
    assert found.item() == pytest.approx(expected, rel=LOSS)
    found.backward()
    for layer in mine:
        assert torch.isfinite(layer.grad).all() and layer.grad.abs().sum() > 0
        for b, n in enumerate(LENGTHS):
            padding = layer.grad[b, n:] if layer.ndim == 3 else layer.grad[b, :, n:]
            assert not padding.any()


def test_states():
    student, teacher = random(0, LAYERS, B, N, H), random(1, LAYERS, B, N, H)
    expected = 0.0
    for layer in range(LAYERS):
        total, count = 0.0, 0
        for b, n in enumerate(LENGTHS):
            for i in range(n):
                for d in range(H):
                    total += (float(student[layer, b, i, d]) - float(teacher[layer, b, i, d])) ** 2
                    count += 1
        expected += total / count
    check(state_loss, student, teacher, expected)


def test_scores():
    student, teacher = random(0, LAYERS, B, HEADS, N, N), random(1, LAYERS, B, HEADS, N, N)
    expected = 0.0
    for layer in range(LAYERS):
        total, count = 0.0, 0
        for b, n in enumerate(LENGTHS):
            for h in range(HEADS):
                for i in range(n):
                    for j in range(n):
                        apart = float(student[layer, b, h, i, j]) - float(teacher[layer, b, h, i, j])
                        total, count = total + apart**2, count + 1
        expected += total / count
    for b, n in enumerate(LENGTHS):  # as the model masks them
        student[:, b, :, :, n:] = teacher[:, b, :, :, n:] = -np.inf
    check(score_loss, student, teacher, expected)


def test_maps():
    """A probability of 0 counts as 1e-8, in both."""
    student, teacher = (np.exp(random(seed, LAYERS, B, HEADS, N, N)) for seed in (0, 1))
    student[0, 0, 0, 0, 1] = teacher[1, 1, 2, 3, 0] = 0.0
    for b, n in enumerate(LENGTHS):
        student[:, b, :, :, n:] = teacher[:, b, :, :, n:] = 0.0
    student, teacher = (x / x.sum(-1, keepdims=True) for x in (student, teacher))
    expected = 0.0
    for layer in range(LAYERS):
        total = 0.0
        for b, n in enumerate(LENGTHS):
            for h in range(HEADS):
                here = 0.0
                for i in range(n):
                    for j in range(n):
                        p = max(float(teacher[layer, b, h, i, j]), 1e-8)
                        here += p * (math.log(p) - math.log(max(float(student[layer, b, h, i, j]), 1e-8)))
                total += here / n
        expected += total / (B * HEADS)
    check(map_loss, student, teacher, expected)


def soft_cross_entropy(student: np.ndarray, teacher: np.ndarray) -> float:
    weights = [math.exp(z) for z in teacher.tolist()]
    highest = math.log(sum(math.exp(z) for z in student.tolist()))
    return -sum(w / sum(weights) * (z - highest) for w, z in zip(weights, student.tolist(), strict=True))


def test_predictions_of_labels():
    student, teacher = random(0, B, 4), random(1, B, 4)
    task = SimpleNamespace(kind="sequence-classification", problem="single_label")
    found = prediction_loss(task, torch.from_numpy(student), torch.from_numpy(teacher), batch_of(MASK.tolist()))
    expected = sum(soft_cross_entropy(student[b], teacher[b]) for b in range(B)) / B
    assert found.item() == pytest.approx(expected, rel=LOSS)


def test_predictions_of_spans():
    student, teacher = random(0, B, N, 2), random(1, B, N, 2)
    task = SimpleNamespace(kind="span-qa", problem="single_label")
    found = prediction_loss(task, torch.from_numpy(student), torch.from_numpy(teacher), batch_of(MASK.tolist()))
    parts = [
        soft_cross_entropy(student[b, :n, end], teacher[b, :n, end])
        for b, n in enumerate(LENGTHS)
        for end in (0, 1)
    ]
    assert found.item() == pytest.approx(sum(parts) / len(parts), rel=LOSS)


def test_predictions_of_scores_and_vectors():
    student, teacher = random(0, B, 5), random(1, B, 5)
    pair = torch.from_numpy(student), torch.from_numpy(teacher)
    regression = SimpleNamespace(kind="sequence-classification", problem="regression")
    found = prediction_loss(regression, pair[0][:, :1], pair[1][:, :1], batch_of(MASK.tolist()))
    assert found.item() == pytest.approx(np.mean((student[:, 0] - teacher[:, 0]) ** 2), rel=LOSS)
    embedding = SimpleNamespace(kind="embedding", problem="single_label")
    found = prediction_loss(embedding, *pair, batch_of(MASK.tolist()))
    cosine = [np.dot(s, t) / np.linalg.norm(s) / np.linalg.norm(t) for s, t in zip(student, teacher, strict=True)]
    assert found.item() == pytest.approx(1 - np.mean(cosine), rel=LOSS)
