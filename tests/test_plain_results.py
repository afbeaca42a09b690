"""Results are plain JSON types, whatever chose the length config, and their ``length`` can be passed again."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from package_tools import tiny_package

from qla_runtime import Engine, Escalate, InputError, LatencyBudget, LengthConfig, MaxLoss, UnsupportedError, cli
from qla_runtime.lengths.cost_model import COUNTS, CostModel, Fit

CUSTOM = LengthConfig.ratio(np.float32([1 / 3, 0.1]), keep_cls=True)
COUNTED = LengthConfig.tokens(np.array([9, 4]))
TEXTS, PAIRS = ["ada, bob.", "it is the sea. " * 3, "no"], ["who?", "what is it?", "x"]

LENGTHS = {
    "none": None,
    "name": "fast",
    "config": CUSTOM,
    "counts": COUNTED,
    "spelled": str(CUSTOM),
    "frontier": "frontier-1",
    "list": ["full", CUSTOM, "frontier-1"],
    "budget": LatencyBudget(np.float32(0.0)),
    "large budget": LatencyBudget(10**6),
    "loss": MaxLoss(np.int64(10)),
    "escalate": Escalate("fast", "frontier-1", np.float32(0.5)),
    "escalate config": Escalate(CUSTOM, COUNTED, 1),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Opens a tiny package of a task whose frontier holds the fastest config, and the only one measured beside
    ``full``."""
    engines = {}

    def open_package(task: str, **options) -> Engine:
        key = (task, *sorted(options))
        if key not in engines:
            package = tiny_package(task, **options)
            package.length_configs["frontier"][0]["values"] = [3, 2]
            for entry in package.length_configs["configs"] + package.length_configs["frontier"]:
                entry.pop("accuracy", None)
                if entry.get("name", "full") == "full":
                    entry["accuracy"] = {"metric": "f1", "value": 80 if "name" in entry else 75, "data": "some"}
            engines[key] = Engine(package.save(tmp_path_factory.mktemp("plain") / "package"))
            rows = tuple(1e-3 * (name == "rows") for name in COUNTS)
            engines[key].timekeeper.use(Fit(CostModel(2, 64, 128, rows, 0.1), time.time()))
        return engines[key]

    return open_package


def plain(value) -> bool:
    """Whether a value is made of JSON's types and nothing else, not even of classes derived from them."""
    if type(value) is dict:
        return all(type(key) is str and plain(entry) for key, entry in value.items())
    if type(value) is list:
        return all(map(plain, value))
    return value is None or type(value) in (str, int, float, bool)


def tagged(spans) -> dict:
    """The spans of a text as a dict."""
    return {"spans": list(spans), **vars(spans)}


def forwarded(output) -> list[dict]:
    """What an EncoderOutput says of its lengths."""
    columns = zip(output.length, output.length_config, output.accuracy, strict=True)
    names = ("length", "length_config", "accuracy")
    return [dict(zip(names, row, strict=True)) | {"budget_met": output.budget_met} for row in columns]


