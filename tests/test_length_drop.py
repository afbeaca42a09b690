"""The LengthDrop recipe: which sub-models are drawn, and what each pass of a batch learns."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")

from checkpoint_tools import random_ids  # noqa: E402
from training_tools import LOSS, SANDWICH, answerer, squad, started, train  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.float_model import Model  # noqa: E402
from qla_runtime.training import losses  # noqa: E402
from qla_runtime.training.device import Device  # noqa: E402
from qla_runtime.training.recipes import length_drop  # noqa: E402
from qla_runtime.training.recipes.length_drop import LengthDropOptions  # noqa: E402
from qla_runtime.training.teacher import LiveTeacher  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return answerer(tmp_path_factory.mktemp("start"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return squad(tmp_path_factory.mktemp("data") / "train.json")


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
    assert np.abs(shrinks.mean(0) - 0.1).max() < 0.0205  # uniform, 200 draws: 5 sigma


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
    output = model(ids, length=length, skip={1}, want=["hidden_states"])
    assert torch.equal(output.outputs, expected.outputs)
    assert len(output.hidden_states) == 4 and torch.equal(output.hidden_states[1], output.hidden_states[2])


def test_passes_and_their_weights(checkpoint, data):
    """The full pass runs whole, sub-models learn its detached logits, and the batch's loss is the mean."""
    start, features = started(checkpoint, data)
    model = start.load_model(0)
    calls = []

    class Spy:
        device = torch.device("cpu")

        def run(self, model, batch, length=None, skip=(), want=()):
            calls.append((length, skip))
            return model(batch.input_ids, batch.token_type_ids, batch.mask, length, skip, want)

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

    full = model(batch.input_ids, batch.token_type_ids, batch.mask).outputs
    small = model(batch.input_ids, batch.token_type_ids, batch.mask, *calls[1]).outputs
    expected = losses.divergence(model.task, small, full, batch)
    assert passes[1].terms["smallest"].item() == pytest.approx(expected.item(), rel=LOSS)


def test_sub_models_take_turns(checkpoint, data):
    """A batch runs the full model and one sub-model; over many batches each kind has its share."""
    start, features = started(checkpoint, data)
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


def test_plain_fine_tuning(checkpoint, data):
    """Sub-models that nothing is learned from do not run."""
    start, features = started(checkpoint, data)
    for turns in (False, True):
        options = replace(SANDWICH, distill_weight=0.0, vote_weight=0.0, take_turns=turns)
        recipe = length_drop.LengthDrop(start.load_model(0), features, Device.choose("fp32"), options)
        (full,) = recipe.losses(recipe.batch(np.arange(5)), np.random.default_rng(0))
        assert list(full.terms) == ["full"] and full.total.item() == full.terms["full"].item()


def test_passes_with_a_live_teacher(checkpoint, data):
    """Every pass learns a frozen model, sub-models also what its tokens became; by turns, one pass a batch."""
    start, features = started(checkpoint, data)
    device, model = Device.choose("fp32"), start.load_model(0)
    with torch.no_grad():
        model.head.weight += 1.0
    options = replace(SANDWICH, task_weight=2.0, distill_weight=3.0, hidden_weight=4.0, vote_weight=0.0)
    recipe = length_drop.LengthDrop(model, features, device, options, LiveTeacher(start.source, device))
    batch = recipe.batch(np.arange(3))
    full, *subs = recipe.losses(batch, np.random.default_rng(0))
    target = start.load_model(0)(batch.input_ids, batch.token_type_ids, batch.mask).outputs
    own = model(batch.input_ids, batch.token_type_ids, batch.mask).outputs
    expected = losses.divergence(model.task, own, target, batch).item()
    assert full.terms["full_distance"].item() == pytest.approx(expected, rel=LOSS) and expected > 1e-3
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


def test_smallest_of_another_model(checkpoint, data, tmp_path):
    """Refused before anything is tokenized or written."""
    with pytest.raises(InputError, match="2 entries, but this model has 3 layers"):
        train(checkpoint, data, tmp_path / "run", options=replace(SANDWICH, smallest=(1.0, 0.5)))
    assert not (tmp_path / "run").exists()


def test_bad_sandwich():
    with pytest.raises(InputError, match="ratio_bound is 1.0"):
        LengthDropOptions(ratio_bound=1.0)
    with pytest.raises(InputError, match="entries may not rise"):
        LengthDropOptions(smallest=(0.5, 0.6))
