"""The tokenizer classes of the families, rebuilt as transformers 5 builds them.

transformers takes the vocabulary from tokenizer.json and makes everything around it anew, in the form of the
tokenizer's class and by tokenizer_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from qla_runtime.errors import InputError

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerClass:
    """One tokenizer class of transformers."""

    name: str
    """Without ``Fast``."""
    model: str
    """The kind of model in its tokenizer.json."""
    tokens: dict[str, str]
    """Special tokens that it has without being told."""
    token_types: bool
    """Whether it gives token types where ``model_input_names`` does not say."""
    build: Callable[[Json, Json, Json], Tokenizer]
    """From the content of tokenizer.json, that of tokenizer_config.json, and the special tokens."""


def _word_piece(content: Json, settings: Json, tokens: Json) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.model.unk_token = token_text(tokens, "unk_token")
    start, end = token_text(tokens, "cls_token"), token_text(tokens, "sep_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(start, _id(tokenizer, start)), (end, _id(tokenizer, end))],
    )
    return tokenizer


def _byte_level(content: Json, settings: Json, tokens: Json) -> Tokenizer:
    content["model"] |= {"dropout": None, "fuse_unk": False, "unk_token": None}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    space, trim = settings.get("add_prefix_space", False), settings.get("trim_offsets", True)
    start, end = token_text(tokens, "cls_token"), token_text(tokens, "sep_token")
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
    unknown = token_text(tokens, "unk_token")
    content["model"] |= {"unk_id": pieces.index(unknown) if unknown in pieces else 0, "byte_fallback": False}
    tokenizer = Tokenizer.from_str(json.dumps(content))
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme)]
    )
    start, end = token_text(tokens, "bos_token"), token_text(tokens, "eos_token")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[start, "$A", end],
        pair=[start, "$A", end, end, "$B", end],
        special_tokens=[(start, _id(tokenizer, start)), (end, _id(tokenizer, end))],
    )
    return tokenizer


def token_text(tokens: Json, key: str) -> str:
    return str(getattr(tokens[key], "content", tokens[key]))


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise InputError(f"tokenizer.json: its vocabulary lacks {token!r}, which begins or ends every text")
    return found


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

WORD_PIECE = TokenizerClass("BertTokenizer", "WordPiece", _BERT_TOKENS, True, _word_piece)
BYTE_LEVEL = TokenizerClass("RobertaTokenizer", "BPE", _ROBERTA_TOKENS, False, _byte_level)
XLM_ROBERTA_PIECES = TokenizerClass("XLMRobertaTokenizer", "Unigram", _ROBERTA_TOKENS, False, _sentencepiece)
CAMEMBERT_PIECES = TokenizerClass("CamembertTokenizer", "Unigram", _ROBERTA_TOKENS, False, _sentencepiece)
