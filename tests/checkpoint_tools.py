"""Tiny random checkpoints as transformers saves them, with a tokenizer of one word per id. Needs torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

VOCAB = 100
SHAPE = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=128,
)
BERT = dict(**SHAPE, max_position_embeddings=64, type_vocab_size=2)
ROBERTA = dict(
    **SHAPE, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2
)
SETTINGS = {"Bert": BERT, "Roberta": ROBERTA, "Electra": BERT}
HEADS = {
    "span-qa": ("ForQuestionAnswering", {}),
    "sequence-classification": ("ForSequenceClassification", {"num_labels": 3}),
    "token-classification": ("ForTokenClassification", {"num_labels": 5}),
    "embedding": ("Model", {}),
}
FLOAT32 = dict(rtol=0, atol=2e-5)
"""States are of order 1 and pass some 30 float32 roundings of 6e-8; this leaves room for summation order."""


def save_checkpoint(folder: Path, family: str, kind: str, **changes) -> Path:
    """A tiny random checkpoint, as transformers saves it, with a tokenizer of one word per id."""
    suffix, extra = HEADS[kind]
    settings = {**SETTINGS[family], **extra, **changes}
    if family == "Electra":
        settings.setdefault("embedding_size", settings["hidden_size"])
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}{suffix}")(config).eval()
    with torch.no_grad():  # random biases and norms too: zeros and ones would hide a wrong name
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    start, end = ("<s>", "</s>") if family == "Roberta" else ("[CLS]", "[SEP]")
    ids = {start: 0, end: 2, "pad": 1, "unk": 3} | {f"w{i}": i for i in range(4, VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="unk"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing((end, 2), (start, 0))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def add_sentence_layout(folder: Path, *, mode: str = "mean_tokens", modules=("Pooling", "Normalize")) -> Path:
    names = ["Transformer", *modules]
    listing = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{n}" if i else "",
            "type": f"sentence_transformers.models.{n}",
        }
        for i, n in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {f"pooling_mode_{m}": m == mode for m in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32}))
    return folder


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(4, VOCAB, shape, generator=torch.Generator().manual_seed(seed))
