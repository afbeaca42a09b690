"""From a checkpoint's tokenizer files to the package's tokenizer: the same ids as transformers' own tokenizer.

transformers builds the tokenizer, from whichever files there are, and its tokenizer.json is stored. What that
cannot express becomes a :class:`~qla_runtime.texts.tokenizer.TextRules`. Both together are then compared with
transformers over :data:`PROBES`. Without transformers (training does not need it) :mod:`.plain_tokenizer` follows
the same rules for a folder with a tokenizer.json.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qla_runtime.checkpoints.json_files import first_line
from qla_runtime.checkpoints.plain_tokenizer import (
    BuiltTokenizer,
    check_side,
    fits_class,
    gives_types,
    model_type,
    plain_tokenizer,
    tokenizer_class,
)
from qla_runtime.checkpoints.transformer_settings import TransformerSettings
from qla_runtime.errors import InputError, PackageError, UnsupportedError
from qla_runtime.ragged import Ragged
from qla_runtime.texts.text_encoder import TextEncoder
from qla_runtime.texts.tokenizer import TextRules, open_tokenizer

SENTENCEPIECE_FILES = ("sentencepiece.bpe.model", "spiece.model", "tokenizer.model")
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", *SENTENCEPIECE_FILES)

PROBES = (
    "Paris is the capital of France.",
    "  white space \t around,\r\nand  inside   it \u00a0\u3000 ",
    "CAF\u00c9 cr\u00e8me, na\u00efve \u0130stanbul, e\u0301galite\u0301, \u00dcBER stra\u00dfe",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\u3067\u3059\u3002\u5317\u4eac",
    "\ud55c\uad6d\uc5b4 \u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\U0001f600\U0001f469\u200d\U0001f4bb emoji\ufe0f \ufb01 \u2460 \u00bd \ufffd",
    "zero\u200bwidth\u00adhyphen bell\x07 nul\x00 \u2028line \ufeffmark",
    "x" * 150 + " " + "supercalifragilistic" * 8,
    "[CLS] a [SEP] b [MASK] c [PAD] [UNK] <s> d </s> <mask> e <pad> <unk>",
    "it's can't we'll 3.14 1,000 don't-know e-mail@example.com https://x.org/?a=b#c",
    "word " * 60,
)
"""Texts that tokenizers disagree about: white space, case, accents, scripts, control and special tokens."""

_SHORT = 16  # tokens at which the probes are cut, so that the side and the strategy show


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A checkpoint's tokenizer, ready for a package."""

    json: str
    """tokenizer.json, truncation and padding off."""
    rules: TextRules
    limit: int | None
    """Tokens that a text is cut at by default; None where the checkpoint does not say."""


def read_tokenizer(
    folder: Path, config: Mapping[str, Any], settings: TransformerSettings | None = None
) -> CheckpointTokenizer:
    """Reads a checkpoint's tokenizer.

    Args:
        folder: holds the tokenizer's files.
        config: the checkpoint's config.json; ``model_type``, ``tokenizer_class`` and ``vocab_size`` count.
        settings: of sentence-transformers, where the checkpoint has them.

    Raises:
        InputError: there is no tokenizer, its files are damaged, or it knows more tokens than the model.
        UnsupportedError: the tokenizer has no tokenizer.json form, or a package that it needs is missing.
    """
    settings = settings or TransformerSettings()
    _require_vocabulary(folder)
    with_transformers = _installed("transformers")
    loaded = _by_transformers(folder, config, settings.tokenizer_arguments) if with_transformers else None
    built = plain_tokenizer(folder, config, settings.tokenizer_arguments) if loaded is None else _built(loaded)
    vocab_size = config["vocab_size"]
    content = json.loads(built.tokenizer.to_str())
    # Texts are cut by the engine, which reports it; padding never exists. Dropout is a means of training.
    content["truncation"] = content["padding"] = None
    if content["model"].get("dropout"):
        content["model"]["dropout"] = None
    # The model has no embedding for the special tokens that a class added on its own, such as <mask>.
    content["added_tokens"] = [
        token
        for token in content["added_tokens"]
        if token["id"] < vocab_size or token["content"] not in built.named
    ]
    if settings.lower_case:
        _lower_case_first(content)
    limit = built.limit if isinstance(built.limit, int) else None
    made = CheckpointTokenizer(
        json.dumps(content, ensure_ascii=False, separators=(",", ":")), built.rules, settings.max_length or limit
    )
    _check_size(made.json, vocab_size)
    _compare(made, vocab_size, loaded)
    return made


def first_token(content: str, rules: TextRules) -> int | None:
    """The id of the token that stands before every text, such as [CLS]; None where there is none.

    Args:
        content: tokenizer.json.
        rules: what it cannot say.
    """
    tokenizer = open_tokenizer(content, rules)
    first = {tuple(tokenizer.encode(text).ids[:1]) for text in ("", *PROBES)}
    return next(iter(first))[0] if len(first) == 1 and first != {()} else None


def _require_vocabulary(folder: Path) -> None:
    there = [name for name in VOCABULARY_FILES if (folder / name).is_file()]
    if not there:
        raise InputError(
            f"{folder.name} holds no tokenizer: none of {', '.join(VOCABULARY_FILES)}. Save the one that the "
            "model was trained with beside the weights, with transformers: AutoTokenizer.from_pretrained(name)"
            ".save_pretrained(folder)"
        )
    if there == ["vocab.json"] and not (folder / "merges.txt").is_file():
        raise InputError(f"{folder.name} holds vocab.json without merges.txt; copy merges.txt beside it, too")
    if set(there) <= set(SENTENCEPIECE_FILES):
        missing = [package for package, module in _FOR_SENTENCEPIECE.items() if not _installed(module)]
        if missing:
            raise UnsupportedError(
                f"{folder.name}: its tokenizer is {there[0]}, a SentencePiece model, and reading that needs "
                f"{' and '.join(missing)}. Run: pip install {' '.join(missing)}"
            )


