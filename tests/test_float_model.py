"""The PyTorch module against transformers and a plain reference."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import reference  # noqa: E402
from checkpoint_tools import FLOAT32, HEADS, random_ids, save_checkpoint  # noqa: E402

from qla_runtime.checkpoints.reader import open_checkpoint  # noqa: E402
from qla_runtime.lengths.configs import LengthConfig  # noqa: E402
from qla_runtime.model.float_model import Model, _select, kept_count  # noqa: E402


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_module_equals_transformers(tmp_path, family, kind):
    folder = save_checkpoint(tmp_path / "m", family, kind)
    theirs = (
        getattr(transformers, family + HEADS[kind][0]).from_pretrained(folder, attn_implementation="eager").eval()
    )
    ours = open_checkpoint(folder, task=kind).load_model()
    ids = random_ids(3, 20)
    type_ids = (torch.arange(20) > 8).long().expand(3, 20) * (family == "Bert")
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    mask[2, 5:] = 0
    ids = ids.masked_fill(mask == 0, 1)  # RoBERTa numbers positions by pad id
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=type_ids, output_hidden_states=True)
        output = ours(ids, type_ids, mask, want=["hidden_states"])
        logits, alone = output.outputs, ours(ids[1:2, :13], type_ids[1:2, :13]).outputs
    real = mask.bool()
    for mine, other in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine[real], other[real], **FLOAT32)
    if kind == "span-qa":
        want = torch.stack([expected.start_logits, expected.end_logits], -1)
    elif kind == "embedding":
        states = expected.last_hidden_state
        want = torch.stack([state[keep].mean(0) for state, keep in zip(states, real, strict=True)])
    else:
        want = expected.logits
    per_token = kind in ("span-qa", "token-classification")
    torch.testing.assert_close(logits[real] if per_token else logits, want[real] if per_token else want, **FLOAT32)
    torch.testing.assert_close(alone[0], want[1, :13] if per_token else want[1], **FLOAT32)


CONFIGS = [
    LengthConfig.ratio((0.8, 0.5, 0.25), keep_cls=True),
    LengthConfig.ratio((0.8, 0.5, 0.25), keep_cls=False),
    LengthConfig.ratio((1.0, 0.31, 0.01), keep_cls=True),
    LengthConfig.tokens((30, 12, 3), keep_cls=False),
    LengthConfig.tokens((9, 9, 1), keep_cls=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dropping_equals_plain_loops(qa_model, config):
    spec = qa_model.encoder.spec
    tensors = {name: t.numpy() for name, t in qa_model.encoder.state_dict().items()}
    lengths_ = [1, 2, 3, 10, 24, 40]
    ids = random_ids(len(lengths_), max(lengths_), seed=3)
    type_ids = (torch.arange(ids.shape[1]) > 6).long().expand_as(ids)
    mask = torch.arange(ids.shape[1])[None] < torch.tensor(lengths_)[:, None]
    with torch.no_grad():
        padded = qa_model.encoder(ids, type_ids, mask, config, want=["hidden_states", "kept"])
    for b, n in enumerate(lengths_):
        with torch.no_grad():
            alone = qa_model.encoder(
                ids[b : b + 1, :n], type_ids[b : b + 1, :n], None, config, want=["hidden_states", "scores", "kept"]
            )
        expected = reference.encode(
            tensors,
            layers=spec.layers,
            heads=spec.heads,
            eps=spec.norm_eps,
            position_offset=spec.position_offset,
            ids=ids[b, :n].numpy(),
            type_ids=type_ids[b, :n].numpy(),
            rule=config.rule,
            values=config.values,
            keep_cls=config.keep_cls,
        )
        for i in range(spec.layers):
            assert alone.kept[i][0].tolist() == expected.kept[i]
            row = padded.kept[i][b]
            assert row[row >= 0].tolist() == expected.kept[i]
            assert (row[len(expected.kept[i]) :] == -1).all()
            # A probability is off by the share that its logit, of states as far apart as FLOAT32, is off by.
            np.testing.assert_allclose(alone.scores[i][0], expected.scores[i], rtol=FLOAT32["atol"])
            # Of each row of probabilities the sum is 1, but for some roundings of 6e-8.
            assert alone.scores[i].sum().item() == pytest.approx(spec.heads * len(expected.scores[i]), rel=1e-6)
        for i in range(spec.layers + 1):
            np.testing.assert_allclose(alone.hidden_states[i][0], expected.hidden_states[i], **FLOAT32)
            np.testing.assert_allclose(padded.hidden_states[i][b, :n], expected.hidden_states[i], **FLOAT32)


def test_dropping_trains(qa_model):
    """Gradients reach every parameter through a padded pass with dropping."""
    model = Model(qa_model.encoder.spec, qa_model.task)
    ids = random_ids(2, 12)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    logits = model(ids, None, mask, CONFIGS[0]).outputs
    logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_ties_go_to_the_lower_position():
    scores = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert _select(scores, 2, None, False)[0].tolist() == [[1, 2]]
    assert _select(scores, 2, None, True)[0].tolist() == [[0, 1]]
    rows, alive = _select(scores.expand(2, 5), torch.tensor([3, 1]), torch.ones(2, 5, dtype=torch.bool), False)
    assert rows[0].tolist() == [1, 2, 3]
    assert rows[1, 0] == 1 and alive.tolist() == [[True] * 3, [True, False, False]]


def test_kept_count_is_the_config_rule():
    """Integer arithmetic against the rule in double, where it matters most: ratios that hit whole tokens."""
    ratios = [k / 384 for k in range(2, 385, 7)] + [k / 100 for k in range(1, 101)] + [1 / 3, 2 / 3, 0.7, 1e-9]
    for ratio in ratios:
        config = LengthConfig.ratio([ratio])
        for n in (*range(1, 40), 100, 300, 384, 512, 4096):
            assert kept_count("ratio", ratio, n, n) == config.kept(n)[0]
            tensor = torch.tensor([n])
            assert kept_count("ratio", ratio, tensor, tensor).item() == config.kept(n)[0]
    assert kept_count("tokens", 5, 10, 4) == 4
    with pytest.raises(ValueError, match="rule"):
        kept_count("threshold", 0.5, 10, 10)


class _LastHidden(torch.nn.Module):
    def __init__(self, encoder, config=None):
        super().__init__()
        self.encoder, self.config = encoder, config

    def forward(self, ids, type_ids):
        return self.encoder(ids, type_ids, None, self.config).last_hidden


def test_exports_dense_with_batch_and_length_dynamic(qa_model):
    module = _LastHidden(qa_model.encoder)
    shape = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", max=64)}
    exported = torch.export.export(
        module, (random_ids(2, 16), random_ids(2, 16) % 2), dynamic_shapes=(shape, shape)
    )
    for batch, n in ((2, 16), (5, 3), (3, 64)):
        ids = random_ids(batch, n)
        torch.testing.assert_close(exported.module()(ids, ids % 2), module(ids, ids % 2), **FLOAT32)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[3]], ids=str)
def test_exports_dropping_with_length_dynamic(qa_model, config):
    module = _LastHidden(qa_model.encoder, config)
    shape = {1: torch.export.Dim.AUTO}
    exported = torch.export.export(
        module, (random_ids(1, 48), random_ids(1, 48) % 2), dynamic_shapes=(shape, shape)
    )
    for n in (3, 4, 11, 30, 64):
        ids = random_ids(1, n, seed=n)
        torch.testing.assert_close(exported.module()(ids, ids % 2), module(ids, ids % 2), **FLOAT32)
