"""The search for length configs, from data to package.

The models are tiny and random; none of this says anything about accuracy.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from package_tools import edit_json, tiny_package
from search_tools import LAYERS, OPTIONS, found, run, squad, sts

from qla_runtime import Engine, InputError, LengthConfig, UnsupportedError, cli
from qla_runtime.search import search
from qla_runtime.search.cost import macs_share, time_share
from qla_runtime.search.evolve import Point, frontier
from qla_runtime.search.package import Package
from qla_runtime.search.plot import draw
from qla_runtime.search.selection import Questions, read_selection


@pytest.fixture
def data(tmp_path) -> Path:
    return squad(tmp_path / "dev.json")


@pytest.fixture
def package(tmp_path) -> Path:
    return tiny_package(layers=LAYERS).save(tmp_path / "package")


def test_macs_are_those_that_the_engine_counts(package, data):
    opened = Package(package, 1)
    chosen = read_selection(opened, data, "odd").sample(6)
    sequences = chosen.sequences(opened.text_encoder())
    share = macs_share(opened.macs, np.diff(sequences.offsets), LAYERS)
    config = LengthConfig.ratio((0.75, 0.5, 0.25))
    texts = [q.question for q in chosen.items], [q.context for q in chosen.items]
    counted = [sum(result["macs"] for result in opened.engine.answer(*texts, length)) for length in (config, None)]
    assert share(config) == counted[0] / counted[1] < 1


def test_time_is_a_share_of_full(package, data):
    opened = Package(package, 1)
    share = time_share(opened.engine, read_selection(opened, data, "odd").sequences(opened.text_encoder()))
    assert share(LengthConfig.ratio([1.0] * LAYERS)) == 1.0
    assert 0.05 < share(LengthConfig.ratio([0.1] * LAYERS)) < 5


def test_samples_are_spread_over_the_file():
    whole = Questions(list(range(10)), "numbers", 10, 1)
    assert whole.sample(4).items == [0, 2, 5, 7]
    assert whole.sample(4).description == "numbers, 4 of 10 items"
    assert whole.sample(None).items == whole.sample(50).items == list(range(10))


def test_the_package_gets_the_new_configs(package, data, tmp_path):
    edit_json(
        package, "length_configs.json", lambda old: old["configs"].append(old["configs"][2] | {"name": "own"})
    )
    card = "# Mine\n\n## Length configs\n\nold\n\n## Notes\n\nkept\n"
    (package / "README.md").write_text(card)
    options = replace(OPTIONS, balanced_loss=5, fast_loss=40)
    report = run(package, data, tmp_path / "run", options)
    engine = Engine(package)
    assert list(engine.lengths) == ["full", "balanced", "fast", "own"]
    lengths = json.loads((package / "length_configs.json").read_text())
    full, balanced, fast, own = lengths["configs"]
    assert full["values"] == [1.0] * LAYERS and own["values"] == pytest.approx(
        [1 - 0.8 * i / 3 for i in (1, 2, 3)]
    )
    assert [entry["values"] for entry in lengths["frontier"]] == [e["values"] for e in report["frontier"]]
    for entry in (full, balanced, fast, *lengths["frontier"]):
        assert entry["accuracy"]["metric"] == "f1"
        assert entry["accuracy"]["data"] == "dev.json, articles at odd positions, 6 of 8 items"
        assert entry["keep_cls"] is True and 0 < entry["macs_share"] <= 1
        assert all(float(value * 16).is_integer() for value in entry["values"])
    for entry in (balanced, fast):
        assert entry["macs_share"] == pytest.approx(engine.lengths[entry["name"]].macs_share, abs=5.001e-5)
    for name, loss in (("balanced", 5), ("fast", 40)):
        chosen = report["configs"][name]
        within = [e for e in report["frontier"] if e["accuracy"] >= report["configs"]["full"]["accuracy"] - loss]
        assert chosen["cost"] == min(entry["cost"] for entry in within)
        assert chosen["constant_rate"]["macs_share"] >= chosen["macs_share"]
    text = (package / "README.md").read_text()
    assert text.startswith("# Mine\n\n## Length configs\n\nWhat each") and text.endswith("## Notes\n\nkept\n")
    assert "| own | ratio |" in text and "old" not in text
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_scores_are_those_of_eval(package, data, tmp_path):
    from qla_runtime.evaluation import squad as evaluate

    report = run(package, data, tmp_path / "run", replace(OPTIONS, sample=None, balanced_loss=100))
    for entry in report["configs"].values():
        score = evaluate.squad(Engine(package), data, LengthConfig.ratio(entry["values"]), articles="odd")
        assert entry["accuracy"] == pytest.approx(score.f1, rel=1e-14)  # the order of a sum


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, told from a real one."""


