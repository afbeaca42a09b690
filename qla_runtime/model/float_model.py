"""The encoder as a PyTorch module: the float32 original that conversion quantizes and training improves.

One fused QKV projection, post-norm, erf-GELU, and drop-and-restore with a length config, exactly by
docs/architecture.md, "Length semantics" (after the Length-Adaptive Transformer: layer i attends over the
n(i-1) tokens that layer i-1 kept, scores them, and runs its feed-forward on the n(i) best).

Two ways in, one arithmetic:

- unpadded (``attention_mask=None``): all sequences of a batch have one length. Everything traces through
  ``torch.export``; with a length config the token counts are integer arithmetic on the symbolic length.
- right-padded (``attention_mask``): what training uses. Each sequence keeps its own number of tokens,
  counted from its real length; PAD rows neither vote nor survive.

Torch is imported here, in :mod:`qla_runtime.convert` and in training, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import MIN_KEPT, LengthConfig

if TYPE_CHECKING:
    from qla_runtime.model.formats import ModelFormat
    from qla_runtime.model.spec import EncoderSpec, TaskSpec

# ceil(r * n - 1e-6) in integers: r becomes a numerator over 2^40. The error, below n * 2^-41, is a
# millionth of the 1e-6 that the rule itself forgives, and n * 2^40 still fits 63 bits.
_SHIFT = 40
_ONE = 1 << _SHIFT
_FORGIVEN = round(1e-6 * _ONE)

Count: TypeAlias = int | Tensor
"""A number of tokens: of all sequences (under export a ``torch.SymInt``), or a (B,) int64 tensor with one each."""


@dataclass(eq=False, repr=False)
class ForwardRecord:
    """What one pass computed, of a student and a teacher alike. B sequences of n positions, H = hidden.

    A list is filled where ``want`` holds its name, with one tensor per layer that ran. Of the n positions, e enter
    a layer: those that the layer before kept, or all. Gradients pass through every tensor but ``kept``. Under
    autocast, what comes before a LayerNorm may be bfloat16, probabilities included: losses make it float32.
    """

    want: frozenset[str] = frozenset()
    """What was asked for, of :data:`WANTED`."""
    last_hidden: Tensor = field(init=False)
    """(B, n, H): every original position, dropped ones restored. Set by :class:`Encoder`."""
    outputs: Tensor = field(init=False)
    """The head's outputs: see :meth:`Model.forward`. Set by :class:`Model`."""
    hidden_states: list[Tensor] = field(default_factory=list)
    """layers + 1 tensors like ``last_hidden``: after the embeddings and each layer, dropped rows carried."""
    query: list[Tensor] = field(default_factory=list)
    """(B, heads, e, H / heads), without the factor of the attention logits."""
    key: list[Tensor] = field(default_factory=list)
    """Like ``query``."""
    value: list[Tensor] = field(default_factory=list)
    """Like ``query``."""
    attention_logits: list[Tensor] = field(default_factory=list)
    """(B, heads, e, e), query by key: before the softmax, divided by sqrt(H / heads); -inf on PAD keys."""
    attention_probabilities: list[Tensor] = field(default_factory=list)
    """(B, heads, e, e), query by key: after the softmax."""
    attention_output: list[Tensor] = field(default_factory=list)
    """(B, e, H): after the output projection, residual and LayerNorm, before tokens are dropped."""
    scores: list[Tensor] = field(default_factory=list)
    """(B, e) float32: votes, the column sums of the tokens that entered; empty without a length."""
    kept: list[Tensor] = field(default_factory=list)
    """(B, max kept) int64: original positions, ascending; shorter sequences end in -1. Empty without a length."""

    def __post_init__(self) -> None:
        if self.want - WANTED:
            unknown, known = (", ".join(sorted(names)) for names in (self.want - WANTED, WANTED))
            raise InputError(f"want holds {unknown}; it may hold {known}")

    def note(self, **tensors: Tensor) -> None:
        """Appends those of a layer's tensors that are wanted."""
        for name, tensor in tensors.items():
            if name in self.want:
                getattr(self, name).append(tensor)


WANTED = frozenset(f.name for f in fields(ForwardRecord)) - {"want", "last_hidden", "outputs"}
"""What a pass records on demand: the names of :class:`ForwardRecord`'s lists."""