_FOR_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent package
        return False


def _by_transformers(folder: Path, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    """transformers' own tokenizer of the folder.

    transformers rebuilds the tokenizer in the form of its class. Where tokenizer.json holds another kind of model
    (no tokenizer_class is given, and the one that goes with the model type is wrong), nothing sensible comes out,
    so there tokenizer.json counts as it stands.
    """
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    name = tokenizer_class(folder, config)
    try:
        with _quiet(logging):
            if fits_class(folder, name):
                known = AutoConfig.for_model(model_type(config), tokenizer_class=config.get("tokenizer_class"))
                loaded = AutoTokenizer.from_pretrained(
                    str(folder), config=known, local_files_only=True, trust_remote_code=False, **arguments
                )
            else:
                loaded = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True, **arguments)
                if "model_input_names" not in loaded.init_kwargs and gives_types(name):
                    loaded.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    except InputError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise InputError(
            f"{folder.name}: transformers cannot make a tokenizer from its files: {first_line(error)}. Save the "
            "tokenizer again with save_pretrained()"
        ) from error
    if getattr(loaded, "backend_tokenizer", None) is None:
        raise UnsupportedError(
            f"{folder.name}: its tokenizer, {type(loaded).__name__}, is Python code without a tokenizer.json "
            "form. Use a checkpoint with a fast tokenizer"
        )
    files = [file for file in loaded.vocab_files_names.values() if (folder / file).is_file()]
    if not files:
        raise InputError(
            f"{folder.name} holds none of the files of its tokenizer, {type(loaded).__name__}: "
            f"{', '.join(loaded.vocab_files_names.values())}. Set tokenizer_class in tokenizer_config.json, or "
            "save the tokenizer again with save_pretrained()"
        )
    if getattr(loaded.backend_tokenizer.model, "dropout", None):
        loaded.backend_tokenizer.model.dropout = None
    return loaded


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keeps transformers' advice about its own files out of the caller's output."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _built(loaded: Any) -> BuiltTokenizer:
    """What a tokenizer of transformers does, in parts."""
    return BuiltTokenizer(
        loaded.backend_tokenizer,
        TextRules(
            truncation_side=check_side(loaded.truncation_side),
            token_types="token_type_ids" in loaded.model_input_names,
            split_special_tokens=bool(loaded.split_special_tokens),
        ),
        frozenset(token for token in loaded.special_tokens_map.values() if isinstance(token, str)),
        loaded.model_max_length,
    )


def _lower_case_first(content: dict[str, Any]) -> None:
    """Puts a lower-caser before the normalizer, unless it has one, as sentence-transformers does."""
    own = content.get("normalizer")
    steps = own["normalizers"] if own and own["type"] == "Sequence" else [own] if own else []
    if all(step["type"] != "Lowercase" for step in steps):
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}


def _check_size(content: str, vocab_size: int) -> None:
    from tokenizers import Tokenizer

    try:
        largest = max(Tokenizer.from_str(content).get_vocab().values(), default=0)
    except Exception as error:  # the Rust side raises Exception itself
        raise InputError(f"tokenizer.json: {first_line(error)}") from error
    if largest >= vocab_size:
        raise InputError(
            f"tokenizer.json knows token id {largest}, but config.json's vocab_size is {vocab_size}; "
            "resize the checkpoint's embeddings or give the tokenizer it was trained with"
        )


def _compare(made: CheckpointTokenizer, vocab_size: int, loaded: Any) -> None:
    """Tokenizes the probes as the engine will, and compares with transformers where it is there."""
    if loaded is not None:
        # What sentence-transformers changes, it changes in this object, too.
        from tokenizers import Tokenizer

        loaded.backend_tokenizer.normalizer = Tokenizer.from_str(made.json).normalizer
    pairs = list(zip(PROBES, reversed(PROBES), strict=True))
    for length in (_SHORT, 512):
        encoder = TextEncoder(
            made.json.encode,
            length,
            cut=True,
            vocab_size=vocab_size,
            type_vocab_size=1 << 16,
            rules=made.rules,
        )
        for texts in (list(PROBES), pairs):
            try:
                batch = encoder.encode(texts).batch
            except PackageError as error:
                raise InputError(str(error)) from error
            if loaded is not None:
                _same(batch, loaded, texts, length, vocab_size)


def _same(batch: Ragged, loaded: Any, texts: list[Any], length: int, vocab_size: int) -> None:
    paired = [list(column) for column in zip(*texts, strict=True)] if isinstance(texts[0], tuple) else [texts]
    theirs = loaded(*paired, truncation=True, max_length=length)
    types = theirs.get("token_type_ids") or [[0] * len(row) for row in theirs["input_ids"]]
    for i, text in enumerate(texts):
        if max(theirs["input_ids"][i]) >= vocab_size:
            continue  # a special token without an embedding: the float model fails on this text
        rows = slice(*batch.offsets[i : i + 2])
        ours = (
            batch.ids[rows].tolist(),
            [0] * len(types[i]) if batch.type_ids is None else batch.type_ids[rows].tolist(),
        )
        if ours != (theirs["input_ids"][i], types[i]):
            raise UnsupportedError(
                f"tokenizer: {type(loaded).__name__} of transformers gives other tokens for {text!r} than its own "
                "tokenizer.json, which is what the engine runs. Use a checkpoint with a plain fast tokenizer"
            )
