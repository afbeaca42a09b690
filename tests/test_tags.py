"""Spans of token classification: label schemes, words and pieces, and transformers' own aggregation strategies."""

from __future__ import annotations

import json

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, InputError
from qla_runtime.activations import softmax
from qla_runtime.tasks import aggregation
from qla_runtime.tasks.label_schemes import BEGIN, END, INSIDE, SINGLE, Tag, chunks, read_labels
from qla_runtime.tasks.tag import TagTask

TRANSFORMERS_STRATEGIES = ("none", "simple", "first", "average", "max")
TEXTS = (
    "Ada Lovelace lives in London, near O'Neill's.",
    "new   york  city\tlikes jean-baptiste",
    "U.S. (Paris) 东京 is e.g. déjà-vu!",
    "  leading and trailing  ",
    "a",
)


# ---- label schemes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, expected",
    [
        (["O", "B-PER", "I-PER"], [BEGIN + "PER", INSIDE + "PER"]),
        (["O", "B_PER", "I_PER"], [BEGIN + "PER", INSIDE + "PER"]),
        (["O", "PER-B", "PER-I"], [BEGIN + "PER", INSIDE + "PER"]),
        (["O", "PER_B", "PER_I"], [BEGIN + "PER", INSIDE + "PER"]),
        (["O", "I-PER", "I-LOC"], [INSIDE + "PER", INSIDE + "LOC"]),
        (["O", "B-PER", "B-LOC"], [BEGIN + "PER", BEGIN + "LOC"]),
        (
            ["O", "B-X-Y", "I-X-Y", "E-X-Y", "S-X-Y", "S-Z"],
            [BEGIN + "X-Y", INSIDE + "X-Y", END + "X-Y", SINGLE + "X-Y", SINGLE + "Z"],
        ),
        (["O", "B-P", "I-P", "L-P", "U-P"], [BEGIN + "P", INSIDE + "P", END + "P", SINGLE + "P"]),
        (["O", "B-P", "M-P", "E-P", "S-P"], [BEGIN + "P", INSIDE + "P", END + "P", SINGLE + "P"]),
        # What only looks like a letter is part of a name.
        (["E-MAIL", "PHONE"], ["IE-MAIL", "IPHONE"]),
        (["O", "B-PER", "I-PER", "E-MAIL"], [BEGIN + "PER", INSIDE + "PER", "IE-MAIL"]),
        (["NOUN", "VERB"], ["INOUN", "IVERB"]),
        (["LABEL_0", "LABEL_1"], ["ILABEL_0", "ILABEL_1"]),
    ],
)
def test_schemes_are_read_from_the_labels(labels, expected):
    scheme = read_labels(labels)
    assert [tag.role + tag.entity for tag in scheme.tags if tag.entity != "O"] == expected
    assert scheme.outside == frozenset({"O"} & set(labels))


@pytest.mark.parametrize("outside", ["O", "o", "OUTSIDE"])
def test_what_stands_for_no_entity(outside):
    assert read_labels([outside, "B-PER", "I-PER"]).outside == {outside}


def test_a_scheme_can_be_chosen():
    assert read_labels(["O", "B-PER", "I-PER"], "plain").tags[1] == Tag(INSIDE, "B-PER")
    assert read_labels(["O", "S-A", "E-B"], "bioes").tags[1:] == (Tag(SINGLE, "A"), Tag(END, "B"))
    assert read_labels(["O", "B-P", "E-P"], "bio").tags[2] == Tag(INSIDE, "E-P")
    with pytest.raises(InputError, match="'bioes', but none of this model's labels .*LABEL_0.*use 'plain'"):
        read_labels(["LABEL_0", "LABEL_1"], "bioes")
    with pytest.raises(InputError, match="label_scheme is 'biox'; use one of bio, iob1, bioes, bilou, plain"):
        read_labels(["O"], "biox")


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("B-A I-A O", ["A 0 1"]),
        ("I-A I-A B-A", ["A 0 1", "A 2 2"]),  # IOB1
        ("B-A I-B", ["A 0 0", "B 1 1"]),
        ("I-A O I-A", ["A 0 0", "A 2 2"]),
        ("B-A I-A E-A S-A S-A", ["A 0 2", "A 3 3", "A 4 4"]),
        ("S-A I-A", ["A 0 0", "A 1 1"]),
        ("E-A E-A", ["A 0 0", "A 1 1"]),
        ("I-A E-A I-A", ["A 0 1", "A 2 2"]),
        ("O S-A B-B E-B O", ["A 1 1", "B 2 3"]),
    ],
)
def test_chunks_are_those_of_conlleval(labels, expected):
    """By the start and end rules of the conlleval script, which seqeval's default mode takes over."""
    tags = [Tag(*label.split("-")) if label != "O" else Tag(INSIDE, "O") for label in labels.split()]
    found = [f"{entity} {first} {last}" for entity, first, last in chunks(tags) if entity != "O"]
    assert found == expected


