"""Pipelines beside those of transformers 5, which run on the engine's own outputs and on the float32 checkpoint.

On the engine's outputs everything must be equal but for rounding. On the checkpoint, labels of random weights are
close together: so their scores are compared by label.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
pytest.importorskip("transformers", reason="transformers is not installed")

from model_configs import NOISE, PAIR, TEXTS, TRIED_LAYERS  # noqa: E402
from pipeline_tools import Beside, near, shape_of  # noqa: E402

ROUNDING = 1e-6
"""Softmaxes of three to nine float32 logits, in float32 there and in double here."""
INT8 = 5 * NOISE * TRIED_LAYERS**0.5
"""Five deviations of a logit of order one; a probability moves by less."""
NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG"]
LONG = " ".join(TEXTS * 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(scope="module")
def classifier(folder):
    labels = ["negative", "neutral", "positive"]
    return Beside.open(folder / "labels", "text-classification", "bert", "sequence-classification", labels)


@pytest.fixture(scope="module")
def independent(folder):
    labels = ["toxic", "rude", "spam", "joy"]
    problem = "multi_label_classification"
    return Beside.open(
        folder / "multi", "text-classification", "roberta", "sequence-classification", labels, problem
    )


@pytest.fixture(scope="module")
def zero_shot(folder):
    labels = ["contradiction", "neutral", "entailment"]
    return Beside.open(folder / "nli", "zero-shot-classification", "bert", "sequence-classification", labels)


@pytest.fixture(scope="module", params=["bert-cased", "camembert", "roberta"])
def tagger(folder, request):
    return Beside.open(folder / request.param, "token-classification", request.param, "token-classification", NER)


@pytest.fixture(scope="module")
def extractor(folder):
    return Beside.open(folder / "features", "feature-extraction", "bert", "embedding")


def check(beside: Beside, *args, tolerance: float = ROUNDING, **options):
    """Compares one call, and gives what it gave."""
    with warnings.catch_warnings():
        # transformers' on tokenizers without words, and ours on texts that are cut
        warnings.simplefilter("ignore", UserWarning)
        expected = beside.same(*args, **options)
        found = beside.ours(*args, **options)
    assert near(found, expected, tolerance), (found, expected)
    assert shape_of(found) == shape_of(expected)
    return found


# ---- text classification


@pytest.mark.parametrize(
    "options",
    [
        {}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"top_k": 99}, {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none", "top_k": None}, {"function_to_apply": "softmax", "top_k": 2},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "inputs",
    [
        TEXTS[0],
        [TEXTS[0]],
        list(TEXTS),
        {"text": PAIR[0], "text_pair": PAIR[1]},
        [{"text": PAIR[0], "text_pair": PAIR[1]}, {"text": TEXTS[1]}],
        [[list(PAIR)]],
    ],
    ids=["text", "list of one", "list", "pair", "list of pairs", "nested pair"],
)
def test_text_classification(classifier, inputs, options):
    check(classifier, inputs, **options)


def test_labels_that_are_independent(independent):
    for options in ({}, {"top_k": None}, {"function_to_apply": "softmax", "top_k": None}):
        check(independent, TEXTS[1], **options)
        check(independent, list(TEXTS), **options)


def test_top_k_of_the_pipeline_and_of_the_call(classifier):
    """transformers wraps a text's list once more where the pipeline was made with top_k; so does this."""
    from qla_runtime import pipeline

    with_default = Beside(pipeline("text-classification", classifier.ours.engine, top_k=2), classifier.same, None)
    classifier.same._postprocess_params.update(top_k=2, _legacy=False)
    try:
        assert len(check(with_default, TEXTS[0])) == 1
        check(with_default, TEXTS[0], top_k=None)
        check(with_default, list(TEXTS))
    finally:
        classifier.same._postprocess_params.clear()


def test_scores_are_near_those_of_the_float_model(classifier):
    for text in TEXTS:
        ours, theirs = (
            {each["label"]: each["score"] for each in run(text, top_k=None)}
            for run in (classifier.ours, classifier.theirs)
        )
        assert ours == pytest.approx(theirs, abs=INT8)


