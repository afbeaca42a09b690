"""The search for length configs: what is drawn, what is kept, and that nothing that was measured is lost.

The models are tiny and random; none of this says anything about accuracy.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from package_tools import edit_json, tiny_package

from qla_runtime import Engine, InputError, LengthConfig, QlaError, UnsupportedError, cli
from qla_runtime.model.package import update_package
from qla_runtime.search import SearchOptions, pipeline, search
from qla_runtime.search.cost import macs_share, time_share
from qla_runtime.search.evolve import Plan, Point, evolve, frontier
from qla_runtime.search.genome import Space
from qla_runtime.search.package import Package
from qla_runtime.search.run_folder import RunFolder
from qla_runtime.search.selection import Questions, read_selection

LAYERS = 3
OPTIONS = SearchOptions(
    articles="odd", sample=6, cost="macs", generations=3, population=3, mutations=3, crossovers=2, seed=1, grid=16
)


def squad(path: Path, questions: int = 8) -> Path:
    """A SQuAD file of two articles, the first (odd) with the questions."""
    words = "the quick brown fox jumps over a lazy dog and some more of them".split()
    articles = []
    for a, count in enumerate((questions, 3)):
        paragraphs = []
        for i in range(count):
            context = " ".join(words[i % 5 : i % 5 + 4 + i % 6])
            answer = {"text": words[i % 5 + 1], "answer_start": context.index(words[i % 5 + 1])}
            qas = [{"id": f"{a}-{i}", "question": f"which {words[i]}?", "answers": [answer]}]
            paragraphs.append({"context": context, "qas": qas})
        articles.append({"title": str(a), "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": articles}))
    return path


def sts(path: Path, scores=(0.0, 1.5, 3.0, 4.0, 5.0)) -> Path:
    rows = [f"g\tf\t2020\t{i}\t{score}\ta cat is {i} big\ta dog was {i * i}" for i, score in enumerate(scores)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def data(tmp_path) -> Path:
    return squad(tmp_path / "dev.json")


@pytest.fixture
def package(tmp_path) -> Path:
    return tiny_package(layers=LAYERS).save(tmp_path / "package")


def run(package: Path, data: Path, folder: Path, options: SearchOptions = OPTIONS, **others) -> dict:
    return search(package, data, options, run=folder, num_threads=1, draw=False, progress=False, **others)


def found(folder: Path) -> tuple[list[str], dict]:
    """The measurements of a run, and its result without the place of the package."""
    result = json.loads((folder / "result.json").read_text())
    del result["package"]
    return (folder / "evaluations.jsonl").read_text().splitlines(), result


# ---- genomes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowest", [1, 3])
def test_children_stay_on_the_grid_and_do_not_rise(lowest):
    space = Space(6, 32, lowest, 0.2)
    draw = np.random.default_rng(0)
    genomes = {space.full, space.smallest}
    for _ in range(500):
        first, second = (list(genomes)[i] for i in draw.integers(len(genomes), size=2))
        for child in (space.mutate(first, draw), space.cross(first, second)):
            assert len(child) == 6 and all(type(step) is int for step in child)
            assert 32 >= child[0] and child[-1] >= lowest
            assert all(a >= b for a, b in itertools.pairwise(child))
            assert space.config(child).values == tuple(step / 32 for step in child)
            genomes.add(child)
    assert len(genomes) > 300


def test_a_mutation_moves_entries_between_their_neighbours():
    space = Space(3, 16, 1, 0.5)
    draw = np.random.default_rng(3)
    parent = (12, 8, 3)
    children = {space.mutate(parent, draw) for _ in range(4000)}
    # The first entry within [8, 16], the second within [3, first], the third within [1, second].
    reachable = {(a, b, c) for a in range(8, 17) for b in range(3, a + 1) for c in range(1, b + 1)}
    assert children <= reachable
    assert {child[0] for child in children} == set(range(8, 17))
    assert {child[2] for child in children if child[:2] == parent[:2]} == set(range(1, 9))


def test_crossover_is_the_mean_rounded_up():
    assert Space.cross((16, 9, 4), (11, 8, 4)) == (14, 9, 4)


def test_constant_rates_by_cost():
    """The cheapest constant-rate genome that costs no less: as cheap as any found by trying 20,001 rates."""
    for layers in (2, 6, 12):
        space = Space(layers, 64, 1, 0.3)
        every = {space.constant_rate(rate) for rate in np.linspace(0, 0.3, 20001).tolist()}
        for target in np.linspace(sum(space.smallest), sum(space.full), 17).tolist():
            cheapest = min(sum(genome) for genome in every if sum(genome) >= target)
            assert target <= sum(space.constant_rate_at(sum, target)) <= cheapest
        costs = [sum(genome) for genome in space.spaced(sum, 8)]
        gap = (sum(space.full) - sum(space.smallest)) / 9
        assert np.allclose(costs, sum(space.smallest) + gap * np.arange(1, 9), atol=layers)


def test_a_grid_that_leaves_nothing_is_refused():
    with pytest.raises(InputError, match="--grid 2 with --drop-bound 0.05 leaves no config"):
        Space(2, 2, 1, 0.05)


# ---- evolution ------------------------------------------------------------------------------------


def test_frontier_is_what_nothing_beats():
    random = np.random.default_rng(0)
    for count in (1, 2, 30, 30, 30):
        points = [
            Point((i,), "mutation", float(cost), float(accuracy))
            for i, (cost, accuracy) in enumerate(random.integers(0, 8, (count, 2)))
        ]
        pairs = {(point.cost, point.accuracy) for point in points}
        unbeaten = sorted(
            (cost, accuracy)
            for cost, accuracy in pairs
            if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in pairs)
        )
        best = frontier(points)
        assert [(point.cost, point.accuracy) for point in best] == unbeaten
        for point in best:  # of equal ones the first genome, whatever the order they came in
            twins = [p.genome for p in points if (p.cost, p.accuracy) == (point.cost, point.accuracy)]
            assert point.genome == min(twins)
        assert frontier(points[::-1]) == best


def toy(genome, origin) -> Point:
    """A landscape with one best way: late layers cost as much as early ones and matter less."""
    accuracy = sum(min(step, 16 - 3 * i) * 0.7**i for i, step in enumerate(genome))
    return Point(genome, origin, sum(genome) / 48, accuracy)


def test_nothing_is_measured_twice_and_only_accepted_children_count():
    space, seen, judged = Space(3, 16, 1, 0.5), [], []

    def measure(genome, origin):
        seen.append(genome)
        return toy(genome, origin)

    def accept(genome):
        judged.append(sum(genome) >= 30)
        return judged[-1]

    start = dict.fromkeys([space.full, space.smallest, *space.spaced(sum, 5)], "constant")
    points = evolve(space, start, accept, measure, Plan(4, 6, 3, 0))
    assert [point.genome for point in points] == seen and len(set(seen)) == len(seen)
    born = [point for point in points if point.origin != "constant"]
    assert len(points) - len(born) == len(start)
    assert [point.origin for point in born] == 4 * (6 * ["mutation"] + 3 * ["crossover"])
    assert all(sum(point.genome) >= 30 for point in born) and judged.count(False) > 0


def test_evolution_beats_where_it_began():
    space = Space(3, 16, 1, 0.5)
    start = dict.fromkeys([space.full, space.smallest, *space.spaced(sum, 4)], "constant")
    points = evolve(space, start, lambda genome: True, toy, Plan(12, 8, 8, 0))
    began, ended = frontier(points[: len(start)]), frontier(points)
    assert len(ended) > len(began)
    assert all(any(b.cost <= a.cost and b.accuracy >= a.accuracy for b in ended) for a in began)


def test_more_generations_begin_with_those_of_fewer():
    space = Space(3, 16, 1, 0.5)
    start = {space.full: "constant", space.smallest: "constant"}
    short, long = (evolve(space, start, lambda _: True, toy, Plan(n, 4, 4, 7)) for n in (2, 5))
    assert long[: len(short)] == short


def test_an_exhausted_space_ends_the_search():
    space = Space(2, 3, 1, 0.5)
    start = {space.full: "constant", space.smallest: "constant"}
    points = evolve(space, start, lambda _: True, toy, Plan(30, 10, 10, 0))
    assert sorted(point.genome for point in points) == [(1, 1), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


# ---- measuring ------------------------------------------------------------------------------------


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


# ---- the whole way --------------------------------------------------------------------------------


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
        assert entry["macs_share"] == pytest.approx(engine.lengths[entry["name"]].macs_share, abs=1e-4)
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
        assert entry["accuracy"] == pytest.approx(score.f1, abs=1e-9)


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


# ---- pictures and words ---------------------------------------------------------------------------


def test_the_frontier_is_drawn(package, data, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install matplotlib)")
    search(package, data, OPTIONS, run=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "frontier.png").read_bytes().startswith(b"\x89PNG")


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


# ---- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 2}, "seed was 1 and is now 2"),
        ({"sample": 5}, "sample was 6 and is now 5"),
        ({"cost": "time"}, "cost was 'macs' and is now 'time'"),
        ({"grid": 32, "articles": "all"}, "articles was 'odd' and is now 'all'; grid was 16 and is now 32"),
    ],
)
def test_other_settings_are_refused(package, data, tmp_path, changed, message):
    run(package, data, tmp_path / "run", replace(OPTIONS, generations=0))
    before = found(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run(package, data, tmp_path / "run", replace(OPTIONS, **changed))
    assert found(tmp_path / "run") == before


def test_other_data_or_weights_are_refused(package, data, tmp_path):
    run(package, data, tmp_path / "run", replace(OPTIONS, generations=0))
    squad(data, questions=9)
    with pytest.raises(InputError, match="data was '[0-9a-f]{8}' and is now"):
        run(package, data, tmp_path / "run")
    squad(data)
    tiny_package(layers=LAYERS, seed=9).save(package)
    with pytest.raises(InputError, match="package was"):
        run(package, data, tmp_path / "run")


def test_a_package_replaced_meanwhile_is_left_alone(package, data, tmp_path, monkeypatch):
    choose = pipeline._choose

    def meanwhile(*arguments):
        tiny_package(layers=LAYERS, seed=9).save(package)
        return choose(*arguments)

    monkeypatch.setattr(pipeline, "_choose", meanwhile)
    with pytest.raises(InputError, match="was replaced by another model.*result.json"):
        run(package, data, tmp_path / "run")
    assert Engine(package).lengths["full"].accuracy.data == "nothing"
    assert (tmp_path / "run" / "result.json").exists()


def point(number: int) -> Point:
    return Point((number, 1), "mutation", 0.1 + 0.2 * number, 1 / 3)


def test_measurements_survive_a_cut_line_but_not_silently_a_damaged_one(tmp_path):
    with RunFolder(tmp_path / "run", {"a": 1}) as log:
        for number in range(3):
            log.add(7, point(number))
    path = tmp_path / "run" / "evaluations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with RunFolder(tmp_path / "run", {"a": 1}) as log:
        assert [log.find(7, (number, 1)) for number in range(3)] == [point(0), point(1), None]
        assert log.find(8, (0, 1)) is None and len(log) == 2
        log.add(7, point(2))
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"genome"', b'"gnome"', 1))
    with pytest.raises(InputError, match="line 1 is damaged"):
        RunFolder(tmp_path / "run", {"a": 1})


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_full_disk_keeps_the_measurements(tmp_path):
    """A limit on file sizes lets the third line fail halfway, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    path = tmp_path / "run" / "evaluations.jsonl"
    with RunFolder(tmp_path / "run", {}) as log:
        log.add(7, point(0))
        log.add(7, point(1))
        whole = path.read_bytes()
        try:
            limit_files(len(whole) + 20)
            with pytest.raises(QlaError, match="The 2 measurements before are intact"):
                log.add(7, point(2))
        finally:
            limit_files(before)
        assert path.read_bytes() == whole
        log.add(7, point(2))
    with RunFolder(tmp_path / "run", {}) as log:
        assert len(log) == 3