# ---- this project's strategies ----------------------------------------------------------------------


class Marked:
    """A tagger whose logits are set by hand: token text -> label, everything else O."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def tag(self, text: str, marks: dict[int, str], **options):
        """``marks``: label of each token position."""
        prepared = self.engine.prepare(self.engine.as_task(TagTask).tag(text, **options))
        logits = np.zeros((len(prepared.batch.ids), len(self.engine.labels)), np.float32)
        logits[:, self.engine.labels.index("O")] = 1
        for position, label in marks.items():
            logits[position, self.engine.labels.index(label)] = 3
        (found,) = prepared.read({"logits": logits, "macs": np.zeros(1, np.int64)}, prepared.plan)
        return [(span["label"], span["text"]) for span in found]


def tokenizer(kind: str) -> dict:
    """A tokenizer.json of a kind, with a piece for every word and part of a word in TEXTS that tests speak of."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = ["new", "york", "city", "lon", "don", "paris", "oslo", "a", "b"]
    if kind == "wordpiece":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, "##don", *".,()-'!"]
        made = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    elif kind == "byte-level":
        letters = sorted(set("".join(words) + ".,()-'!Ġ"))
        merged, merges = [], []
        for word in ["new", "don", "paris", *("Ġ" + word for word in words if word != "don")]:
            for i in range(1, len(word)):
                if word[: i + 1] not in merged:
                    merged.append(word[: i + 1])
                    merges.append((word[:i], word[i]))
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *letters, *(m for m in merged if m not in letters)]
        made = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    else:
        pieces = [
            "<s>",
            "<pad>",
            "</s>",
            "<unk>",
            "▁",
            *("▁" + word for word in words),
            "don",
            "paris",
            *".,()-'!",
        ]
        pieces += ["京", "东"]
        made = Tokenizer(models.Unigram([(p, -float(i > 3)) for i, p in enumerate(pieces)], 3, False))
        made.normalizer = normalizers.Replace("\t", " ")
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    return json.loads(made.to_str())


@pytest.fixture(params=["wordpiece", "byte-level", "sentencepiece"])
def marked(request, tmp_path):
    package = tiny_package("token-classification", vocab_size=200)
    package.tokenizer = tokenizer(request.param)
    return Marked(Engine(package.save(tmp_path / "p")))


def positions(engine: Engine, text: str) -> dict[str, int]:
    """Where in a text's tokens each piece stands, by its characters."""
    encoding = engine.text_encoder.encode([text], with_offsets=True).encodings[0]
    pieces = [text[a:b].strip() for a, b in encoding.offsets]
    found = {piece: i for i, piece in enumerate(pieces) if piece}
    blank = {
        f"blank before {p}": i
        for i, p in enumerate(pieces[1:])
        if not pieces[i] and encoding.word_ids[i] is not None
    }
    return found | blank