METHODS = {
    "answer": ("span-qa", {}, lambda e, n: e.answer(PAIRS, TEXTS, n)),
    "details": ("span-qa", {}, lambda e, n: e.answer(PAIRS, TEXTS, n, details=True)),
    "classify": ("sequence-classification", {}, lambda e, n: e.classify(TEXTS, length=n)),
    "top_k": ("sequence-classification", {}, lambda e, n: e.classify(TEXTS, PAIRS, n, top_k=None)),
    "regression": (
        "sequence-classification",
        {"problem": "regression", "labels": ["relevance"]},
        lambda e, n: e.classify(TEXTS, length=n),
    ),
    "rank": (
        "sequence-classification",
        {"problem": "regression", "labels": ["relevance"]},
        lambda e, n: e.rank("who?", TEXTS, n),
    ),
    "tag": ("token-classification", {}, lambda e, n: [tagged(spans) for spans in e.tag(TEXTS, n)]),
    "forward": ("embedding", {}, lambda e, n: forwarded(e.forward([[1, 2], [3] * 20, [4]], length=n))),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("method", METHODS)
def test_results_are_plain_json_and_their_length_can_be_passed_again(opened, method, length):
    task, options, call = METHODS[method]
    engine = opened(task, **options)
    if length.startswith("escalate") and method in ("regression", "rank", "forward"):
        with pytest.raises(UnsupportedError, match="Escalate"):
            call(engine, LENGTHS[length])
        return
    results = call(engine, LENGTHS[length])
    assert plain(results), results
    assert json.loads(json.dumps(results)) == results
    for result in results:
        assert type(result["length"]) is str
        config = LengthConfig(**result["length_config"])
        known = engine.lengths | engine.frontier
        if result["length"] in known:
            entry = known[result["length"]]
            assert config == entry.config
            assert result["accuracy"] == (entry.accuracy and vars(entry.accuracy))
        else:
            assert config == LengthConfig.parse(result["length"])
    again = call(engine, [result["length"] for result in sorted(results, key=lambda r: r.get("index", 0))])
    if length.startswith("escalate"):
        assert [r["length"] for r in again] == [r["length"] for r in results]
    else:
        assert [r | {"budget_met": None} for r in results] == again


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_under_load_names_the_config_of_the_frontier(opened, method):
    task, options, call = METHODS[method]
    (first, *_) = call(opened(task, **options), LatencyBudget(0))
    assert first["length"] == "frontier-1" and first["budget_met"] is False
    assert first["length_config"] == {"rule": "tokens", "values": [3, 2], "keep_cls": False}
    assert first["accuracy"] == {"metric": "f1", "value": 75.0, "data": "some"}


@pytest.mark.parametrize("task", ["span-qa", "sequence-classification", "token-classification"])
def test_escalate_reports_what_ran(opened, task):
    call = {METHODS[m][0]: METHODS[m][2] for m in ("answer", "classify", "tag")}[task]
    for threshold, ran in ((0.0, ["fast"]), (1.0, ["fast", "frontier-1"])):
        results = call(opened(task), Escalate("fast", "frontier-1", threshold))
        assert [r["ran"] for r in results] == [ran] * 3 and {r["length"] for r in results} == {ran[-1]}


def test_the_command_line_prints_plain_json_too(opened, capsys, tmp_path):
    for task, arguments in (
        ("span-qa", ["answer", "who?", "--context", "ada, bob."]),
        ("sequence-classification", ["classify", "ada"]),
        ("token-classification", ["tag", "ada, bob."]),
    ):
        for options in (["--length", ".5,.4"], ["--length", "frontier-1"], ["--max-loss", "10"]):
            assert cli.main([*arguments, "--model", str(opened(task).path), *options, "--json"]) == 0
            result = json.loads(capsys.readouterr().out)
            result = result[0] if isinstance(result, list) else result
            expected = "ratio(0.5, 0.4)" if ".5" in options[1] else "frontier-1"
            assert result["length"] == expected and set(result["length_config"]) == {"rule", "values", "keep_cls"}
            assert (result["accuracy"] or {}).get("value") == (None if ".5" in options[1] else 75.0)


# ---- spelled configs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        LengthConfig.ratio((1.0, 0.5)),
        LengthConfig.ratio((1 / 3, 1e-7), keep_cls=False),
        LengthConfig.ratio(np.float32([0.9, 0.1]), keep_cls=True),
        LengthConfig.tokens((2**31 - 1, 1_000_001, 2)),
    ],
)
def test_a_spelled_config_reads_back_exactly(config):
    assert LengthConfig.parse(str(config)) == config == LengthConfig(**json.loads(json.dumps(config.to_json())))


@pytest.mark.parametrize(
    "text",
    ["", "ratio", "ratio()", "ratio(1, 0.5", "ratio(1, x)", "ratio(1,,1)", "tokens(keep_cls=True)"],
)
def test_what_spells_no_config(text):
    with pytest.raises(InputError, match="spells no length config"):
        LengthConfig.parse(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("ratio(1)", "1 entries, but this model has 2 layers"),
        ("ratio(0.5, 1)", "may not rise"),
        ("tokens(0, 0)", "whole number of tokens"),
        ("ratio(nan, 1)", "a share above 0"),
        ("ratios(1, 1)", "not one of this package's configs"),
    ],
)
def test_a_bad_spelled_length_is_refused(opened, text, words):
    with pytest.raises(InputError, match=words):
        opened("embedding").encode("a", text)


def test_a_named_length_of_another_package_is_spelled(opened):
    engine = opened("span-qa")
    own = engine.lengths["fast"]
    other = type(own)("fast", CUSTOM, 1, 1.0)
    assert engine.answer("a", "b", own)["length"] == "fast"
    assert engine.answer("a", "b", other)["length"] == str(CUSTOM)


def test_explain_says_where_accuracies_are_missing(opened, tmp_path):
    assert "no accuracy of 'full'" not in opened("span-qa").explain()
    package = tiny_package()
    for entry in package.length_configs["configs"]:
        entry.pop("accuracy", None)
    assert "no accuracy of 'full'" in Engine(package.save(tmp_path / "package")).explain()
