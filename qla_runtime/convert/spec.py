"""What the runtime can run: the encoder and task specs, and the rules that refuse everything else.

A Hugging Face ``config.json`` goes in; an :class:`EncoderSpec` and a :class:`TaskSpec` come out, spelled
exactly as ``docs/file-format.md`` spells them, or an :class:`UnsupportedError` that names the limit, the
value met and the remedy. No torch here: a checkpoint that cannot be converted is refused in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import InputError, UnsupportedError

MODEL_TYPES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}
"""Hugging Face ``model_type`` -> the family whose tensor names and position rule it follows."""

TASK_OF_ARCHITECTURE = {
    "ForQuestionAnswering": "span-qa",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
}
"""Suffix of ``architectures[0]`` -> task kind; a bare encoder embeds, if it says how it pools."""

TASK_KINDS = ("span-qa", "sequence-classification", "token-classification", "embedding")

KERNEL_TOKENS = 512
"""The longest sequence the kernels take."""


@dataclass(frozen=True)
class EncoderSpec:
    """The encoder's shape; the fields of ``encoder`` in the package's ``config.json``."""

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
    family: str = "bert"
    """``bert`` or ``roberta``: whose tensor names the checkpoint uses. Not part of the package."""

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def to_json(self) -> dict[str, Any]:
        """The ``encoder`` object of the package's ``config.json``."""
        return {
            "norm": "post",
            "activation": "gelu_erf",
            "positions": "absolute",
            "position_offset": self.position_offset,
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "intermediate": self.intermediate,
            "vocab_size": self.vocab_size,
            "max_positions": self.max_positions,
            "type_vocab_size": self.type_vocab_size,
            "norm_eps": self.norm_eps,
        }


@dataclass(frozen=True)
class TaskSpec:
    """What the model is for; the ``task`` object of the package's ``config.json``."""

    kind: str
    max_length: int
    keep_cls: bool = True
    labels: tuple[str, ...] = ()
    problem: str = "single_label"
    pooling: str = "mean"
    normalize: bool = False
    doc_stride: int = 128
    max_answer_tokens: int = 30
    no_answer: bool = False

    @property
    def outputs(self) -> int:
        """Columns of the head's output; 0 for embeddings, which have no head."""
        return {"span-qa": 2, "embedding": 0}.get(self.kind, len(self.labels))

    @property
    def per_token(self) -> bool:
        """Whether the head gives a row per token, or one per sequence."""
        return self.kind in ("span-qa", "token-classification")

    @property
    def has_pooler(self) -> bool:
        """Whether a dense + tanh layer on the CLS row stands before the head."""
        return self.kind == "sequence-classification"

    def to_json(self) -> dict[str, Any]:
        common = {"kind": self.kind, "max_length": self.max_length, "keep_cls": self.keep_cls}
        if self.kind == "span-qa":
            windows = {"doc_stride": self.doc_stride, "max_answer_tokens": self.max_answer_tokens}
            return {**common, **windows, **({"no_answer": True} if self.no_answer else {})}
        if self.kind == "embedding":
            return {**common, "pooling": self.pooling, "normalize": self.normalize}
        if self.kind == "token-classification":
            return {**common, "labels": list(self.labels)}
        return {**common, "pooler": "dense_tanh", "labels": list(self.labels), "problem": self.problem}


