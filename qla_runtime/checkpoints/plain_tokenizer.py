"""A checkpoint's tokenizer from tokenizer.json and tokenizer_config.json, without transformers.

transformers 5 takes the vocabulary from tokenizer.json and builds everything around it anew, in the form of the
tokenizer's class and by tokenizer_config.json. The classes of the families are rebuilt in the same way
(:mod:`qla_runtime.families.tokenizers`). Any other class takes tokenizer.json as it stands, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from qla_runtime.checkpoints.config_keys import infer_model_type
from qla_runtime.checkpoints.json_files import optional_object
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.families import FAMILIES
from qla_runtime.families.tokenizers import Json, TokenizerClass, token_text
from qla_runtime.texts.tokenizer import SIDES, TextRules

CLASSES: dict[str, TokenizerClass] = {family.tokenizer.name: family.tokenizer for family in FAMILIES.values()}
_TOKEN_KEYS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GENERIC = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "")


@dataclass(frozen=True)
class BuiltTokenizer:
    """A tokenizer as transformers would make it, before it becomes a package's."""

    tokenizer: Tokenizer
    rules: TextRules
    named: frozenset[str]
    """Its special tokens, such as ``[CLS]``; a class adds those of its own that the files lack."""
    limit: Any
    """``model_max_length`` as found."""


def model_type(config: Mapping[str, Any]) -> str:
    """``model_type`` of a config.json. Old ones have none, and there the architecture's name tells it."""
    found = infer_model_type(config, ())
    return found if isinstance(found, str) and found else "bert"


def tokenizer_class(folder: Path, config: Mapping[str, Any]) -> str:
    """The class that transformers gives a checkpoint's tokenizer, without ``Fast``."""
    declared = optional_object(folder / "tokenizer_config.json").get("tokenizer_class") or config.get(
        "tokenizer_class"
    )
    family = FAMILIES.get(model_type(config))
    name = str(declared or (family.tokenizer.name if family else ""))
    return name if name in _GENERIC else name.removesuffix("Fast")


def fits_class(folder: Path, name: str) -> bool:
    """Whether tokenizer.json, where there is one, holds the kind of model that the class is made of.

    Raises:
        InputError: it is damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        return True
    kind = _model_kind(optional_object(folder / "tokenizer.json"))
    return name not in CLASSES or kind == CLASSES[name].model


def plain_tokenizer(folder: Path, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> BuiltTokenizer:
    """The tokenizer as transformers makes it.

    Args:
        folder: holds the tokenizer's files.
        config: the checkpoint's config.json.
        arguments: what overrides tokenizer_config.json.

    Raises:
        InputError: a file is damaged.
        UnsupportedError: there is no tokenizer.json.
    """
    name = tokenizer_class(folder, config)
    if not (folder / "tokenizer.json").is_file() or name not in {*CLASSES, *_GENERIC}:
        raise UnsupportedError(
            f"{folder.name}: reading its tokenizer, {name}, needs transformers; without it only a tokenizer.json "
            f"of {', '.join(CLASSES)} or {_GENERIC[0]} is read. Run: pip install 'transformers>=5,<6'"
        )
    fits = fits_class(folder, name)
    kind = CLASSES[name] if name in CLASSES and fits else None
    content = optional_object(folder / "tokenizer.json")
    settings = {**optional_object(folder / "tokenizer_config.json"), **arguments}
    if not settings.get("added_tokens_decoder"):
        settings |= optional_object(folder / "special_tokens_map.json")
    try:
        tokenizer, named = _build(kind, content, settings)
        rules = _rules(content, settings, token_types=gives_types(name))
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise InputError(f"{folder.name}: its tokenizer's files do not fit together: {error}") from error
    return BuiltTokenizer(tokenizer, rules, named, settings.get("model_max_length", settings.get("max_len")))


def _build(kind: TokenizerClass | None, content: Json, settings: Json) -> tuple[Tokenizer, frozenset[str]]:
    """The tokenizer of a class, or of tokenizer.json as it stands, with the tokens that other files add; and its
    named special tokens."""
    tokens: Json = dict(kind.tokens) if kind else {}
    tokens |= {key: _added(settings[key]) for key in _TOKEN_KEYS if settings.get(key)}
    listed = [entry for _, entry in sorted(settings.get("added_tokens_decoder", {}).items(), key=_by_id)]
    if kind and listed:
        content["added_tokens"] = []
    tokenizer = kind.build(content, settings, tokens) if kind else Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([_added(entry) for entry in listed])
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    special = [*tokens.values(), *map(_added, extra)]
    tokenizer.add_special_tokens([token for token in special if not _has(tokenizer, token)])
    return tokenizer, frozenset(token_text(tokens, key) for key in tokens)


def _by_id(entry: tuple[str, Any]) -> int:
    return int(entry[0])


def gives_types(name: str) -> bool:
    """Whether a tokenizer of this class gives token types where ``model_input_names`` does not say."""
    return name in CLASSES and CLASSES[name].token_types


def check_side(side: Any) -> str:
    """``truncation_side``, which must be one of two words."""
    if side not in SIDES:
        raise InputError(
            f"tokenizer_config.json: truncation_side is {side!r}; it must be one of {', '.join(SIDES)}"
        )
    return side


def _rules(content: Json, settings: Json, *, token_types: bool) -> TextRules:
    cut = content.get("truncation") or {}
    inputs = settings.get("model_input_names")
    return TextRules(
        truncation_side=check_side(settings.get("truncation_side", str(cut.get("direction", "right")).lower())),
        token_types=token_types if inputs is None else "token_type_ids" in inputs,
        split_special_tokens=bool(settings.get("split_special_tokens", False)),
    )


def _model_kind(content: Json) -> str:
    model = content.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), (dict, list)):
        raise InputError("tokenizer.json: model must be an object with a vocab; save the tokenizer again")
    if isinstance(model.get("type"), str):
        return model["type"]
    # Old files do not name the kind.
    if isinstance(model["vocab"], list):
        return "Unigram"
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def _added(entry: Any) -> AddedToken:
    if isinstance(entry, dict):
        fields = {key: value for key, value in entry.items() if key != "__type"}
        return AddedToken(**{"special": True, "normalized": False, **fields})
    return AddedToken(str(entry), special=True, normalized=False)


def _has(tokenizer: Tokenizer, token: AddedToken | str) -> bool:
    text = str(getattr(token, "content", token))
    return any(added.content == text for added in tokenizer.get_added_tokens_decoder().values())
