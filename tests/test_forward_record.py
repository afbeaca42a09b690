"""The float model's record: what is wanted is there, right and differentiable; what is not wanted is not."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[train]')")

from torch import nn  # noqa: E402
from training_tools import answerer  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.errors import InputError  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.float_model import WANTED, Model  # noqa: E402

B, N, LENGTHS = 2, 12, (12, 7)
DROPPING = LengthConfig.ratio([0.8, 0.5, 0.5])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return open_checkpoint(answerer(tmp_path_factory.mktemp("m")), max_length=48).load_model()


def inputs():
    ids = torch.randint(4, 90, (B, N), generator=torch.Generator().manual_seed(0))
    return ids, None, torch.arange(N) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("length", [None, DROPPING], ids=["full", "dropping"])
def test_what_is_wanted_changes_no_bit(model, length):
    """And a record holds what was asked for, nothing else."""
    plain = model(*inputs(), length)
    assert not any(getattr(plain, name) for name in WANTED)
    everything = model(*inputs(), length, want=WANTED)
    assert torch.equal(everything.outputs, plain.outputs)
    assert torch.equal(everything.last_hidden, plain.last_hidden)
    for name in WANTED:
        one = model(*inputs(), length, want=[name])
        assert not any(getattr(one, other) for other in WANTED - {name})
        for a, b in zip(getattr(one, name), getattr(everything, name), strict=True):
            assert torch.equal(a, b)


def test_attention_written_out(model):
    """Layer by layer from the layer's input, with a matrix product per head; PAD keys have no share."""
    found = model(*inputs(), want=WANTED)
    spec, mask = model.encoder.spec, inputs()[2]
    width = spec.hidden // spec.heads
    assert len(found.hidden_states) == spec.layers + 1 and not found.scores and not found.kept
    close = dict(rtol=0, atol=64 * 2.0**-24)  # 64 products of order 1, added in another order
    for i, layer in enumerate(model.encoder.layers):
        x = found.hidden_states[i]
        weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
        for part, weight, bias in zip((found.query, found.key, found.value), weights, biases, strict=True):
            assert part[i].shape == (B, spec.heads, N, width)
            torch.testing.assert_close(part[i].transpose(1, 2).flatten(2), x @ weight.T + bias, **close)
        for b in range(B):
            contexts = []
            for h in range(spec.heads):
                q, k, v = (part[i][b, h] for part in (found.query, found.key, found.value))
                logits = (q @ k.T / math.sqrt(width)).masked_fill(~mask[b], -math.inf)
                p = logits.exp() / logits.exp().sum(-1, keepdim=True)
                torch.testing.assert_close(found.attention_logits[i][b, h], logits, **close)
                torch.testing.assert_close(found.attention_probabilities[i][b, h], p, **close)
                contexts.append(p @ v)
            y = layer.attention_norm(x[b] + layer.output(torch.cat(contexts, -1)))
            torch.testing.assert_close(found.attention_output[i][b], y, **close)
        y = found.attention_output[i]
        torch.testing.assert_close(found.hidden_states[i + 1], layer.feed_forward(y), **close)


def test_votes_are_sums_of_the_probabilities(model):
    found = model(*inputs(), DROPPING, want=["scores", "kept", "attention_probabilities"])
    mask = inputs()[2]
    for i in range(model.encoder.spec.layers):
        rows = mask if i == 0 else found.kept[i - 1] >= 0
        p = found.attention_probabilities[i]
        assert p.shape[2] == found.scores[i].shape[1] == rows.shape[1]
        votes = (p.sum(1) * rows[:, :, None]).sum(1)
        torch.testing.assert_close(found.scores[i], votes)


@pytest.mark.parametrize("name", sorted(WANTED - {"kept"}))
def test_gradients_pass_through(model, name):
    for tensor in getattr(model(*inputs(), DROPPING, want=[name]), name):
        finite = tensor.masked_fill(tensor.isinf(), 0.0)
        word = model.encoder.embeddings.word.weight
        (gradient,) = torch.autograd.grad(finite.square().sum(), [word], retain_graph=True)
        assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_an_unknown_want_is_named(model):
    with pytest.raises(InputError, match="want holds maps, votes; it may hold attention_logits, .*value"):
        model(*inputs(), want=["votes", "maps", "kept"])


def test_a_record_of_everything_is_exported(model):
    """torch.export traces through it at any length."""

    class Wanted(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = model.encoder

        def forward(self, ids):
            found = self.encoder(ids, length=DROPPING, want=WANTED)
            return [getattr(found, name) for name in sorted(WANTED)]

    ids = inputs()[0]
    graph = torch.export.export(Wanted(), (ids,), dynamic_shapes=({1: torch.export.Dim.AUTO},)).module()
    for part in (ids, ids[:, :9]):
        for ours, theirs in zip(graph(part), Wanted()(part), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
