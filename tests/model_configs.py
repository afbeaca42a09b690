"""Published checkpoints whose configs convert, as data; and how each is tried with random weights.

``python tests/model_configs.py`` converts them all and prints the table of docs/model-configs.md (some minutes).
A trial keeps everything of the published config but the number of layers and the vocabulary, which are cut:
neither changes what is computed per layer or per token.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

TRIED_LAYERS = 2
VOCABULARY = 600


@dataclass(frozen=True)
class Shape:
    """The widths of a published encoder."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


TINY, MINI, SMALL, MEDIUM = (
    Shape(128, 2, 2, 512),
    Shape(256, 4, 4, 1024),
    Shape(512, 4, 8, 2048),
    Shape(512, 8, 8, 2048),
)
XTREME = Shape(256, 6, 8, 1024)
MINILM6, MINILM12 = Shape(384, 6, 12, 1536), Shape(384, 12, 12, 1536)
BASE, BASE6, LARGE = Shape(768, 12, 12, 3072), Shape(768, 6, 12, 3072), Shape(1024, 24, 16, 4096)

# Family: transformers' class prefix, tokenizer, and the parts of the config that its checkpoints share.
_BERT = {"max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}
_ROBERTA = {
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
FAMILIES = {
    "bert": ("Bert", "wordpiece", _BERT),
    "bert-cased": ("Bert", "wordpiece-cased", _BERT),
    "bert-sp": ("Bert", "unigram", {**_BERT, "pad_token_id": 1}),
    "roberta": ("Roberta", "byte-level", _ROBERTA),
    "xlm-roberta": ("XLMRoberta", "unigram", _ROBERTA),
    "xlm-roberta-8k": ("XLMRoberta", "unigram", {**_ROBERTA, "max_position_embeddings": 8194}),
    "camembert": ("Camembert", "unigram", _ROBERTA),
    "electra": ("Electra", "wordpiece", {**_BERT, "embedding_size": 768}),
    "electra-large": ("Electra", "wordpiece", {**_BERT, "embedding_size": 1024}),
}


@dataclass(frozen=True)
class Published:
    """One checkpoint.

    Attributes:
        name: on the hub.
        family: a key of :data:`FAMILIES`.
        shape: its widths.
        task: a task kind; ``labels`` and ``problem`` belong to classification, ``pooling`` to embeddings.
        max_length: tokens of a text, where sentence-transformers says it.
        fast: in the default test run, which has one of each kind.
    """

    name: str
    family: str
    shape: Shape
    task: str
    labels: int = 0
    problem: str | None = None
    pooling: str = ""
    max_length: int = 512
    fast: bool = False


def _embed(name, family, shape, pooling="mean normalize", max_length=512, fast=False):
    return Published(name, family, shape, "embedding", pooling=pooling, max_length=max_length, fast=fast)


def _classify(name, family, shape, labels, problem=None, fast=False):
    return Published(name, family, shape, "sequence-classification", labels, problem, fast=fast)


def _tag(name, family, shape, labels, fast=False):
    return Published(name, family, shape, "token-classification", labels, fast=fast)


def _answer(name, family, shape, fast=False):
    return Published(name, family, shape, "span-qa", fast=fast)


PUBLISHED = (
    _embed("sentence-transformers/all-MiniLM-L6-v2", "bert", MINILM6, max_length=256, fast=True),
    _embed("sentence-transformers/all-MiniLM-L12-v2", "bert", MINILM12, max_length=128),
    _embed("sentence-transformers/paraphrase-MiniLM-L6-v2", "bert", MINILM6, "mean", 128),
    _embed("sentence-transformers/multi-qa-MiniLM-L6-cos-v1", "bert", MINILM6),
    _embed("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "bert-sp", MINILM12, "mean", 128),
    _embed("sentence-transformers/all-distilroberta-v1", "roberta", BASE6),
    _embed("sentence-transformers/all-roberta-large-v1", "roberta", LARGE, max_length=256),
    _embed("BAAI/bge-small-en-v1.5", "bert", MINILM12, "cls normalize"),
    _embed("BAAI/bge-base-en-v1.5", "bert", BASE, "cls normalize"),
    _embed("BAAI/bge-large-en-v1.5", "bert", LARGE, "cls normalize"),
    _embed("BAAI/bge-m3", "xlm-roberta-8k", LARGE, "cls normalize", 8192),
    _embed("intfloat/e5-small-v2", "bert", MINILM12),
    _embed("intfloat/e5-base-v2", "bert", BASE),
    _embed("intfloat/e5-large-v2", "bert", LARGE),
    _embed("intfloat/multilingual-e5-small", "bert-sp", MINILM12),
    _embed("intfloat/multilingual-e5-base", "xlm-roberta", BASE, fast=True),
    _embed("intfloat/multilingual-e5-large", "xlm-roberta", LARGE),
    _embed("thenlper/gte-small", "bert", MINILM12),
    _embed("thenlper/gte-base", "bert", BASE),
    _embed("thenlper/gte-large", "bert", LARGE),
    _embed("Snowflake/snowflake-arctic-embed-xs", "bert", MINILM6, "cls normalize"),
    _embed("Snowflake/snowflake-arctic-embed-s", "bert", MINILM12, "cls normalize"),
    _embed("Snowflake/snowflake-arctic-embed-m", "bert", BASE, "cls normalize"),
    _embed("Snowflake/snowflake-arctic-embed-l", "bert", LARGE, "cls normalize"),
    _embed("mixedbread-ai/mxbai-embed-large-v1", "bert", LARGE, "cls"),
    _embed("princeton-nlp/sup-simcse-bert-base-uncased", "bert", BASE, "cls"),
    _embed("cambridgeltl/SapBERT-from-PubMedBERT-fulltext", "bert", BASE, "cls"),
    _embed("google/bert_uncased_L-2_H-128_A-2", "bert", TINY, "mean", fast=True),
    _embed("google/bert_uncased_L-4_H-256_A-4", "bert", MINI, "mean"),
    _embed("google/bert_uncased_L-4_H-512_A-8", "bert", SMALL, "mean"),
    _embed("google/bert_uncased_L-8_H-512_A-8", "bert", MEDIUM, "mean"),
    _embed("microsoft/xtremedistil-l6-h256-uncased", "bert", XTREME, "mean"),
    _embed("google/electra-base-discriminator", "electra", BASE, "mean"),
    _classify("cross-encoder/ms-marco-MiniLM-L6-v2", "bert", MINILM6, 1, fast=True),
    _classify("cross-encoder/ms-marco-MiniLM-L12-v2", "bert", MINILM12, 1),
    _classify("BAAI/bge-reranker-base", "xlm-roberta", BASE, 1),
    _classify("BAAI/bge-reranker-large", "xlm-roberta", LARGE, 1),
    _classify("BAAI/bge-reranker-v2-m3", "xlm-roberta-8k", LARGE, 1, fast=True),
    _classify("FacebookAI/roberta-large-mnli", "roberta", LARGE, 3),
    _classify("cardiffnlp/twitter-roberta-base-sentiment-latest", "roberta", BASE, 3),
    _classify("ProsusAI/finbert", "bert", BASE, 3),
    _classify("nlptown/bert-base-multilingual-uncased-sentiment", "bert", BASE, 5),
    _classify("unitary/toxic-bert", "bert", BASE, 6, "multi_label_classification"),
    _classify("SamLowe/roberta-base-go_emotions", "roberta", BASE, 28, "multi_label_classification"),
    _answer("deepset/roberta-base-squad2", "roberta", BASE, fast=True),
    _answer("deepset/tinyroberta-squad2", "roberta", BASE6),
    _answer("deepset/minilm-uncased-squad2", "bert", MINILM12),
    _answer("deepset/bert-base-cased-squad2", "bert-cased", BASE),
    _answer("deepset/bert-large-uncased-whole-word-masking-squad2", "bert", LARGE),
    _answer("deepset/xlm-roberta-base-squad2", "xlm-roberta", BASE),
    _answer("deepset/electra-base-squad2", "electra", BASE, fast=True),
    _tag("dslim/bert-base-NER", "bert-cased", BASE, 9, fast=True),
    _tag("dbmdz/bert-large-cased-finetuned-conll03-english", "bert-cased", LARGE, 9),
    _tag("Davlan/bert-base-multilingual-cased-ner-hrl", "bert-cased", BASE, 9),
    _tag("Jean-Baptiste/camembert-ner", "camembert", BASE, 5, fast=True),
    _tag("Jean-Baptiste/roberta-large-ner-english", "roberta", LARGE, 5),
    _tag("dbmdz/electra-large-discriminator-finetuned-conll03-english", "electra-large", LARGE, 9),
)

TEXTS = (
    "The river rose three feet in the night.",
    "Caf\u00e9s in Z\u00fcrich don't open before 7:30, she said; nobody asked why.",
    "IT'S 42 degrees!",
    "a",
    "Rain fell on the harbour, and the boats (all nineteen of them) turned slowly towards the wind.",
    "\u4e2d\u6587 mixed with English, numbers 3.14 and a URL: https://example.org/a?b=c",
)
PAIR = ("Who rang the bell?", "In the evening the old keeper rang the bell twice, as he did each day of his life.")


def save_checkpoint(published: Published, folder: Path) -> Path:
    """The published config with random weights and a small tokenizer of its kind, as its library saves it."""
    import torch
    import transformers

    prefix, tokenizer_kind, common = FAMILIES[published.family]
    tokenizer = _tokenizer(tokenizer_kind)
    shape = published.shape
    head = {
        "span-qa": ("ForQuestionAnswering", {}),
        "embedding": ("Model", {}),
        "sequence-classification": (
            "ForSequenceClassification",
            {"num_labels": published.labels, "problem_type": published.problem},
        ),
        "token-classification": ("ForTokenClassification", {"num_labels": published.labels}),
    }
    suffix, extra = head[published.task]
    config = getattr(transformers, f"{prefix}Config")(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        num_hidden_layers=min(shape.layers, TRIED_LAYERS),
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        # States keep their size through a layer, so that attention is far from uniform.
        initializer_range=1.2 * shape.hidden**-0.5,
        **common,
        **extra,
    )
    torch.manual_seed(sum(map(ord, published.name)))
    model = getattr(transformers, f"{prefix}{suffix}")(config).eval()
    with torch.no_grad():  # random biases and norms too: zeros and ones would hide a wrong name
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
            elif "embeddings" in name:
                parameter.copy_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.model_max_length = config.max_position_embeddings - (
        common["pad_token_id"] + 1 if "bos_token_id" in common else 0
    )
    tokenizer.save_pretrained(folder)
    if published.task == "embedding":
        _sentence_layout(published, folder)
    return folder


def _sentence_layout(published: Published, folder: Path) -> None:
    pooling, *normalize = published.pooling.split()
    names = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    settings = {"word_embedding_dimension": published.shape.hidden, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": published.max_length}))


@cache
def _tokenizer(kind: str):
    """A tokenizer of a published kind, trained on the texts above."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    bert = kind.startswith("wordpiece")
    pad, unknown, start, end = ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if bert else ("<pad>", "<unk>", "<s>", "</s>")
    special = [pad, unknown, start, end, "[MASK]"] if bert else [start, pad, end, unknown, "<mask>"]
    options = {"special_tokens": special, "vocab_size": VOCABULARY, "show_progress": False}
    if bert:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=kind == "wordpiece")
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**options)
    elif kind == "byte-level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **options)
    tokenizer.train_from_iterator([*TEXTS, *PAIR] * 20, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in (start, end)]
    if bert:
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    else:
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=pad, cls_token=start, sep_token=end
    )


@dataclass(frozen=True)
class Trial:
    """What came out.

    Attributes:
        same_ids: how many of the texts have the ids of transformers' tokenizer.
        texts: how many texts there were.
        hidden: lowest cosine of a token's last hidden state to transformers'.
        scores: largest difference of a head's output, in units of what INT8 noise predicts (see :func:`try_out`);
            for embeddings the lowest cosine of a vector.
    """

    same_ids: int
    texts: int
    hidden: float
    scores: float


NOISE = 0.02
"""Relative error of a hidden state by 8-bit steps, per layer.

A uniform step of size s has deviation s / sqrt(12). Weights of a row lie within about 3.5 deviations, in 127
steps; activations within about 4 on either side, in 255: 0.8 and 0.9 % of their deviation. Word embeddings add
0.7 %, the two products of attention 1.3 %; LayerNorm scales the sum back to one. Together
sqrt(.8^2 + .9^2 + .7^2 + 1.3^2) = 1.9 % for the first layer, and no more for the next, whose input is float.
"""


def hidden_tolerance(layers: int) -> float:
    """The least cosine that noise of this size leaves: 1 - e^2 / 2, for twice the error of all layers."""
    return 1 - (2 * NOISE) ** 2 * layers / 2


def try_out(published: Published, folder: Path, texts: Path) -> Trial:
    """Converts the checkpoint and runs the engine beside transformers on :data:`TEXTS` (or a pair).

    A head's output has the relative error e of its input x, times its row w: e |x| |w| / sqrt(hidden) for a random
    direction.
    """
    import torch
    import transformers
    from tokenizers import Tokenizer

    from qla_runtime import Engine
    from qla_runtime.convert import convert

    checkpoint, package = save_checkpoint(published, folder / "checkpoint"), folder / "package"
    convert(checkpoint, package, texts, length_configs={}, calibration_samples=2, progress=False)
    engine = Engine.from_pretrained(package)
    theirs = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ours = Tokenizer.from_file(str(package / "tokenizer.json"))
    auto = {
        "span-qa": "AutoModelForQuestionAnswering",
        "embedding": "AutoModel",
        "sequence-classification": "AutoModelForSequenceClassification",
        "token-classification": "AutoModelForTokenClassification",
    }
    model = getattr(transformers, auto[published.task]).from_pretrained(checkpoint, dtype=torch.float32).eval()

    inputs = [PAIR] if published.task == "span-qa" or published.labels == 1 else [(text,) for text in TEXTS]
    same = sum(ours.encode(*text).ids == theirs(*text)["input_ids"] for text in inputs)
    hidden, scores = 1.0, 0.0
    for text in inputs:
        encoding = ours.encode(*text)
        types = encoding.type_ids if model.config.type_vocab_size > 1 else [0] * len(encoding.ids)
        with torch.inference_mode():
            expected = model(
                input_ids=torch.tensor([encoding.ids]),
                token_type_ids=torch.tensor([types]),
                output_hidden_states=True,
            )
        found = engine.forward([encoding.ids], token_type_ids=[types])
        states = expected.hidden_states[-1][0].numpy()
        hidden = min(hidden, _cosines(found.last_hidden_state[0], states).min())
        if published.task != "embedding":
            scores = max(scores, _score_error(model, published, expected, states, np.asarray(found.logits[0])))
    if published.task == "embedding":
        scores = _embedding_cosine(model, theirs, engine, published)
    return Trial(same, len(inputs), float(hidden), float(scores))


def _score_error(model, published: Published, expected, states: np.ndarray, found: np.ndarray) -> float:
    if published.task == "span-qa":
        want = np.stack([expected.start_logits[0].numpy(), expected.end_logits[0].numpy()], -1)
        head = model.qa_outputs
    else:
        want = expected.logits[0].numpy()
        head = getattr(model.classifier, "out_proj", model.classifier)
    weight = head.weight.detach().numpy()
    noise = NOISE * np.sqrt(model.config.num_hidden_layers) * np.linalg.norm(states, axis=-1).max()
    if published.task == "sequence-classification":
        # A dense layer and tanh (whose slope is at most 1) stand before the head.
        bert = hasattr(model, "bert")
        dense = model.bert.pooler.dense if bert else model.classifier.dense
        noise *= np.linalg.norm(dense.weight.detach().numpy(), axis=1).mean()
    predicted = noise * np.linalg.norm(weight, axis=1).max() / np.sqrt(states.shape[-1])
    return np.abs(found.reshape(want.shape) - want).max() / predicted


def _embedding_cosine(model, tokenizer, engine, published: Published) -> float:
    """Lowest cosine of ``encode`` to sentence-transformers' arithmetic on transformers' states.

    One text is too long, so that cutting it is compared too.
    """
    import torch

    long = " ".join(TEXTS * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the text was cut
        vectors = engine.encode([*TEXTS, long])
    pooling, *normalize = published.pooling.split()
    limit = min(published.max_length, engine.max_length)
    lowest = 1.0
    for text, vector in zip([*TEXTS, long], vectors, strict=True):
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
        want = states[0] if pooling == "cls" else states.mean(0)
        lowest = min(lowest, _cosines(vector[None], want[None])[0])
        size = np.linalg.norm(vector)
        assert abs(size - (1 if normalize else np.linalg.norm(want))) <= 3 * NOISE * max(1.0, size), (text, size)
    return float(lowest)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def write_texts(path: Path) -> Path:
    """A file for ``convert``."""
    path.write_text(
        "".join(f"{text} {i}\n" for i in range(3) for text in TEXTS if len(text) > 1), encoding="utf-8"
    )
    return path


def main() -> None:
    """Prints the table."""
    print("| checkpoint | family | width | task | same ids | hidden states, lowest cosine | scores |")
    print("|---|---|---|---|---|---|---|")
    for published in PUBLISHED:
        with tempfile.TemporaryDirectory() as folder:
            trial = try_out(published, Path(folder), write_texts(Path(folder) / "texts.txt"))
        unit = f"cosine {trial.scores:.4f}" if published.task == "embedding" else f"{trial.scores:.2f} of noise"
        print(
            f"| {published.name} | {published.family} | {published.shape.hidden} | {published.task} | "
            f"{trial.same_ids} of {trial.texts} | {trial.hidden:.4f} | {unit} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