def test_full_disk_keeps_the_package(package):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    files = {path.name: path.read_bytes() for path in package.iterdir()}
    try:
        limit_files(100)
        with pytest.raises(InputError, match="File too large.*room"):
            update_package(package, {"README.md": b"new"})
    finally:
        limit_files(before)
    assert {path.name: path.read_bytes() for path in package.iterdir()} == files
    assert [path.name for path in package.parent.iterdir()] == [package.name]


def test_one_search_per_folder(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(InputError, match="is no search; it is left alone"):
        RunFolder(tmp_path / "other", {})
    with (
        RunFolder(tmp_path / "run", {}),
        pytest.raises(InputError, match="another process is searching in this folder"),
    ):
        RunFolder(tmp_path / "run", {})
    RunFolder(tmp_path / "run", {}).__exit__()


def test_settings_are_free_until_something_is_measured(tmp_path):
    RunFolder(tmp_path / "run", {"seed": 1}).__exit__()
    with RunFolder(tmp_path / "run", {"seed": 2}) as log:
        log.add(7, point(0))
    with pytest.raises(InputError, match="seed was 2 and is now 1"):
        RunFolder(tmp_path / "run", {"seed": 1})


def test_a_place_without_permission_is_told_before_the_search(package, data, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match="cannot write beside 'package': Permission denied"):
        run(package, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def refused(tmp_path, package, content: str, message: str, error=InputError, name="data") -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        run(package, tmp_path / name, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unfit_data(package, tmp_path):
    refused(tmp_path, package, "no json", "no JSON")
    refused(tmp_path, package, '{"data": []}', "holds no items")
    refused(tmp_path, package, '{"rows": []}', "has no list 'data'")
    embedding = tiny_package("embedding", layers=2).save(tmp_path / "embedding")
    refused(tmp_path, embedding, "a\tb\n", "line 1 has 2 columns and should have 7 columns")
    with pytest.raises(InputError, match="all 3 items have the answer 2.0"):
        run(embedding, sts(tmp_path / "constant.csv", (2.0, 2.0, 2.0)), tmp_path / "run")
    classes = tiny_package("sequence-classification", layers=2).save(tmp_path / "classes")
    refused(tmp_path, classes, "sentence\tlabel\n", "no rows")
    refused(tmp_path, classes, "sentence\tlabel\na\t1\nb\t1\n", "all 2 items have the answer 'neutral'")
    refused(tmp_path, classes, "sentence\tlabel\na\t1\nb\tblue\n", "label 'blue' is none of the model's")
    tags = tiny_package("token-classification", layers=2).save(tmp_path / "tags")
    refused(tmp_path, tags, "x", "this is a token-classification model", UnsupportedError)
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "nothing", tmp_path / "data", tmp_path / "run")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sample": 1}, "--sample is 1"),
        ({"screen": 6}, "--screen 6 is no smaller than --sample 6"),
        ({"cost": "energy"}, "--cost is 'energy'; it must be one of time, macs"),
        ({"articles": "both"}, "--articles is 'both'"),
        ({"generations": -1}, "--generations is -1"),
        ({"mutations": 1.5}, "--mutations is 1.5"),
        ({"grid": 1}, "--grid is 1; it must be a whole number from 2"),
        ({"lowest": 0.0}, "--lowest is 0.0"),
        ({"drop_bound": 1.0}, "--drop-bound is 1.0"),
        ({"start": ((0.5, 0.6),)}, "entries may not rise"),
        ({"fast_loss": float("nan")}, "--fast-loss is nan"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**(asdict(OPTIONS) | wrong))