def test_a_generator(classifier):
    expected = list(classifier.same(text for text in TEXTS))
    found = classifier.ours(text for text in TEXTS)
    assert iter(found) is found and near(list(found), expected, ROUNDING)


def test_cut_texts(classifier):
    check(classifier, LONG, truncation=True)
    check(classifier, [LONG, TEXTS[0]], truncation=True, max_length=16)
    check(classifier, {"text": LONG, "text_pair": PAIR[1]}, truncation=True, max_length=30)


# ---- zero-shot classification


@pytest.mark.parametrize("inputs", [TEXTS[0], [TEXTS[0]], list(TEXTS[:3])], ids=["text", "list of one", "list"])
@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": ["rain", "a boat", "prices"]},
        {"candidate_labels": "rain, a boat ,prices,"},
        {"candidate_labels": ["rain", "a boat"], "multi_label": True},
        {"candidate_labels": "rain"},
        {"candidate_labels": ["rain", "wind"], "hypothesis_template": "The text is about {}, or not."},
    ],
    ids=str,
)
def test_zero_shot_classification(zero_shot, inputs, options):
    check(zero_shot, inputs, **options)


def test_candidate_labels_by_position(zero_shot):
    found = check(zero_shot, TEXTS[0], ["rain", "wind"])
    assert sum(found["scores"]) == pytest.approx(1)


def test_long_premises_are_cut_and_hypotheses_are_not(zero_shot):
    with pytest.warns(UserWarning, match="1 of 1 texts were longer than the model reads"):
        found = zero_shot.ours(LONG, candidate_labels=["rain", "wind"])
    assert near(found, zero_shot.same(LONG, candidate_labels=["rain", "wind"]), ROUNDING)


# ---- token classification


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max", None])
def test_token_classification(tagger, strategy):
    options = {} if strategy is None else {"aggregation_strategy": strategy}
    for ignored in ({}, {"ignore_labels": []}, {"ignore_labels": ["O", "PER", "B-PER"]}):
        check(tagger, TEXTS[0], **options, **ignored)
        check(tagger, [*TEXTS, "", "Ada"], **options, **ignored)
        check(tagger, [TEXTS[0]], **options, **ignored)


@pytest.mark.parametrize("stride", [0, 7, 20])
def test_long_texts_in_windows(tagger, stride):
    found = check(tagger, LONG, aggregation_strategy="simple", stride=stride)
    assert found[-1]["end"] > len(LONG) * 0.9, "the end was read, too"
    check(tagger, [TEXTS[0], LONG], aggregation_strategy="max", stride=stride, ignore_labels=[])


def test_lists_of_words(tagger):
    words = TEXTS[0].split()
    for options in ({}, {"aggregation_strategy": "simple"}, {"aggregation_strategy": "first", "delimiter": "--"}):
        check(tagger, words, is_split_into_words=True, **options)
        check(tagger, [words, TEXTS[1].split()], is_split_into_words=True, **options)


def test_tags_are_near_those_of_the_float_model(tagger):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for text in TEXTS:
            ours, theirs = (each(text, ignore_labels=[]) for each in (tagger.ours, tagger.theirs))
            assert [each["word"] for each in ours] == [each["word"] for each in theirs]
            scores = [[each["score"] for each in found] for found in (ours, theirs)]
            assert np.abs(np.subtract(*scores)).max() <= INT8


# ---- feature extraction


def test_feature_extraction(extractor):
    found = check(extractor, TEXTS[0])
    assert np.array(found).shape == (1, len(found[0]), 128)
    check(extractor, list(TEXTS))
    check(extractor, [TEXTS[0]])
    check(extractor, LONG, truncation=True)
    check(extractor, LONG, tokenize_kwargs={"truncation": True, "max_length": 12})


def test_features_as_arrays(extractor):
    found, theirs = (each(TEXTS[0], return_tensors=True) for each in (extractor.ours, extractor.same))
    assert found.dtype == np.float32 and np.array_equal(found, theirs.numpy())


def test_features_are_near_those_of_the_float_model(extractor):
    from model_configs import hidden_tolerance

    for text in TEXTS:
        ours, theirs = (np.array(each(text)[0]) for each in (extractor.ours, extractor.theirs))
        cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert cosine.min() >= hidden_tolerance(TRIED_LAYERS)
