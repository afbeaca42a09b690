"""What a Hugging Face ``config.json`` asks for: the package's encoder and task, or a refusal that helps.

A refusal names the limit, the value met and the remedy, in the config's own words. No torch here: a checkpoint
that cannot be converted is refused in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qla_runtime.checkpoints.config_keys import (
    architecture,
    family_of,
    refuse_other_arithmetic,
    with_defaults,
)
from qla_runtime.checkpoints.pooling import SentenceSpec
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.families import Family
from qla_runtime.model import limits
from qla_runtime.model.spec import EncoderSpec, TaskSpec
from qla_runtime.task_kinds import TASK_KINDS

TASK_OF_ARCHITECTURE = {
    "ForQuestionAnswering": "span-qa",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
}
"""Suffix of ``architectures[0]`` -> task kind; a bare encoder embeds, if it says how it pools."""


def encoder_spec(config: dict[str, Any], *, max_length: int | None = None) -> EncoderSpec:
    """Reads the encoder's shape from a Hugging Face config.

    Keys that are missing or null have transformers' defaults. Where the checkpoint has more positions than the
    engine takes, the spec has as many as ``max_length`` asks for, or else as many as the engine takes.

    Args:
        config: the Hugging Face config.
        max_length: tokens that texts will be cut at, if that is known.

    Raises:
        UnsupportedError: the architecture is outside what the kernels compute.
        InputError: a key has a value of the wrong type.
    """
    config, family = with_defaults(config), family_of(config)
    refuse_other_arithmetic(config)
    family.refuse(config)
    offset = _integer(config, "pad_token_id", 0) + 1 if family.positions_after_padding else 0
    positions = position_rows(config) - offset
    if positions > limits.MAX_POSITIONS:
        asked = limits.MAX_POSITIONS if max_length is None else max(max_length, limits.MIN_LENGTH)
        positions = min(asked, limits.MAX_POSITIONS)
    spec = EncoderSpec(
        layers=_integer(config, "num_hidden_layers", 1),
        hidden=_integer(config, "hidden_size", 1),
        heads=_integer(config, "num_attention_heads", 1),
        intermediate=_integer(config, "intermediate_size", 1),
        vocab_size=_integer(config, "vocab_size", 1),
        max_positions=positions,
        type_vocab_size=_integer(config, "type_vocab_size", 1),
        norm_eps=_positive(config, "layer_norm_eps"),
        position_offset=offset,
    )
    _check_limits(spec)
    return spec


def position_rows(config: dict[str, Any]) -> int:
    """Rows of the checkpoint's position table, which may have more than the package."""
    return _integer(with_defaults(config), "max_position_embeddings", 1)


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
        UnsupportedError: the engine cannot compute the family's head for the task.
    """
    kind = task or _task_of(config, sentence)
    if kind not in TASK_KINDS:
        raise InputError(f"task is {kind!r}; it must be one of {', '.join(TASK_KINDS)}")
    head = _head(family_of(config), kind)
    limit = encoder.max_positions
    if max_length is None:
        asked = (sentence.max_length if sentence else None) or tokenizer_limit or limit
        max_length = min(384 if kind == "span-qa" else asked, limit)
    if not limits.MIN_LENGTH <= max_length <= limit:
        raise InputError(
            f"max_length is {max_length}; it must be between {limits.MIN_LENGTH} and {limit} for this checkpoint. "
            "Pass another (max_length=, --max-length)"
        )

    if kind == "span-qa":
        # Windows must advance: the stride is the overlap, and a short window cannot overlap by 128 tokens.
        return TaskSpec(
            kind,
            max_length,
            doc_stride=min(128, max_length // 3),
            max_answer_tokens=min(TaskSpec.max_answer_tokens, max_length),
        )
    if kind == "embedding":
        pooling = sentence or SentenceSpec(pooling="mean", normalize=False, max_length=None)
        return TaskSpec(kind, max_length, pooling=pooling.pooling, normalize=pooling.normalize)
    labels = label_names(config)
    if kind == "token-classification":
        return TaskSpec(kind, max_length, labels=labels)
    pooler = "dense_tanh" if "pooler" in head else "none"
    return TaskSpec(kind, max_length, labels=labels, pooler=pooler, problem=_problem(config, labels))


def _head(family: Family, kind: str) -> Mapping[str, str]:
    if kind not in family.heads:
        raise UnsupportedError(
            f"config.json: the head of {family.title} for {kind} has {family.other_heads[kind]}. Convert a "
            f"checkpoint of another family for this task, or this one for one of {', '.join(family.heads)} "
            "(task=, --task)"
        )
    return family.heads[kind]


def _task_of(config: dict[str, Any], sentence: SentenceSpec | None) -> str:
    if sentence is not None:
        return "embedding"
    kind = task_of_architecture(config)
    if kind is None:
        raise InputError(
            f"config.json: architectures[0] is {architecture(config)!r}, which does not say what the model is "
            f"for. Pass the task (task=, --task), one of {', '.join(TASK_KINDS)}"
        )
    return kind


def task_of_architecture(config: dict[str, Any]) -> str | None:
    """The task of the head that ``architectures[0]`` names; None for a bare encoder and for other heads."""
    name = architecture(config)
    return next((kind for suffix, kind in TASK_OF_ARCHITECTURE.items() if name.endswith(suffix)), None)


def label_names(config: dict[str, Any]) -> tuple[str, ...]:
    """The labels of a classification head, by index.

    Raises:
        InputError: ``id2label`` or ``num_labels`` is damaged.
        UnsupportedError: more labels, or longer names, than a package holds.
    """
    given, count = config.get("id2label"), config.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= limits.MAX_LABELS):
        raise InputError(f"config.json: num_labels is {str(count)[:40]}; it must be 1 to {limits.MAX_LABELS}")
    try:
        if not given or (count is not None and count != len(given)):
            # transformers leaves the two default labels out of the file, and prefers num_labels where they differ.
            given = {str(i): f"LABEL_{i}" for i in range(2 if count is None else count)}
        by_id = {int(key): str(value) for key, value in given.items()}
        labels = tuple(by_id[i] for i in range(len(given)))
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise InputError("config.json: id2label must name the labels 0, 1, 2, ... without a gap") from error
    limits.check_labels(labels)
    return labels


def _problem(config: dict[str, Any], labels: tuple[str, ...]) -> str:
    problem = config.get("problem_type")
    known = {
        None: "regression" if len(labels) == 1 else "single_label",
        "regression": "regression",
        "single_label_classification": "single_label",
        "multi_label_classification": "multi_label",
    }
    if not isinstance(problem, (str, type(None))) or problem not in known:
        raise UnsupportedError(f"config.json: problem_type is {problem!r}; supported are {list(known)[1:]}")
    if known[problem] == "single_label" and len(labels) < 2:
        raise InputError(
            "config.json: problem_type is single_label_classification with one label, whose probability is "
            "always 1; make it regression or multi_label_classification"
        )
    return known[problem]


def _check_limits(spec: EncoderSpec) -> None:
    """The limits of docs/file-format.md, config.json."""

    def check(what: str, value: object, good: bool, limit: str) -> None:
        if not good:
            shown = str(value)
            shown = shown if len(shown) <= 40 else shown[:37] + "..."
            raise UnsupportedError(
                f"config.json: {what} is {shown}; the kernels take {limit}. Use a model within it"
            )

    def multiple(what: str, value: int, most: int) -> None:
        check(what, value, value % 64 == 0 and value <= most, f"a multiple of 64 up to {most}")

    def at_most(what: str, value: int, most: int) -> None:
        check(what, value, value <= most, f"up to {most}")

    at_most("num_hidden_layers", spec.layers, limits.MAX_LAYERS)
    multiple("hidden_size", spec.hidden, limits.MAX_HIDDEN)
    multiple("intermediate_size", spec.intermediate, limits.MAX_INTERMEDIATE)
    check(
        "hidden_size / num_attention_heads",
        f"{spec.hidden} / {spec.heads}",
        spec.hidden % spec.heads == 0 and spec.head_dim in limits.HEAD_DIMS,
        f"a head size of {' or '.join(map(str, limits.HEAD_DIMS))}",
    )
    at_most("vocab_size", spec.vocab_size, limits.MAX_VOCAB)
    at_most("type_vocab_size", spec.type_vocab_size, limits.MAX_TYPES)
    at_most("pad_token_id + 1", spec.position_offset, limits.MAX_POSITIONS)
    check(
        "max_position_embeddings",
        spec.max_positions + spec.position_offset,
        spec.max_positions >= limits.MIN_LENGTH,
        f"at least {limits.MIN_LENGTH} positions"
        + (f" beside the {spec.position_offset} rows up to the pad token's" if spec.position_offset else ""),
    )


def _integer(config: dict[str, Any], key: str, least: int) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"config.json: {key} is {value!r}; it must be an integer of at least {least}")
    return value


def _positive(config: dict[str, Any], key: str) -> float:
    value = config.get(key)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
    # The kernels' floats: a smaller one is no normal float32.
    if not limits.SMALLEST_NORMAL <= number <= limits.MAX_NORM_EPS:
        raise InputError(
            f"config.json: {key} is {str(value)[:40]}; it must be a number above 0 and at most "
            f"{limits.MAX_NORM_EPS}"
        )
    return float(number)
