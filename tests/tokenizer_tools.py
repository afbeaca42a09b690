"""Checkpoint folders with tiny tokenizers of every kind, trained on the spot, and texts that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Paris is the capital of France, and London is the capital of England.",
    "The river runs through the old town; people walk along the river every day.",
    "naïve café crème über straße résumé, it's what we don't know",
    "東京 は 日本 の 首都 です 北京 中国",
    "1234567890 3.14 $ % & ( ) [ ] < > / \\ # @ ! ? : ; ' \" - _ = + * ~ ` ^ |",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
] * 4

TEXTS = [
    "Paris is the capital of France.",
    "paris",
    "PARIS IS BIG",
    " leading",
    "trailing ",
    "  both  ",
    "a  b   c",
    "tab\there",
    "line\nbreak",
    "crlf\r\nline",
    "no\u00a0break\u3000wide",
    "\u2028separator\u2029",
    "zero\u200bwidth",
    "soft\u00adhyphen",
    "bom\ufeffinside",
    "bell\x07 nul\x00 esc\x1b",
    "café",
    "cafe\u0301",
    "CAFÉ",
    "\u0130stanbul \u0131",
    "straße STRASSE",
    "\ufb01nancial \u2460 \u00bd \u2122",
    "東京は日本の首都です",
    "mixed 東京 and Paris",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "नमस्ते",
    "\U0001f600",
    "a\U0001f469\u200d\U0001f4bbb",
    "\u2764\ufe0f",
    "x" * 120,
    "supercalifragilisticexpialidocious",
    "it's can't we'll I'd",
    "don't-know e-mail@example.com",
    "https://x.org/?a=b&c#d",
    "3.14 1,000,000 -5 1e-9",
    "[CLS] a [SEP] b",
    "a[MASK]b [MASK] c",
    "<s> d </s> <mask> e <pad>",
    "[UNK] <unk> ##ing \u2581word \u0120word",
    "<ent> x <ent>y <e2>  z",
    "!?.,;:",
    "word " * 40,
    "The river runs through the old town; people walk along. " * 3,
]
PAIRS = list(zip(TEXTS, TEXTS[7:] + TEXTS[:7], strict=True))

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def word_piece(*, lowercase: bool = True) -> Tokenizer:
    """BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=BERT_SPECIAL, show_progress=False)
    cased = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # a vocabulary with both cases
    cased.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    cased.train_from_iterator([*CORPUS, *(line.lower() for line in CORPUS)], trainer)
    tokenizer.model = cased.model
    tokenizer.add_special_tokens(BERT_SPECIAL)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level() -> Tokenizer:
    """RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=ROBERTA_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace(special: list[str] = ROBERTA_SPECIAL) -> Tokenizer:
    """XLM-R's, with Metaspace alone: what saving a converted slow tokenizer gave for years."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=special, unk_token="<unk>", show_progress=False, shrinking_factor=0.75
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [(token, special.index(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def sentencepiece_model(folder: Path, name: str = "sentencepiece.bpe.model") -> None:
    """A SentencePiece model file alone, as slow tokenizers save it."""
    import sentencepiece

    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(CORPUS), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.Train(
        input=str(corpus),
        model_prefix=str(folder / "made"),
        vocab_size=200,
        model_type="unigram",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "made.model").rename(folder / name)
    (folder / "made.vocab").unlink()
    corpus.unlink()


def save(folder: Path, tokenizer: Tokenizer, **settings: object) -> Path:
    """tokenizer.json, and tokenizer_config.json where there are settings."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings:
        write(folder / "tokenizer_config.json", settings)
    return folder


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