def test_a_word_has_the_label_of_its_first_piece(marked):
    at = positions(marked.engine, "a london oslo")
    marks = {at["lon"]: "B-LOC", at["don"]: "B-PER", at["oslo"]: "I-LOC"}
    assert marked.tag("a london oslo", marks) == [("LOC", "london oslo")]
    assert marked.tag("a london oslo", {at["don"]: "B-PER"}) == []
    assert marked.tag("a london oslo", marks, aggregation_strategy="pieces") == [
        ("LOC", "lon"),
        ("PER", "don"),
        ("LOC", "oslo"),
    ]
    assert marked.tag("a london", {2: "B-LOC", 3: "B-LOC"}, aggregation_strategy="pieces") == [("LOC", "london")]


def test_white_space_is_in_no_span(marked):
    text = "  new   york \t city  "
    count = len(marked.engine.text_encoder.encode([text]).encodings[0].ids)
    everything = {i: "I-LOC" for i in range(count)}
    for strategy in ("words", "pieces", "simple", "first", "average", "max"):
        assert marked.tag(text, everything, aggregation_strategy=strategy) == [("LOC", "new   york \t city")]
    begins = {i: "B-LOC" for i in range(count)}
    for strategy in ("words", "pieces", "simple", "first"):
        found = marked.tag(text, begins, aggregation_strategy=strategy)
        assert found == [("LOC", "new"), ("LOC", "york"), ("LOC", "city")]


def test_punctuation_beside_a_word_is_no_part_of_it(marked):
    at = positions(marked.engine, "a (paris).")
    assert marked.tag("a (paris).", {at["paris"]: "B-LOC"}) == [("LOC", "paris")]
    # A piece of white space is the first one of the word that follows it.
    marks = {at.get("blank before (", at["("]): "B-LOC", at["paris"]: "I-LOC", at[")"]: "I-LOC"}
    assert marked.tag("a (paris).", marks) == [("LOC", "(paris)")]


def test_ignored_labels(marked):
    marks = {1: "B-PER", 2: "B-LOC"}
    assert marked.tag("a b", marks, ignore_labels=["O", "PER"]) == [("LOC", "b")]
    assert marked.tag("a b", {1: "B-PER"}, ignore_labels=[]) == [("PER", "a"), ("O", "b")]
    for wrong in ("O", [1], 5):
        with pytest.raises(InputError, match="ignore_labels .* list of labels"):
            marked.engine.tag("a b", ignore_labels=wrong)


def test_the_confidence_is_the_lowest_score_of_a_word(marked):
    text = "a london"
    at = positions(marked.engine, text)
    spans = marked.engine.tag(text, aggregation_strategy="words")
    ids = marked.engine.text_encoder.encode([text]).batch.ids.tolist()
    best = softmax(marked.engine.forward([ids]).logits[0]).max(axis=1)
    assert spans.confidence == pytest.approx(min(best[at["a"]], best[at["lon"]]))
    pieces = marked.engine.tag(text, aggregation_strategy="pieces")
    assert pieces.confidence == pytest.approx(best[1:-1].min())


def test_scripts_without_white_space_have_a_word_per_piece(tmp_path):
    package = tiny_package("token-classification", vocab_size=200)
    package.tokenizer = tokenizer("sentencepiece")
    tagger = Marked(Engine(package.save(tmp_path / "p")))
    at = positions(tagger.engine, "东京")
    assert tagger.tag("东京", {at["京"]: "B-LOC"}) == [("LOC", "京")]


def test_arguments_are_checked(marked):
    with pytest.raises(
        InputError, match="aggregation_strategy is 'firsts'; use one of words, pieces, none, simple"
    ):
        marked.engine.tag("a", aggregation_strategy="firsts")
    with pytest.raises(InputError, match="aggregation_strategy is None"):
        marked.engine.tag("a", aggregation_strategy=None)
    with pytest.raises(InputError, match="leave label_scheme out, or use 'words' or 'pieces'"):
        marked.engine.tag("a", aggregation_strategy="first", label_scheme="bio")


# ---- transformers' strategies -----------------------------------------------------------------------


