"""A checkpoint's tokenizer from tokenizer.json and tokenizer_config.json, without transformers.

transformers 5 takes the vocabulary from tokenizer.json and builds everything around it anew, in the form of the
tokenizer's class and by tokenizer_config.json. The classes of the supported model types are rebuilt here in the
same way. Any other class takes tokenizer.json as it stands, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from qla_runtime.checkpoints.json_files import optional_object
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.texts.tokenizer import SIDES, TextRules

Json = dict[str, Any]

_CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
_GENERIC = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "")
_ARCHITECTURES = {"XLMRoberta": "xlm-roberta", "Roberta": "roberta", "Camembert": "camembert"}
_BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


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
    given = config.get("model_type")
    if isinstance(given, str) and given:
        return given
    architecture = str((config.get("architectures") or [""])[0])
    return next((kind for prefix, kind in _ARCHITECTURES.items() if architecture.startswith(prefix)), "bert")


def tokenizer_class(folder: Path, config: Mapping[str, Any]) -> str:
    """The class that transformers gives a checkpoint's tokenizer, without ``Fast``."""
    declared = optional_object(folder / "tokenizer_config.json").get("tokenizer_class") or config.get(
        "tokenizer_class"
    )
    name = str(declared or _CLASS_OF_MODEL.get(model_type(config), ""))
    return name if name in _GENERIC else name.removesuffix("Fast")


def fits_class(folder: Path, name: str) -> bool:
    """Whether tokenizer.json, where there is one, holds the kind of model that the class is made of.

    Raises:
        InputError: it is damaged.
    """
    if not (folder / "tokenizer.json").is_file():
        return True
    kind = _model_kind(optional_object(folder / "tokenizer.json"))
    return name not in _CLASSES or kind == _CLASSES[name].model


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
    if not (folder / "tokenizer.json").is_file() or name not in {*_CLASSES, *_GENERIC}:
        raise UnsupportedError(
            f"{folder.name}: reading its tokenizer, {name}, needs transformers; without it only a tokenizer.json "
            f"of {', '.join(_CLASSES)} or {_GENERIC[0]} is read. Run: pip install 'transformers>=5,<6'"
        )
    fits = fits_class(folder, name)
    kind = _CLASSES[name] if name in _CLASSES and fits else None
    content = optional_object(folder / "tokenizer.json")
    settings = optional_object(folder / "tokenizer_config.json") | arguments
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


def _build(kind: _Class | None, content: Json, settings: Json) -> tuple[Tokenizer, frozenset[str]]:
    """The tokenizer of a class, or of tokenizer.json as it stands, with the tokens that other files add; and its
    named special tokens."""
    tokens: Json = dict(kind.tokens) if kind else {}
    tokens |= {key: _added(settings[key]) for key in _ROBERTA_TOKENS if settings.get(key)}
    listed = [entry for _, entry in sorted(settings.get("added_tokens_decoder", {}).items(), key=_by_id)]
    if kind and listed:
        content["added_tokens"] = []
    tokenizer = kind.build(content, settings, tokens) if kind else Tokenizer.from_str(json.dumps(content))
    tokenizer.add_tokens([_added(entry) for entry in listed])
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    special = [*tokens.values(), *map(_added, extra)]
    tokenizer.add_special_tokens([token for token in special if not _has(tokenizer, token)])
    return tokenizer, frozenset(_text(tokens, key) for key in tokens)


def _by_id(entry: tuple[str, Any]) -> int:
    return int(entry[0])


def gives_types(name: str) -> bool:
    """Whether a tokenizer of this class gives token types where ``model_input_names`` does not say."""
    return name in _CLASSES and _CLASSES[name].token_types


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


def _text(tokens: Json, key: str) -> str:
    return str(getattr(tokens[key], "content", tokens[key]))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise InputError(f"tokenizer.json: its vocabulary lacks {token!r}, which begins or ends every text")
    return found


def _bert(content: Json, settings: Json, tokens: Json) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.model.unk_token = _text(tokens, "unk_token")
    start, end = _text(tokens, "cls_token"), _text(tokens, "sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(start, _id(tokenizer, start)), (end, _id(tokenizer, end))],
    )
    return tokenizer


def _roberta(content: Json, settings: Json, tokens: Json) -> Tokenizer:
    content["model"] |= {"dropout": None, "fuse_unk": False, "unk_token": None}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    space, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    start, end = _text(tokens, "cls_token"), _text(tokens, "sep_token")
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, _id(tokenizer, end)), (start, _id(tokenizer, start)), trim, space
    )
    return tokenizer


def _sentencepiece(content: Json, settings: Json, tokens: Json) -> Tokenizer:
    own = content.get("normalizer") or {}
    steps = own.get("normalizers", [own])
    content["normalizer"] = next((step for step in steps if step.get("type") == "Precompiled"), None)
    pieces = [piece for piece, _ in content["model"]["vocab"]]
    unknown = _text(tokens, "unk_token")
    content["model"] |= {"unk_id": pieces.index(unknown) if unknown in pieces else 0, "byte_fallback": False}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)]
    )
    start, end = _text(tokens, "bos_token"), _text(tokens, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[start, "$A", end],
        pair=[start, "$A", end, end, "$B", end],
        special_tokens=[(start, _id(tokenizer, start)), (end, _id(tokenizer, end))],
    )
    return tokenizer


class _Class(NamedTuple):
    model: str  # of tokenizer.json
    tokens: dict[str, str]  # that it has without being told
    token_types: bool
    build: Callable[[Json, Json, Json], Tokenizer]


_CLASSES = {
    "BertTokenizer": _Class("WordPiece", _BERT_TOKENS, True, _bert),
    "RobertaTokenizer": _Class("BPE", _ROBERTA_TOKENS, False, _roberta),
    "XLMRobertaTokenizer": _Class("Unigram", _ROBERTA_TOKENS, False, _sentencepiece),
    "CamembertTokenizer": _Class("Unigram", _ROBERTA_TOKENS, False, _sentencepiece),
}
