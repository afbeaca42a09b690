"""Accuracy of classifiers, rerankers and taggers: figures worked out by hand, and those of scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from cli_tools import ok, refused
from package_tools import tiny_package

from qla_runtime import Engine, InputError, UnsupportedError
from qla_runtime.evaluation.classification import (
    Example,
    _f1_by_label,
    _label_numbers,
    _matthews,
    classification,
)
from qla_runtime.evaluation.ranking import Query, _ndcg, _reciprocal_rank, ranking
from qla_runtime.evaluation.tagging import Sentence, _word_labels, read_conll, tagging


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("packages")
    made = {
        "three": tiny_package("sequence-classification"),
        "two": tiny_package("sequence-classification", labels=["no", "yes"]),
        "many": tiny_package("sequence-classification", problem="multi_label"),
        "ranker": tiny_package("sequence-classification", problem="regression", labels=["relevance"]),
        "tagger": tiny_package("token-classification"),
        "embedding": tiny_package("embedding"),
    }
    return {name: Engine(package.save(folder / name)) for name, package in made.items()}


# ---- classification ---------------------------------------------------------------------------------

TEXTS = [f"{a}{b} text {a}" for a in "abcdefgh" for b in "xyz"]


def examples(engine: Engine, wrong: int) -> tuple[list[Example], list[int], list[int]]:
    """Texts whose label is what the model says, but for the first ``wrong``; truth and predictions."""
    names = list(engine.labels)
    found = [names.index(result["label"]) for result in engine.classify(TEXTS)]
    truth = [(label + 1) % len(names) if i < wrong else label for i, label in enumerate(found)]
    return [Example(text, None, names[i]) for text, i in zip(TEXTS, truth, strict=True)], truth, found


@pytest.mark.parametrize("name", ["two", "three"])
@pytest.mark.parametrize("wrong", [0, 5, 24])
def test_classification_is_scikit_learn_s(engines, name, wrong):
    rows, truth, found = examples(engines[name], wrong)
    score = classification(engines[name], rows)
    assert score.accuracy == pytest.approx(100 * (1 - wrong / 24)) and score.texts == 24
    assert all(map(math.isfinite, (score.f1, score.f1_macro, score.matthews, score.macs)))
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not among the test requirements")
    macro = metrics.f1_score(truth, found, average="macro", zero_division=0)
    assert score.f1_macro == pytest.approx(100 * macro)
    binary = metrics.f1_score(truth, found, zero_division=0) if name == "two" else macro
    assert score.f1 == pytest.approx(100 * binary)
    assert score.matthews == pytest.approx(100 * metrics.matthews_corrcoef(truth, found))


def test_figures_of_a_confusion_by_hand():
    confusion = np.array([[3, 1], [2, 4]])
    assert _f1_by_label(confusion).tolist() == [6 / 9, 8 / 11]
    assert _matthews(confusion) == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 6 * 5 * 5))
    assert _matthews(np.array([[4, 0], [0, 0]])) == 0.0


def test_labels_by_name_in_any_case_or_by_number(engines):
    names = engines["two"].labels
    assert _label_numbers(["NO", "yes"], names) == _label_numbers(["0", "1"], names) == [0, 1]
    assert _label_numbers(["1", "0"], ["1", "0"]) == [0, 1], "a name is meant before a number"
    with pytest.raises(InputError, match="label 'maybe' is none of the model's .no, yes.* from 0 to 1"):
        _label_numbers(["yes", "maybe"], names)
    with pytest.raises(InputError, match="no examples"):
        classification(engines["two"], [])


def test_models_that_do_not_fit(engines):
    example = [Example("a", None, "0")]
    for name, words in (("many", "multi_label"), ("ranker", "reranker"), ("embedding", "is an embedding model")):
        with pytest.raises(UnsupportedError, match=words):
            classification(engines[name], example)
    with pytest.raises(UnsupportedError, match="one label"):
        ranking(engines["two"], [Query("a", ("b",), (1.0,))])
    with pytest.raises(UnsupportedError, match="needs a token-classification model"):
        tagging(engines["two"], [Sentence(("a",), ("B-PER",))])


# ---- ranking ----------------------------------------------------------------------------------------


def test_ranking_by_hand(engines):
    engine = engines["ranker"]
    documents = ("a b", "c", "d e f", "g")
    order = [entry["index"] for entry in engine.rank("what", documents)]
    relevance = [0.0] * 4
    relevance[order[1]], relevance[order[3]] = 1.0, 3.0
    score = ranking(engine, [Query("what", documents, tuple(relevance)), Query("x", ("a", "b"), (0.0, 0.0))])
    assert score.mrr_at_10 == pytest.approx(50) and (score.queries, score.left_out, score.documents) == (1, 1, 6)
    ideal = 3 / math.log2(2) + 1 / math.log2(3)
    assert score.ndcg_at_10 == pytest.approx(100 * (1 / math.log2(3) + 3 / math.log2(5)) / ideal)
    twins = ranking(engine, [Query("what", ("a", "a", "a"), (1.0, 0.0, 0.0))])
    assert twins.mrr_at_10 == pytest.approx(100 / 3), "equal scores stand in the worst order"
    with pytest.raises(InputError, match="no query has a relevant document"):
        ranking(engine, [Query("x", ("a", "b"), (0.0, 0.0))])


def test_only_ten_documents_count():
    late = np.array([0.0] * 10 + [1.0])
    assert _reciprocal_rank(late) == 0 and _ndcg(late) == 0


def test_pairs_with_scores_correlate(engines):
    engine = engines["ranker"]
    pairs = [("a", "b c"), ("d", "e"), ("f g", "h"), ("i", "j k l")]
    values = [engine.rank(a, [b])[0]["score"] for a, b in pairs]
    queries = [Query(a, (b,), (2 * value + 50,)) for (a, b), value in zip(pairs, values, strict=True)]
    score = ranking(engine, queries)
    assert score.pearson == pytest.approx(100) and score.spearman == pytest.approx(100) and score.pairs == 4
    flat = ranking(engine, [Query(a, (b,), (1.0,)) for a, b in pairs])
    assert (flat.pearson, flat.spearman) == (0.0, 0.0)


# ---- tagging ----------------------------------------------------------------------------------------


def test_word_labels_are_those_of_first_tokens():
    def tokens(*ranges):
        return [{"start": a, "end": b, "label": f"{a}-{b}"} for a, b in ranges]

    words = ("new", "york", "a")
    assert _word_labels(words, tokens((0, 3), (4, 6), (6, 8), (9, 10))) == ["0-3", "4-6", "9-10"]
    # SentencePiece: the blank belongs to the token behind it, or is one
    assert _word_labels(words, tokens((0, 3), (3, 8), (8, 9), (9, 10))) == ["0-3", "3-8", "8-9"]
    assert _word_labels(words, tokens((0, 2), (2, 3), (9, 10))) == ["0-2", None, "9-10"]
    assert _word_labels(words, tokens((0, 3))) == ["0-3", None, None]
    assert _word_labels(("a", "b", "c"), tokens((0, 1), (2, 3), (4, 5))) == ["0-1", "2-3", "4-5"]


def test_tagging_by_hand(engines, monkeypatch):
    """2 of the file's 3 entities are found, 2 of the model's 5 are right; BIOES and BIO."""
    engine = engines["tagger"]
    said = {
        "ada": "B-PER",
        "king": "I-PER",
        "oslo": "B-LOC",
        "rome": "B-LOC",
        "bob": "B-PER",
        "in": "O",
        "sea": "B-LOC",
    }

    def tag(texts, length, *, aggregation_strategy, ignore_labels):
        assert (aggregation_strategy, ignore_labels) == ("none", [])
        found = []
        for text in texts:
            starts = np.cumsum([0, *(len(word) + 1 for word in text.split(" "))])
            entries = zip(starts, text.split(" "), strict=False)
            spans = [{"start": int(a), "end": int(a) + len(word), "label": said[word]} for a, word in entries]
            found.append(scores_of(spans))
        return found

    class scores_of(list):  # noqa: N801
        truncated = False

    monkeypatch.setattr(engine, "tag", tag)
    sentences = [
        Sentence(("ada", "king", "in", "oslo"), ("B-PER", "E-PER", "O", "S-LOC")),
        Sentence(("bob", "in", "rome", "sea"), ("O", "O", "B-LOC", "E-LOC")),
    ]
    score = tagging(engine, sentences)
    assert (score.precision, score.recall) == (pytest.approx(100 * 2 / 5), pytest.approx(100 * 2 / 3))
    assert score.f1 == pytest.approx(100 * 4 / 8) and (score.entities, score.sentences) == (3, 2)
    assert score.f1_by_entity == {"LOC": pytest.approx(40), "PER": pytest.approx(100 * 2 / 3)}


def test_a_tagger_agrees_with_itself(engines):
    engine = engines["tagger"]
    sentences = []
    for text in ("ada lives in london", "bob bakes bread", "the sea is deep and cold"):
        words = tuple(text.split())
        tokens = engine.tag(text, aggregation_strategy="none", ignore_labels=[])
        sentences.append(Sentence(words, tuple(map(str, _word_labels(words, tokens)))))
    score = tagging(engine, sentences)
    assert (score.precision, score.recall, score.f1, score.truncated) == (100, 100, 100, 0) and score.entities
    with pytest.raises(InputError, match="no name in common"):
        tagging(engine, [Sentence(("a",), ("B-ANIMAL",))])
    with pytest.raises(InputError, match="tags no entity"):
        tagging(engine, [Sentence(("a",), ("O",))])
    long = tagging(engine, [Sentence(("word",) * 200, ("B-PER",) * 200)])
    assert long.truncated == 1 and long.entities == 200


def test_conll_files(tmp_path):
    path = tmp_path / "test.conll"
    path.write_bytes(
        "\ufeff-DOCSTART- -X- -X- O\r\n\r\nEU NNP B-NP B-ORG\r\nrejects VBZ B-VP O\r\n\r\n\r\n"
        "# id 17\tdomain=en\r\n# O\r\nNew York\tI-LOC\r\n".encode()
    )
    expected = [Sentence(("EU", "rejects"), ("B-ORG", "O")), Sentence(("#", "New York"), ("O", "I-LOC"))]
    assert read_conll(path) == expected
    path.write_text("a O\n\nb O\nword\nc O\n\nd B-X\n")
    with pytest.raises(InputError, match="line 4 has no tag beside its word.*--skip-bad-rows"):
        read_conll(path)
    with pytest.warns(UserWarning, match="1 lines without a tag, the first at line 4"):
        assert read_conll(path, skip_bad_rows=True) == [
            Sentence(("a",), ("O",)),
            Sentence(("d",), ("B-X",)),
        ]
    path.write_text("\n\n")
    with pytest.raises(InputError, match="holds no sentence"):
        read_conll(path)


# ---- command line -----------------------------------------------------------------------------------


def test_the_command_line(engines, tmp_path):
    table = tmp_path / "dev.tsv"
    rows, _, _ = examples(engines["three"], 6)
    table.write_text("sentence\tlabel\n" + "".join(f"{row.text}\t{row.label}\n" for row in rows))
    model = ["--model", str(engines["three"].path)]
    score = json.loads(ok("eval", "classify", str(table), *model, "--json"))
    assert score["accuracy"] == 75 and score["texts"] == 24 and score["length"] == "full"
    assert "accuracy 0.00" in ok("eval", "classify", str(table), *model, "--limit", "6", "--length", "full")
    table.write_text("query\tpassage\tlabel\nwhat\ta\t1\nwhat\tb\t0\nwhat\tc\t0\n")
    score = json.loads(ok("eval", "rank", str(table), "--model", str(engines["ranker"].path), "--json"))
    assert score["queries"] == 1 and 0 < score["mrr_at_10"] <= 100
    conll = tmp_path / "test.conll"
    conll.write_text("ada B-PER\nlives O\n")
    assert "1 entities in 1 sentences" in ok("eval", "tag", str(conll), "--model", str(engines["tagger"].path))
    assert "qla classify" in refused("eval", "rank", str(table), *model)
    assert "no text column" in refused("eval", "classify", str(conll), *model)
