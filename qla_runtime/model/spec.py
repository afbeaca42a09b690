"""What a model is: the ``encoder`` and ``task`` objects of a package's ``config.json`` (docs/file-format.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qla_runtime import task_kinds

_ARITHMETIC = {"norm": "post", "activation": "gelu_erf", "positions": "absolute"}
"""What the engine computes; a later version may know other names."""


@dataclass(frozen=True)
class EncoderSpec:
    """The encoder's shape."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    vocab_size: int
    max_positions: int
    """Usable positions; the table has ``max_positions + position_offset`` rows."""
    type_vocab_size: int
    norm_eps: float
    position_offset: int = 0
    """Row of the first token's position: 0 for BERT, pad id + 1 for RoBERTa."""
    word_embeddings: str = "s8"
    """How the package stores them: ``s8``, or ``ternary`` (two bits a value)."""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def to_json(self) -> dict[str, Any]:
        """The ``encoder`` object."""
        values = asdict(self)
        if self.word_embeddings == "s8":
            del values["word_embeddings"]  # which packages of before lack
        return {**_ARITHMETIC, "position_offset": values.pop("position_offset"), **values}


@dataclass(frozen=True)
class TaskSpec:
    """What the model is for."""

    kind: str
    """One of :data:`qla_runtime.task_kinds.TASK_KINDS`."""
    max_length: int
    """Tokens a text is cut at, special tokens included."""
    keep_cls: bool = True
    labels: tuple[str, ...] = ()
    pooler: str = "dense_tanh"
    """Of sequence classification, what stands between the first token's state and the head; or ``none``."""
    problem: str = "single_label"
    pooling: str = "mean"
    normalize: bool = False
    similarity: str | None = None
    truncate_dim: int | None = None
    matryoshka_dims: tuple[int, ...] = ()
    """Widths that vectors were trained to be cut at, largest first."""
    activation: str | None = None
    doc_stride: int = 128
    max_answer_tokens: int = 30
    no_answer: bool = False

    @property
    def outputs(self) -> int:
        """Columns of the head's output; 0 for embeddings, which have no head."""
        return task_kinds.outputs(self.kind, len(self.labels))

    @property
    def per_token(self) -> bool:
        """Whether the head gives a row per token, or one per sequence."""
        return task_kinds.per_token(self.kind)

    @property
    def has_pooler(self) -> bool:
        """Whether a dense + tanh layer on the first token's state stands before the head."""
        return self.kind == "sequence-classification" and self.pooler == "dense_tanh"

    def to_json(self) -> dict[str, Any]:
        """The ``task`` object: the keys of its kind, the optional ones where they have a value."""
        common = {"kind": self.kind, "max_length": self.max_length, "keep_cls": self.keep_cls}
        if self.kind == "span-qa":
            windows = {"doc_stride": self.doc_stride, "max_answer_tokens": self.max_answer_tokens}
            return {**common, **windows, **({"no_answer": True} if self.no_answer else {})}
        if self.kind == "embedding":
            return {
                **common,
                "pooling": self.pooling,
                "normalize": self.normalize,
                **_given(
                    similarity=self.similarity,
                    truncate_dim=self.truncate_dim,
                    matryoshka_dims=list(self.matryoshka_dims) or None,
                ),
            }
        if self.kind == "token-classification":
            return {**common, "labels": list(self.labels)}
        return {
            **common,
            "pooler": self.pooler,
            "labels": list(self.labels),
            "problem": self.problem,
            **_given(activation=self.activation),
        }


def shape(encoder: EncoderSpec, task: TaskSpec) -> dict[str, int]:
    """What :func:`qla_runtime.lengths.configs.count_macs` asks of a model, as ``_core.Engine.info`` names it."""
    return {
        "layers": encoder.layers,
        "hidden": encoder.hidden,
        "intermediate": encoder.intermediate,
        "outputs": task.outputs,
    }


def _given(**optional: Any) -> dict[str, Any]:
    """The optional keys that have a value."""
    return {key: value for key, value in optional.items() if value is not None}