def encoder_spec(config: dict[str, Any]) -> EncoderSpec:
    """Reads the encoder's shape from a Hugging Face config.

    Raises:
        UnsupportedError: the architecture is outside what the kernels compute.
        InputError: the config lacks a key or holds the wrong type.
    """
    model_type = config.get("model_type")
    family = MODEL_TYPES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedError(
            f"config.json: model_type is {model_type!r}; supported are {', '.join(sorted(MODEL_TYPES))}. "
            "Convert a BERT-type or RoBERTa-type encoder"
        )
    _refuse(config, "hidden_act", ("gelu",), "gelu", "fine-tune a checkpoint with erf-GELU (hidden_act 'gelu')")
    _refuse(config, "position_embedding_type", ("absolute", None), "absolute", "use absolute positions")
    for flag in ("is_decoder", "add_cross_attention"):
        _refuse(config, flag, (False, None), False, "convert an encoder, not a decoder")
    _refuse(config, "pruned_heads", ({}, [], None), None, "save the checkpoint with every head in place")

    # RoBERTa numbers its positions from pad id + 1, so the table's first rows never serve a token.
    offset = _integer(config, "pad_token_id", 0) + 1 if family == "roberta" else 0
    spec = EncoderSpec(
        layers=_integer(config, "num_hidden_layers", 1),
        hidden=_integer(config, "hidden_size", 1),
        heads=_integer(config, "num_attention_heads", 1),
        intermediate=_integer(config, "intermediate_size", 1),
        vocab_size=_integer(config, "vocab_size", 1),
        max_positions=_integer(config, "max_position_embeddings", 1) - offset,
        type_vocab_size=_integer(config, "type_vocab_size", 1),
        norm_eps=_positive(config, "layer_norm_eps"),
        position_offset=offset,
        family=family,
    )
    _check_limits(spec)
    return spec