def interrupt(monkeypatch, after: int) -> None:
    """Lets a search measure so many configs, and then no more."""
    score, left = Questions.score, itertools.count(after, -1)

    def limited(self, engine, config):
        if next(left) == 0:
            raise Interrupted
        return score(self, engine, config)

    monkeypatch.setattr(Questions, "score", limited)


@pytest.mark.parametrize("screen", [None, 3])
def test_a_resumed_search_equals_an_uninterrupted_one(data, tmp_path, monkeypatch, screen):
    options = replace(OPTIONS, screen=screen)
    tiny = tiny_package(layers=LAYERS)
    ours, theirs = (tiny.save(tmp_path / name / "package") for name in ("ours", "theirs"))
    run(theirs, data, tmp_path / "theirs-run", options)
    lines, result = found(tmp_path / "theirs-run")
    untouched = (ours / "length_configs.json").read_bytes()
    done = 0
    for step in (1, 6, 5):
        interrupt(monkeypatch, step)
        with pytest.raises(Interrupted):
            run(ours, data, tmp_path / "ours-run", options)
        monkeypatch.undo()
        done += step
        assert (tmp_path / "ours-run" / "evaluations.jsonl").read_text().splitlines() == lines[:done]
        assert (ours / "length_configs.json").read_bytes() == untouched
    run(ours, data, tmp_path / "ours-run", options)
    assert found(tmp_path / "ours-run") == (lines, result)
    for name in ("length_configs.json", "manifest.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # Finished: nothing is left to measure.
    interrupt(monkeypatch, 0)
    run(ours, data, tmp_path / "ours-run", options)
    assert found(tmp_path / "ours-run") == (lines, result)


def test_a_finished_search_goes_on_with_more_generations(data, tmp_path):
    tiny = tiny_package(layers=LAYERS)
    ours, theirs = (tiny.save(tmp_path / name) for name in ("ours", "theirs"))
    longer = replace(OPTIONS, generations=5, fast_loss=3)
    run(theirs, data, tmp_path / "theirs-run", longer)
    run(ours, data, tmp_path / "ours-run", OPTIONS)
    run(ours, data, tmp_path / "ours-run", longer)
    _, expected = found(tmp_path / "theirs-run")
    _, result = found(tmp_path / "ours-run")
    # Comparisons for a choice that no longer stands were measured besides.
    assert result.pop("measurements") >= expected.pop("measurements")
    assert result == expected


def test_screening_measures_the_frontier_on_the_whole_sample(package, data, tmp_path):
    report = run(package, data, tmp_path / "run", replace(OPTIONS, screen=3))
    lines = [json.loads(line) for line in found(tmp_path / "run")[0]]
    small = [line for line in lines if line["items"] == 3]
    large = {tuple(line["genome"]): line for line in lines if line["items"] == 6}
    assert len(small) + len(large) == len(lines) == report["measurements"] and len(large) < len(small)
    points = [Point(tuple(e["genome"]), e["origin"], e["cost"], e["accuracy"]) for e in small]
    assert {point.genome for point in frontier(points)} <= set(large)
    for entry in report["frontier"]:
        genome = tuple(round(16 * value) for value in entry["values"])
        assert large[genome]["accuracy"] == entry["accuracy"]
    assert report["data"].endswith("6 of 8 items")


def test_embeddings_and_labels(tmp_path):
    embedding = tiny_package("embedding", layers=2).save(tmp_path / "embedding")
    report = run(embedding, sts(tmp_path / "sts-dev.csv"), tmp_path / "embedding-run")
    assert report["metric"] == "spearman" and report["data"] == "sts-dev.csv, 5 of 5 items"

    classes = tiny_package("sequence-classification", layers=2).save(tmp_path / "classes")
    table = tmp_path / "dev.tsv"
    table.write_text("sentence\tlabel\n" + "".join(f"text {i} of {i * i}\t{i % 3}\n" for i in range(7)))
    report = run(classes, table, tmp_path / "classes-run")
    names = [result["label"] for result in Engine(classes).classify([f"text {i} of {i * i}" for i in range(6)])]
    rows = [i for i in range(7) if i != 6]
    expected = np.mean([names[i] == Engine(classes).labels[i % 3] for i in rows])
    assert report["metric"] == "accuracy"
    assert report["configs"]["full"]["accuracy"] == pytest.approx(100 * expected)

    scorer = tiny_package("sequence-classification", layers=2, problem="regression", labels=["s"])
    table.write_text("sentence1\tsentence2\tscore\n" + "".join(f"a {i}\tb {i * i}\t{i / 2}\n" for i in range(6)))
    report = run(scorer.save(tmp_path / "scorer"), table, tmp_path / "scorer-run")
    assert report["metric"] == "spearman" and len(report["frontier"]) >= 1


def test_time_as_cost(package, data, tmp_path):
    report = run(package, data, tmp_path / "run", replace(OPTIONS, cost="time", generations=1))
    assert report["configs"]["full"]["cost"] == 1.0
    lines, _ = found(tmp_path / "run")
    with pytest.raises(InputError, match="num_threads was 1 and is now 2"):
        search(package, data, replace(OPTIONS, cost="time"), run=tmp_path / "run", num_threads=2, draw=False)
    run(package, data, tmp_path / "run", replace(OPTIONS, cost="time", generations=1))
    assert found(tmp_path / "run")[0] == lines  # measured times are kept, not taken again


def test_the_frontier_is_drawn(package, data, tmp_path):
    """Everything measured, the constant rates in order, the frontier, and the chosen by name."""
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed (pip install matplotlib)")
    search(package, data, OPTIONS, run=tmp_path / "run", progress=False)
    pixels = image.imread(tmp_path / "run" / "frontier.png")
    assert pixels.shape[:2] == (750, 1200) and (pixels[..., :3].min(-1) < 0.9).mean() > 0.01

    points = [Point((i,), "constant" if i % 2 else "mutation", c, a) for i, (c, a) in enumerate(
        [(0.5, 70.0), (1.0, 80.0), (0.7, 75.0), (0.6, 60.0)])]  # fmt: skip
    best = frontier(points)
    (axes,) = draw(points, best, {"full": points[1]}, cost="macs", metric="f1", data="dev").axes
    measured, constant, steps, chosen = (line.get_xydata().tolist() for line in axes.get_lines())
    assert measured == [[point.cost, point.accuracy] for point in points]
    assert constant == [[0.6, 60.0], [1.0, 80.0]]
    assert steps == [[0.5, 70.0], [0.7, 75.0], [1.0, 80.0]] and chosen == [[1.0, 80.0]]
    assert [text.get_text() for text in axes.texts] == ["full"]
    assert (axes.get_xlabel().split(",")[0], axes.get_ylabel()) == ("arithmetic", "f1, percent")


def test_given_configs_are_measured_first(package, data, tmp_path):
    """To the grid's nearest step."""
    options = replace(OPTIONS, start=((1.0, 0.49, 0.07), (1.0, 1.0, 1.0)), generations=0)
    run(package, data, tmp_path / "run", options)
    lines = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert (lines[0]["genome"], lines[0]["origin"]) == ([16, 8, 1], "given")
    assert (lines[1]["genome"], lines[1]["origin"]) == ([16, 16, 16], "constant")  # full is the baseline's, too
    with pytest.raises(InputError, match="has 2 entries, but this model has 3 layers"):
        run(package, data, tmp_path / "other", replace(OPTIONS, start=((1.0, 0.5),)))


def test_a_missing_matplotlib_is_told_before_the_search(package, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnsupportedError, match="pip install matplotlib; or pass --no-plot"):
        search(package, data, OPTIONS, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_command_line(package, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["search", str(package), str(data), "--no-plot", "--sample", "4", "--generations", "1"]
    arguments += ["--population", "2", "--mutations", "2", "--crossovers", "1", "--grid", "8", "--threads", "1"]
    arguments += ["--start", "1,.5,.25", "--start", "1,1,.5", "--cost", "macs"]
    assert cli.main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "package-search" / "result.json").read_text())
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "constant rate" in out and [line.split()[0] for line in out.splitlines()[2:5]] == list(
        report["configs"]
    )
    assert cli.main([*arguments, "--seed", "5"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "seed was 0 and is now 5" in errors[0]
    assert cli.main([*arguments, "--sample", "some"]) == 2
    assert "invalid number value: 'some'" in capsys.readouterr().err