class Embeddings(nn.Module):
    """Word + position + token type, then LayerNorm."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.offset = spec.position_offset
        self.word: nn.Module = nn.Embedding(spec.vocab_size, spec.hidden)
        self.position = nn.Embedding(spec.max_positions + spec.position_offset, spec.hidden)
        self.token_type = nn.Embedding(spec.type_vocab_size, spec.hidden)
        self.norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device) + self.offset
        return self.norm(self.word(input_ids) + self.position(positions) + self.token_type(token_type_ids))


class Arithmetic:
    """What a layer computes besides linear modules and norms: a quantized model has roundings here."""

    def logits(self, query: Tensor, key: Tensor) -> Tensor:
        """(B, heads, n, n), query by key, from (B, heads, n, d) each; divided by sqrt(d)."""
        # Training spends its time in passes over (B, heads, n, n): so the scale goes to the query.
        return (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax over keys, in the logits' shape."""
        return logits.softmax(-1)

    def context(self, probabilities: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
        """(B, heads, n, d), from (B, heads, n, n) and (B, heads, n, d); ``real`` as in :meth:`Layer.attend`."""
        return probabilities.to(value.dtype) @ value

    def gelu(self, x: Tensor) -> Tensor:
        """Between the two linear modules of the feed-forward part."""
        return F.gelu(x)


class Layer(nn.Module):
    """One encoder layer, in the two halves between which tokens are dropped.

    Args:
        spec: the encoder's shape.
    """

    arithmetic = Arithmetic()

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.heads = spec.heads
        self.qkv: nn.Module = nn.Linear(spec.hidden, 3 * spec.hidden)
        self.output: nn.Module = nn.Linear(spec.hidden, spec.hidden)
        self.attention_norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)
        self.ffn_in: nn.Module = nn.Linear(spec.hidden, spec.intermediate)
        self.ffn_out: nn.Module = nn.Linear(spec.intermediate, spec.hidden)
        self.ffn_norm = nn.LayerNorm(spec.hidden, eps=spec.norm_eps)

    def attend(
        self, x: Tensor, real: Tensor | None, record: ForwardRecord, vote: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Attention, residual, LayerNorm.

        Args:
            x: (B, n, H).
            real: (B, n) bool, which rows are tokens; None when all are.
            record: gets what it wants of this half. Where it wants ``scores``, gradients reach the probabilities
                through the votes.
            vote: also return the votes.

        Returns:
            (B, n, H), and (B, n) float32: per key the sum over heads and real queries of its probability.
        """
        batch, n, hidden = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.arithmetic.logits(query, key)
        if real is not None:
            # PAD keys are masked by an addition in place, for which the backward pass has nothing to do.
            pads = torch.zeros_like(real, dtype=logits.dtype).masked_fill_(~real, -torch.inf)
            logits += pads[:, None, None, :]
        probabilities = self.arithmetic.probabilities(logits)
        context = self.arithmetic.context(probabilities, value, real)
        context = context.transpose(1, 2).reshape(batch, n, hidden)
        y = self.attention_norm(x + self.output(context))
        record.note(query=query, key=key, value=value, attention_logits=logits)
        record.note(attention_probabilities=probabilities, attention_output=y)
        if not vote:
            return y, None
        votes = probabilities if "scores" in record.want else probabilities.detach()
        votes = votes.sum(1, dtype=torch.float32)
        if real is not None:
            votes = votes * real[:, :, None]
        return y, votes.sum(1)

    def feed_forward(self, y: Tensor) -> Tensor:
        return self.ffn_norm(y + self.ffn_out(self.arithmetic.gelu(self.ffn_in(y))))


class Encoder(nn.Module):
    """Embeddings and layers. Parameter names are the package's tensor names."""

    def __init__(self, spec: EncoderSpec):
        super().__init__()
        self.spec = spec
        self.embeddings = Embeddings(spec)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        length: LengthConfig | None = None,
        skip: Collection[int] = (),
        want: Collection[str] = (),
    ) -> ForwardRecord:
        """Runs the encoder.

        Args:
            input_ids: (B, n) int64.
            token_type_ids: (B, n) int64; None means all 0.
            attention_mask: (B, n), non-zero on tokens, right-padded; None means no padding at all.
            length: how many tokens each layer keeps; None keeps all. ``keep_cls=None`` counts as True.
            skip: layers to leave out, for LayerDrop: each is the identity and drops no token.
            want: what the record shall hold besides ``last_hidden``, of :data:`WANTED`.

        Raises:
            InputError: ``want`` holds another name.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = restored = self.embeddings(input_ids, token_type_ids)
        record = ForwardRecord(frozenset(want))
        record.note(hidden_states=restored)
        real = None if attention_mask is None else attention_mask.bool()
        # Token counts: one integer (symbolic under export) for all sequences, or one per padded sequence.
        original: Count = input_ids.shape[1] if real is None else real.sum(1)
        current = original
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)

        for index, layer in enumerate(self.layers):
            if index in skip:
                record.note(hidden_states=restored)
                continue
            assert isinstance(layer, Layer)
            y, scores = layer.attend(x, real, record, length is not None)
            if length is None:
                x = restored = layer.feed_forward(y)
            else:
                assert scores is not None  # attend() was asked to vote
                current = kept_count(length.rule, length.values[index], original, current)
                keep, real = _select(scores.detach(), current, real, length.keep_cls is not False)
                positions = positions.gather(1, keep)
                x = layer.feed_forward(_rows(y, keep))
                restored = _restore(restored, x, positions, real)
                kept = positions if real is None else positions.masked_fill(~real, -1)
                record.note(scores=scores, kept=kept)
            record.note(hidden_states=restored)
        record.last_hidden = restored
        return record


class Model(nn.Module):
    """Encoder and head: the whole model in float32."""

    format: ModelFormat | None = None
    """How it rounds as it computes; None for a float model. See :mod:`qla_runtime.model.fake_quantized`."""

    def __init__(self, spec: EncoderSpec, task: TaskSpec):
        super().__init__()
        self.task = task
        self.encoder = Encoder(spec)
        self.pooler = nn.Linear(spec.hidden, spec.hidden) if task.has_pooler else None
        self.head = nn.Linear(spec.hidden, task.outputs) if task.outputs else None

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        length: LengthConfig | None = None,
        skip: Collection[int] = (),
        want: Collection[str] = (),
    ) -> ForwardRecord:
        """The encoder's record with the head's outputs in it; arguments as in :meth:`Encoder.forward`.

        ``outputs`` are (B, n, 2) for span QA, (B, n, labels) for token classification, (B, labels) for sequence
        classification, (B, H) pooled (and normalized, if the task says so) for embeddings.
        """
        record = self.encoder(input_ids, token_type_ids, attention_mask, length, skip, want)
        record.outputs = self.logits(record.last_hidden, attention_mask)
        return record

    def logits(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The head alone, on (B, n, H) restored states."""
        if self.task.kind == "embedding":
            return self._embed(hidden, attention_mask)
        if not self.task.per_token:
            hidden = hidden[:, 0]
        if self.pooler is not None:
            hidden = torch.tanh(self.pooler(hidden))
        assert self.head is not None  # embeddings alone have none
        return self.head(hidden)

    def _embed(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        if self.task.pooling == "cls":
            pooled = hidden[:, 0]
        elif attention_mask is None:
            pooled = hidden.mean(1)
        else:
            real = attention_mask.bool()[..., None]
            pooled = hidden.masked_fill(~real, 0.0).sum(1) / real.sum(1)
        return F.normalize(pooled, dim=-1, eps=1e-12) if self.task.normalize else pooled


def kept_count(rule: str, value: float, original: Count, current: Count) -> Count:
    """Tokens a layer keeps: min(current, max(2, wanted)).

    Args:
        rule: ``ratio`` (wanted = ceil(value * original - 1e-6)) or ``tokens`` (wanted = value).
        value: the config's entry for this layer.
        original: the sequence's real length.
        current: tokens that entered the layer, of the same kind.
    """
    if rule == "ratio":
        wanted = (round(value * _ONE) * original + (_ONE - 1 - _FORGIVEN)) // _ONE
    elif rule == "tokens":
        wanted = original * 0 + int(value)
    else:
        raise ValueError(f"unknown length rule {rule!r}")
    if isinstance(wanted, Tensor):
        assert isinstance(current, Tensor)  # of the same kind
        return torch.minimum(wanted.clamp(min=MIN_KEPT), current)
    return torch.sym_min(current, torch.sym_max(MIN_KEPT, wanted))


def _select(scores: Tensor, count: Count, real: Tensor | None, keep_cls: bool) -> tuple[Tensor, Tensor | None]:
    """Rows to keep: the ``count`` best scores, ties to the lower position, in ascending position.

    Returns:
        (B, k) int64 row numbers, and (B, k) bool saying which of them are real (None when all are).
        A padded batch keeps k = max(count) rows; those beyond a sequence's own count come last.
    """
    if keep_cls:
        # Not by slicing: a traced graph would then hold for longer sequences only.
        scores = scores.masked_fill(torch.arange(scores.shape[1], device=scores.device) == 0, torch.inf)
    if real is None:
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
        return best.sort(dim=1).values, None
    assert isinstance(count, Tensor)  # padded sequences have one each
    rows = scores.shape[1]
    # A score is never negative, so -1 ranks a PAD row behind every token.
    order = scores.masked_fill(~real, -1.0).sort(dim=1, descending=True, stable=True).indices
    order = order[:, : int(count.max())]
    alive = torch.arange(order.shape[1], device=order.device) < count[:, None]
    # Sorting with the surplus rows shifted by `rows` puts them last; they stay distinct from the others,
    # which the scatter in `_restore` relies on.
    order = torch.where(alive, order, order + rows).sort(dim=1).values
    return order % rows, alive


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[b, index[b]] for every sequence b: (B, n, H) and (B, k) to (B, k, H)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _restore(restored: Tensor, x: Tensor, positions: Tensor, real: Tensor | None) -> Tensor:
    """Writes the rows that survived a layer over the restore buffer; dropped positions keep what they had."""
    if real is not None:
        x = torch.where(real[..., None], x, _rows(restored, positions).to(x.dtype))
    return restored.to(x.dtype).scatter(1, positions[..., None].expand(-1, -1, x.shape[2]), x)