def task_spec(
    config: dict[str, Any],
    encoder: EncoderSpec,
    *,
    task: str | None = None,
    max_length: int | None = None,
    sentence: SentenceSpec | None = None,
    tokenizer_limit: int | None = None,
) -> TaskSpec:
    """Reads what the model is for.

    Args:
        config: the Hugging Face config.
        encoder: its encoder, for the number of positions.
        task: one of :data:`TASK_KINDS`; None reads it from ``architectures``.
        max_length: tokens a text is cut at (special tokens included); None takes the checkpoint's own limit.
        sentence: pooling read from a sentence-transformers folder, if it is one.
        tokenizer_limit: ``model_max_length`` of the tokenizer.

    Raises:
        InputError: the task is unknown, cannot be told, or ``max_length`` is out of range.
    """
    kind = task or _task_of(config, sentence)
    if kind not in TASK_KINDS:
        raise InputError(f"task is {kind!r}; it must be one of {', '.join(TASK_KINDS)}")
    limit = min(encoder.max_positions, KERNEL_TOKENS)
    if max_length is None:
        asked = (sentence.max_length if sentence else None) or tokenizer_limit or limit
        max_length = min(384 if kind == "span-qa" else asked, limit)
    if not 4 <= max_length <= limit:
        raise InputError(f"max_length is {max_length}; it must be between 4 and {limit} for this checkpoint")

    if kind == "span-qa":
        # Windows must advance: the stride is the overlap, and a short window cannot overlap by 128 tokens.
        return TaskSpec(kind, max_length, doc_stride=min(128, max_length // 3))
    if kind == "embedding":
        pooling = sentence or SentenceSpec(pooling="mean", normalize=False, max_length=None)
        return TaskSpec(kind, max_length, pooling=pooling.pooling, normalize=pooling.normalize)
    labels = _labels(config)
    if kind == "token-classification":
        return TaskSpec(kind, max_length, labels=labels)
    return TaskSpec(kind, max_length, labels=labels, problem=_problem(config, labels))


@dataclass(frozen=True)
class SentenceSpec:
    """How a sentence-transformers folder pools token states into one vector."""

    pooling: str
    """``mean`` or ``cls``."""
    normalize: bool
    max_length: int | None


def sentence_spec(
    modules: list[dict[str, Any]], pooling: dict[str, Any], transformer: dict[str, Any]
) -> SentenceSpec:
    """Reads a sentence-transformers folder's ``modules.json``, pooling config and transformer config.

    Raises:
        UnsupportedError: a module or pooling mode that the engine has no head for.
    """
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedError(
            f"modules.json: modules are {' > '.join(kinds) or 'none'}; supported is Transformer > Pooling "
            "[> Normalize]. Merge or remove the other modules before converting"
        )
    modes = {key: value for key, value in pooling.items() if key.startswith("pooling_mode")}
    on = sorted(key.removeprefix("pooling_mode_") for key, value in modes.items() if value is True)
    if isinstance(modes.get("pooling_mode"), str):
        on = [modes["pooling_mode"]]
    names = {"mean_tokens": "mean", "cls_token": "cls", "mean": "mean", "cls": "cls"}
    if len(on) != 1 or on[0] not in names:
        raise UnsupportedError(
            f"pooling config: modes {on or 'none'}; supported is exactly one of mean or CLS. "
            "Retrain the sentence model with one of them"
        )
    limit = transformer.get("max_seq_length")
    return SentenceSpec(names[on[0]], "Normalize" in kinds, limit if isinstance(limit, int) else None)


def _task_of(config: dict[str, Any], sentence: SentenceSpec | None) -> str:
    if sentence is not None:
        return "embedding"
    architecture = str((config.get("architectures") or [""])[0])
    for suffix, kind in TASK_OF_ARCHITECTURE.items():
        if architecture.endswith(suffix):
            return kind
    raise InputError(
        f"config.json: architectures[0] is {architecture!r}, which does not say what the model is for; "
        f"pass task= (one of {', '.join(TASK_KINDS)})"
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("id2label")
    if not names:
        # transformers leaves the two default labels out of the file.
        names = {str(i): f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    try:
        labels = {int(key): str(value) for key, value in names.items()}
        return tuple(labels[i] for i in range(len(labels)))
    except (AttributeError, KeyError, ValueError) as error:
        raise InputError("config.json: id2label must name the labels 0, 1, 2, ... without a gap") from error


def _problem(config: dict[str, Any], labels: tuple[str, ...]) -> str:
    problem = config.get("problem_type")
    known = {
        None: "regression" if len(labels) == 1 else "single_label",
        "regression": "regression",
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
    }
    if problem not in known:
        raise UnsupportedError(f"config.json: problem_type is {problem!r}; supported are {list(known)[1:]}")
    if known[problem] == "single_label" and len(labels) < 2:
        raise InputError(
            "config.json: problem_type is single_label_classification with one label, whose probability is "
            "always 1; make it regression or multi_label_classification"
        )
    return known[problem]


def _check_limits(spec: EncoderSpec) -> None:
    """The limits of docs/file-format.md, config.json."""

    def refuse(what: str, value: object, limit: str) -> None:
        raise UnsupportedError(f"config.json: {what} is {value}; the kernels take {limit}. Use a model within it")

    if spec.layers > 64:
        refuse("num_hidden_layers", spec.layers, "1 to 64")
    if spec.hidden % 64 or spec.hidden > 4096:
        refuse("hidden_size", spec.hidden, "a multiple of 64 up to 4096")
    if spec.hidden % spec.heads or spec.head_dim not in (32, 64):
        refuse("hidden_size / num_attention_heads", f"{spec.hidden} / {spec.heads}", "a head size of 32 or 64")
    if spec.intermediate % 64 or spec.intermediate > 16384:
        refuse("intermediate_size", spec.intermediate, "a multiple of 64 up to 16384")
    if not 1 <= spec.max_positions <= 4096:
        refuse("max_position_embeddings", spec.max_positions + spec.position_offset, "up to 4096 positions")


def _refuse(config: dict[str, Any], key: str, accepted: tuple, default: Any, remedy: str) -> None:
    value = config.get(key, default)
    if value not in accepted:
        raise UnsupportedError(f"config.json: {key} is {value!r}; supported is {accepted[0]!r}. Remedy: {remedy}")


def _integer(config: dict[str, Any], key: str, least: int) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"config.json: {key} is {value!r}; it must be an integer of at least {least}")
    return value


def _positive(config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InputError(f"config.json: {key} is {value!r}; it must be a number between 0 and 1")
    return float(value)