class SameLogits:
    """transformers' pipeline around the logits of an engine."""

    def __init__(self, engine: Engine) -> None:
        torch = pytest.importorskip("torch", reason="the [convert] extra brings transformers")
        transformers = pytest.importorskip("transformers", reason="the [convert] extra brings transformers")
        family = (
            "bert" if "[CLS]" in json.loads((engine.path / "tokenizer.json").read_text())["model"]["vocab"] else ""
        )
        names = ("[CLS]", "[SEP]", "[UNK]", "[PAD]") if family else ("<s>", "</s>", "<unk>", "<pad>")
        keys = ("cls_token", "sep_token", "unk_token", "pad_token")
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(engine.path / "tokenizer.json"), **dict(zip(keys, names, strict=True))
        )
        config = transformers.BertConfig(
            num_hidden_layers=1,
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=200,
            id2label=dict(enumerate(engine.labels)),
        )
        model = transformers.BertForTokenClassification(config)

        def forward(input_ids, **_):
            logits = engine.forward(input_ids.tolist()).logits[0]
            return {"logits": torch.from_numpy(np.ascontiguousarray(logits))[None]}

        model.forward = forward
        self.pipeline = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer)

    def spans(self, text: str, strategy: str, **options) -> list[dict]:
        return self.pipeline(text, aggregation_strategy=strategy, **options)


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", TRANSFORMERS_STRATEGIES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("labels", [["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ["LABEL_0", "E-A", "S-A"]])
def test_strategies_are_transformers_own(tmp_path, family, seed, strategy, labels):
    package = tiny_package("token-classification", family, seed=seed, labels=labels)
    engine = Engine(package.save(tmp_path / "p"))
    reference = SameLogits(engine)
    for text in TEXTS:
        expected = [span for span in reference.spans(text, strategy) if text[span["start"] : span["end"]].strip()]
        found = engine.tag(text, aggregation_strategy=strategy)
        if strategy == "none":
            expected = reference.spans(text, strategy)
            assert [(x["index"], x["word"]) for x in found] == [(x["index"], x["word"]) for x in expected]
        assert [x["label"] for x in found] == [x.get("entity_group", x.get("entity")) for x in expected]
        # One rounding of float32 each in the engine's two runs of the same bits: none. In the mean: one per span.
        np.testing.assert_allclose([x["score"] for x in found], [x["score"] for x in expected], rtol=2**-22)
        ranges = [(x["start"], x["end"]) for x in found]
        if strategy == "none":
            assert ranges == [(x["start"], x["end"]) for x in expected]
        for span, other in zip(found, expected, strict=True):
            assert span["text"] == text[other["start"] : other["end"]].strip() == text[
                span["start"] : span["end"]
            ] or (strategy == "none")


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", TRANSFORMERS_STRATEGIES)
@pytest.mark.parametrize("kind", ["wordpiece", "byte-level", "sentencepiece"])
def test_strategies_are_transformers_own_with_longer_pieces(tmp_path, kind, strategy):
    package = tiny_package("token-classification", vocab_size=200)
    package.tokenizer = tokenizer(kind)
    engine = Engine(package.save(tmp_path / "p"))
    reference = SameLogits(engine)
    for text in ("new york city", "a londondon (paris).", "oslo zzz ZZ a", "b  b"):
        expected = [
            (
                x.get("entity_group", x.get("entity")),
                text[x["start"] : x["end"]].strip(),
                pytest.approx(x["score"]),
            )
            for x in reference.spans(text, strategy, ignore_labels=[])
            if strategy == "none" or text[x["start"] : x["end"]].strip()
        ]
        found = engine.tag(text, aggregation_strategy=strategy, ignore_labels=[])
        assert [(x["label"], x["text"].strip(), x["score"]) for x in found] == expected


def test_probabilities_that_round_alike_are_told_apart_by_order():
    """With ``max`` the first of two pieces wins whose float32 probabilities are both 1."""
    package_tokenizer = tokenizer("wordpiece")
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(json.dumps(package_tokenizer))
    encoding = made.encode("london")
    logits = np.zeros((4, 3), np.float32)
    logits[1, 1], logits[2, 2] = 60, 80
    (found,), _ = aggregation.entities("max", ("O", "B-A", "B-B"), made, "london", encoding, logits)
    assert found["label"] == "A"
