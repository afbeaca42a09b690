"""How sentence-transformers feeds a checkpoint's transformer: ``sentence_bert_config.json`` and its siblings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qla_runtime.checkpoints.json_files import optional_object
from qla_runtime.errors import InputError, UnsupportedError

FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""The names of the file, as sentence-transformers tries them: the first that holds a key counts."""

_TOKENIZER_KEYS = {
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "truncation_side",
    "padding_side",
    "model_max_length",
    "model_input_names",
    "split_special_tokens",
    "clean_up_tokenization_spaces",
    "use_fast",
}
"""Arguments of the tokenizer that the file may hold; others could name files outside the checkpoint."""

_OF_OTHER_MODELS = ("query_length", "document_length", "query_expansion")


@dataclass(frozen=True)
class TransformerSettings:
    """What the file says about texts."""

    max_length: int | None = None
    """Tokens that a text is cut at; None leaves it to the tokenizer."""
    lower_case: bool = False
    """Lower-case every text before the tokenizer's own normalization."""
    tokenizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What overrides tokenizer_config.json."""


def transformer_settings(folder: Path) -> TransformerSettings:
    """Reads the settings beside a sentence-transformers checkpoint's transformer.

    Args:
        folder: where the transformer's config.json lies.

    Raises:
        InputError: the file is no JSON object, or a value has the wrong type.
        UnsupportedError: the file asks for something that the engine does not do.
    """
    for name in FILES:
        content = optional_object(folder / name)
        if content:
            return _settings(name, content)
    return TransformerSettings()


def _settings(name: str, content: dict[str, Any]) -> TransformerSettings:
    for key in _OF_OTHER_MODELS:
        if content.get(key) is not None:
            raise UnsupportedError(
                f"{name}: {key} is {content[key]!r}; it belongs to multi-vector models, which give a vector per "
                "token. Convert a model with one vector per text"
            )
    arguments = _tokenizer_arguments(name, content)
    limit = _length(name, "max_seq_length", content.get("max_seq_length"))
    limit = _length(name, "model_max_length", arguments.pop("model_max_length", None)) or limit
    limit = _processing_length(name, content.get("processing_kwargs")) or limit
    lower_case = content.get("do_lower_case", False)
    if not isinstance(lower_case, bool) and lower_case is not None:
        raise InputError(f"{name}: do_lower_case is {lower_case!r}; it must be true or false")
    return TransformerSettings(limit, bool(lower_case), arguments)


def _tokenizer_arguments(name: str, content: dict[str, Any]) -> dict[str, Any]:
    key = "tokenizer_args" if "tokenizer_args" in content else "processor_kwargs"
    given = content.get(key) or {}
    if not isinstance(given, dict):
        raise InputError(f"{name}: {key} must be a JSON object, not a {type(given).__name__}")
    arguments = {k: v for k, v in given.items() if k != "trust_remote_code"}  # sentence-transformers drops it, too
    unknown = sorted(set(arguments) - _TOKENIZER_KEYS)
    if unknown:
        raise UnsupportedError(
            f"{name}: {key} holds {unknown[0]!r}; known are {', '.join(sorted(_TOKENIZER_KEYS))}. Save the "
            "tokenizer as it is meant to be with save_pretrained(), and drop the argument"
        )
    return arguments


def _processing_length(name: str, given: Any) -> int | None:
    """``max_length`` of ``processing_kwargs.text``, the only processing argument that changes tokens here."""
    given = given or {}
    text = given.get("text") or {} if isinstance(given, dict) else None
    if not isinstance(text, dict):
        raise InputError(f"{name}: processing_kwargs must be an object of objects")
    if text.get("truncation", True) not in (True, "longest_first"):
        raise UnsupportedError(
            f"{name}: processing_kwargs.text.truncation is {text['truncation']!r}; supported is 'longest_first'. "
            "Remove it"
        )
    unknown = sorted(set(text) - {"max_length", "truncation", "padding", "pad_to_multiple_of"})
    if unknown:
        raise UnsupportedError(
            f"{name}: processing_kwargs.text holds {unknown[0]!r}; supported is max_length. Remove it"
        )
    return _length(name, "processing_kwargs.text.max_length", text.get("max_length"))


def _length(name: str, key: str, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}: {key} is {value!r}; it must be an integer of at least 1")
    return value
