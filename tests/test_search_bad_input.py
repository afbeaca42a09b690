"""What a search refuses, and that nothing that was measured is lost."""

from __future__ import annotations

import resource
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from package_tools import tiny_package
from search_tools import LAYERS, OPTIONS, found, run, squad, sts

from qla_runtime import Engine, InputError, QlaError, UnsupportedError
from qla_runtime.model.package import update_package
from qla_runtime.search import SearchOptions, pipeline
from qla_runtime.search.evolve import Point
from qla_runtime.search.run_folder import SearchFolder


@pytest.fixture
def data(tmp_path) -> Path:
    return squad(tmp_path / "dev.json")


@pytest.fixture
def package(tmp_path) -> Path:
    return tiny_package(layers=LAYERS).save(tmp_path / "package")


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
    with SearchFolder(tmp_path / "run", {"a": 1}) as log:
        for number in range(3):
            log.add(7, point(number))
    path = tmp_path / "run" / "evaluations.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with SearchFolder(tmp_path / "run", {"a": 1}) as log:
        assert [log.find(7, (number, 1)) for number in range(3)] == [point(0), point(1), None]
        assert log.find(8, (0, 1)) is None and len(log) == 2
        log.add(7, point(2))
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"genome"', b'"gnome"', 1))
    with pytest.raises(InputError, match="line 1 is damaged"):
        SearchFolder(tmp_path / "run", {"a": 1})


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_full_disk_keeps_the_measurements(tmp_path):
    """A limit on file sizes lets the third line fail halfway, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    path = tmp_path / "run" / "evaluations.jsonl"
    with SearchFolder(tmp_path / "run", {}) as log:
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
    with SearchFolder(tmp_path / "run", {}) as log:
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
        SearchFolder(tmp_path / "other", {})
    with (
        SearchFolder(tmp_path / "run", {}),
        pytest.raises(InputError, match="another process is searching in this folder"),
    ):
        SearchFolder(tmp_path / "run", {})
    SearchFolder(tmp_path / "run", {}).__exit__()


def test_settings_are_free_until_something_is_measured(tmp_path):
    SearchFolder(tmp_path / "run", {"seed": 1}).__exit__()
    with SearchFolder(tmp_path / "run", {"seed": 2}) as log:
        log.add(7, point(0))
    with pytest.raises(InputError, match="seed was 2 and is now 1"):
        SearchFolder(tmp_path / "run", {"seed": 1})


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
