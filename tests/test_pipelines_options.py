"""Pipelines of labels, tags and features without torch: lengths, policies, long texts, wrong calls, pickles."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, Escalate, InputError, UnsupportedError, pipeline
from qla_runtime.pipelines import ALIASES, PIPELINES

TEXTS = ["a b", "c d e f g", "h"]
LONG = "a b c " * 40  # 240 characters, as many tokens; the packages read 64


@pytest.fixture(scope="module")
def engines(tmp_path_factory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("packages")
    made = {
        "labels": tiny_package("sequence-classification", labels=["bad", "so", "good"]),
        "nli": tiny_package("sequence-classification", labels=["contradiction", "neutral", "ENTAILMENT"]),
        "ranker": tiny_package("sequence-classification", problem="regression", labels=["relevance"]),
        "tags": tiny_package("token-classification", labels=["O", "B-PER", "I-PER"]),
        "vectors": tiny_package("embedding"),
        "answers": tiny_package("span-qa"),
    }
    return {name: Engine(package.save(folder / name), num_threads=1) for name, package in made.items()}


@pytest.fixture
def classifier(engines):
    return pipeline("text-classification", engines["labels"])


@pytest.fixture
def zero_shot(engines):
    return pipeline("zero-shot-classification", engines["nli"])


@pytest.fixture
def tagger(engines):
    return pipeline("token-classification", engines["tags"])


@pytest.fixture
def extractor(engines):
    return pipeline("feature-extraction", engines["vectors"])


# ---- what runs is what the engine runs


@pytest.mark.parametrize("length", [None, "fast", "full"])
def test_labels_are_those_of_the_engine(classifier, length):
    expected = classifier.engine.classify(TEXTS, length=length, top_k=None)
    found = classifier(TEXTS, top_k=None, length=length)
    assert found == [result["scores"] for result in expected]
    assert [classifier(text, length=length) for text in TEXTS] == [[scores[0]] for scores in found]


@pytest.mark.parametrize("strategy", ["none", "simple", "max"])
def test_tags_are_those_of_the_engine(tagger, strategy):
    for text, expected in zip(TEXTS, tagger.engine.tag(TEXTS, "fast", aggregation_strategy=strategy), strict=True):
        found = tagger(text, length="fast", aggregation_strategy=strategy)
        key = "entity" if strategy == "none" else "entity_group"
        assert [(each[key], each["start"], each["end"], each["score"]) for each in found] == [
            (span["label"], span["start"], span["end"], span["score"]) for span in expected
        ]


def test_features_are_those_of_the_engine(extractor):
    ids = [encoding.ids for encoding in extractor.engine.text_encoder.encode(TEXTS).encodings]
    expected = extractor.engine.forward(ids, length="fast").last_hidden_state
    found = extractor(TEXTS, length="fast", return_tensors=True)
    assert all(np.array_equal(a[0], b) and a.shape[0] == 1 for a, b in zip(found, expected, strict=True))
    assert extractor(TEXTS[0], length="fast") == found[0].tolist()


def test_features_come_from_any_model(engines):
    for engine in engines.values():
        assert np.shape(pipeline("feature-extraction", engine)("a b")) == (1, 4, 64)


def test_entailment_is_what_the_engine_says(zero_shot):
    found = zero_shot(
        "a b", candidate_labels=["c", "d"], hypothesis_template="e {}", multi_label=True, length="fast"
    )
    ids = zero_shot.engine.text_encoder.encode([("a b", "e c"), ("a b", "e d")])
    types = np.split(ids.batch.type_ids, ids.batch.offsets[1:-1])
    rows = [encoding.ids for encoding in ids.encodings]
    logits = zero_shot.engine.forward(rows, token_type_ids=types, length="fast").logits
    expected = {label: 1 / (1 + np.exp(row[0] - row[2])) for label, row in zip("cd", logits, strict=True)}
    # The engine makes doubles of the float32 logits; the formula here is float32.
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(expected, rel=1e-6)
    assert found["scores"] == sorted(found["scores"], reverse=True) and found["sequence"] == "a b"


# ---- lengths and policies


def test_one_length_per_input(classifier):
    mixed = classifier(TEXTS, length=["fast", "full", "fast"])
    assert mixed == [classifier(text, length=name)[0] for text, name in zip(TEXTS, ["fast", "full", "fast"])]  # noqa: B905
    with pytest.raises(InputError, match="a list of 2 entries for 3 inputs"):
        classifier(TEXTS, length=["fast", "full"])


def test_escalation(classifier, tagger, zero_shot):
    for run in (classifier, tagger, lambda *args, **more: zero_shot(*args, candidate_labels="c, d", **more)):
        always = run(TEXTS, length=Escalate("fast", "full", threshold=1.0))
        never = run(TEXTS, length=Escalate("fast", "full", threshold=0.0))
        assert (always, never) == (run(TEXTS, length="full"), run(TEXTS, length="fast"))


def test_escalation_needs_probabilities(classifier, extractor):
    with pytest.raises(UnsupportedError, match="the scores of this call are no probabilities"):
        classifier(TEXTS, function_to_apply="none", length=Escalate("fast", "full"))
    with pytest.raises(UnsupportedError, match=r"pipeline\('feature-extraction'\) gives vectors without one"):
        extractor(TEXTS, length=Escalate("fast", "full"))


@pytest.mark.usefixtures("cache")
def test_a_budget(classifier, engines):
    assert classifier("a b", latency_ms=60_000) == classifier("a b")
    hurried = pipeline("ner", engines["tags"], latency_ms=60_000)
    assert hurried(TEXTS) == hurried(TEXTS, length="full")


# ---- texts that are too long


def test_a_cut_text_is_said_to_be(classifier, tagger, extractor):
    for run in (classifier, tagger, extractor):
        with pytest.warns(
            UserWarning, match="1 of 2 texts were longer than the model reads and were cut"
        ) as caught:
            run(["a", LONG])
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run([LONG], truncation=True)
            run(TEXTS)
        with pytest.raises(InputError, match=r"inputs\[1\] has more than 64 tokens.*truncation=True"):
            run(["a", LONG], truncation=False)
        with pytest.raises(InputError, match=r"inputs has more than 64 tokens"):
            run(LONG, truncation=False)


def test_a_number_in_an_iterator_counts_from_its_beginning(classifier):
    with pytest.raises(InputError, match=r"inputs\[2\] has more than 64 tokens"):
        list(classifier(iter(["a", "b", LONG]), truncation=False))
    with pytest.raises(InputError, match=r"inputs\[3\] is 7; it must be a text"):
        list(classifier((each for each in ["a", "b", "c", 7]), batch_size=2))


def test_max_length(classifier, extractor):
    assert np.shape(extractor(LONG, truncation=True, max_length=8)) == (1, 8, 64)
    assert np.shape(extractor("a b", max_length=8)) == (1, 4, 64)
    assert classifier(LONG, truncation=True, max_length=12) == classifier(LONG[:20], truncation=True)
    for least in (1, 2, 7):
        with pytest.raises(InputError, match=f"max_length is {least}; it must be an integer of at least 8; this"):
            classifier({"text": LONG, "text_pair": "a"}, truncation=True, max_length=least)
    with pytest.raises(InputError, match="max_length is 65; it must be at most 64; this model reads 64 tokens"):
        extractor("a", max_length=65)


def test_stride_reads_everything(tagger):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = tagger(LONG, aggregation_strategy="simple", stride=10, ignore_labels=[])
    assert found[-1]["end"] >= len(LONG.rstrip())
    with pytest.raises(InputError, match="stride is 10 without an aggregation_strategy"):
        tagger(LONG, stride=10)
    with pytest.raises(InputError, match="stride is 62; it must be at most 61; windows have 62 tokens of text"):
        tagger(LONG, stride=62, aggregation_strategy="simple")


# ---- forms of input


def test_what_is_no_list_gives_an_iterator(classifier):
    class Data:
        def __len__(self):
            return len(TEXTS)

        def __getitem__(self, i):
            return TEXTS[i]

    expected = classifier(TEXTS)
    assert classifier(np.array(TEXTS)) == classifier(tuple(TEXTS)) == expected
    for stream in (iter(TEXTS), Data(), dict.fromkeys(TEXTS).keys()):
        found = classifier(stream)
        assert not isinstance(found, list) and list(found) == expected


def test_arguments_are_checked_before_the_first_result(classifier, zero_shot):
    with pytest.raises(InputError, match="top_k is 0"):
        classifier(iter(TEXTS), top_k=0)
    with pytest.raises(InputError, match="candidate_labels is missing"):
        zero_shot(iter(TEXTS))


def test_pickles(tagger):
    tagger(LONG, stride=5, aggregation_strategy="simple")
    again = pickle.loads(pickle.dumps(pipeline("ner", tagger.engine, aggregation_strategy="max", stride=3)))
    assert again(TEXTS) == tagger(TEXTS, aggregation_strategy="max", stride=3)


# ---- wrong calls


@pytest.mark.parametrize(
    "kind, call, message",
    [
        ("labels", lambda p: p([]), "inputs is an empty list"),
        ("labels", lambda p: p(None), "inputs is None; it must be a text"),
        ("labels", lambda p: p(["a", b"b"]), r"inputs\[1\] is b'b'; it must be a text"),
        ("labels", lambda p: p([["a", "b"]]), r"inputs\[0\] is .*\{'text': 'first', 'text_pair': 'second'\}"),
        ("labels", lambda p: p(("a", ("b", "c"))), r"inputs\[1\] is .*a pair of texts as a dict"),
        ("labels", lambda p: p({"text_pair": "a"}), "a pair of texts is a dict of 'text' and 'text_pair' alone"),
        ("labels", lambda p: p({"text": "a", "textpair": "b"}), "a dict of 'text' and 'text_pair' alone"),
        ("labels", lambda p: p({"text": 1}), r"inputs\['text'\] is 1"),
        ("labels", lambda p: p("\ud800"), "inputs holds a lone surrogate"),
        ("labels", lambda p: p("a", top_k=0), "top_k is 0"),
        ("labels", lambda p: p("a", top_k=1.5), "top_k is 1.5"),
        ("labels", lambda p: p("a", function_to_apply="relu"), "function_to_apply is 'relu'; use one of sigmoid"),
        ("labels", lambda p: p("a", truncation="yes"), "truncation is 'yes'; use True or False"),
        ("labels", lambda p: p("a", topk=3), "topk is no option of pipeline.'text-classification'., which takes"),
        ("labels", lambda p: p("a", length="slow"), "slow"),
        ("tags", lambda p: p("a", aggregation_strategy="mean"), "aggregation_strategy is 'mean'; use one of none"),
        ("tags", lambda p: p("a", ignore_labels="O"), "ignore_labels is 'O'; it must be a list"),
        ("tags", lambda p: p("a", is_split_into_words=True), "inputs is 'a'; with is_split_into_words it must be"),
        ("tags", lambda p: p([["a", 1]], is_split_into_words=True), r"inputs\[0\]\[1\] is 1; it must be a text"),
        ("vectors", lambda p: p(np.array("a")), r"inputs is array\('a'.*\); it must be a text"),
        ("vectors", lambda p: p("a", return_tensors="pt"), "return_tensors is 'pt'; it must be True or False"),
        ("vectors", lambda p: p("a", tokenize_kwargs={"stride": 1}), "tokenize_kwargs has 'stride'"),
    ],
)
def test_wrong_calls_are_refused_and_the_next_one_is_answered(engines, kind, call, message):
    pipe = pipeline(model=engines[kind])
    expected = pipe("a b")
    with pytest.raises(InputError, match=message):
        call(pipe)
    assert pipe("a b") == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "candidate_labels is missing"),
        ({"candidate_labels": []}, "candidate_labels is an empty list"),
        ({"candidate_labels": " , "}, "candidate_labels is an empty list"),
        ({"candidate_labels": ["a", 1]}, r"candidate_labels\[1\] is of type int"),
        ({"candidate_labels": "a", "hypothesis_template": "no place"}, "a sentence with {} where the label goes"),
        ({"candidate_labels": "a", "hypothesis_template": "{1} {"}, "a sentence with {} where the label goes"),
        ({"candidate_labels": "a", "hypothesis_template": "{} {}"}, "where the label goes, once"),
        ({"candidate_labels": "a", "hypothesis_template": "{0}{0}"}, "where the label goes, once"),
        ({"candidate_labels": "a", "hypothesis_template": "{:>99999999999}"}, "where the label goes, once"),
        ({"candidate_labels": "a", "hypothesis_template": "{0.size}"}, "where the label goes, once"),
        ({"candidate_labels": "a", "hypothesis_template": "{0[5]}"}, "where the label goes, once"),
        ({"candidate_labels": "a", "multi_label": 1}, "multi_label is 1; it must be True or False"),
    ],
)
def test_wrong_candidates_are_refused(zero_shot, options, message):
    with pytest.raises(InputError, match=message):
        zero_shot("a b", **options)


def test_models_that_do_something_else(engines):
    with pytest.raises(UnsupportedError, match=r"has a label 'entailment' and others; '.*' has bad, so, good"):
        pipeline("zero-shot-classification", engines["labels"])
    with pytest.raises(UnsupportedError, match=r"pipeline\('token-classification'\) needs a token-classification"):
        pipeline("ner", engines["labels"])
    ranker = pipeline("text-classification", engines["ranker"])
    with pytest.raises(
        UnsupportedError, match="one label.*function_to_apply='none' or function_to_apply='sigmoid'"
    ):
        ranker("a")
    (value,) = ranker("a", function_to_apply="none")
    (likely,) = ranker("a", function_to_apply="sigmoid")
    assert value["score"] == engines["ranker"].classify("a")["score"]
    assert likely["score"] == pytest.approx(1 / (1 + np.exp(-value["score"])))


# ---- opening


def test_every_task_and_every_other_name(engines):
    models = {"question-answering": "answers", "text-classification": "labels", "token-classification": "tags"}
    models |= {"feature-extraction": "vectors", "zero-shot-classification": "nli"}
    assert models.keys() == PIPELINES.keys()
    for task, model in models.items():
        assert pipeline(task, engines[model]).task == task
    for other, task in ALIASES.items():
        assert pipeline(other, engines[models[task]]).task == task
    found = {name: pipeline(model=engine).task for name, engine in engines.items()}
    assert found == {value: key for key, value in models.items()} | {
        "ranker": "text-classification",
        "nli": "text-classification",
    }


def test_an_engine_starts_without_pipelines():
    code = (
        "import sys, qla_runtime as q; a = 'qla_runtime.pipelines' in sys.modules; print(a, q.pipeline.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "pipeline"]
