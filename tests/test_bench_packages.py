"""`qla bench packages`: several packages, the same token ids, in turn."""

from __future__ import annotations

import json
from statistics import median

import pytest

from bench import models, packages
from qla_runtime import Engine, QlaError
from qla_runtime.cli import main


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.SIZES, "tiny", models.Size(2, 64, 2, 128))
    monkeypatch.setattr(packages, "TURN_SECONDS", 0)
    monkeypatch.setattr(packages, "PAUSE", 0)


def test_int8_and_ternary_weights_of_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("bench packages --random tiny --cases 1x4 2x9 --rounds 3 --threads 1 --json".split()) == 0
    record = json.loads(capsys.readouterr().out)
    names = ["tiny w8a8", "tiny w2a8"]
    assert list(record["packages"]) == names
    assert {case: {name: len(ms) for name, ms in times.items()} for case, times in record["times"].items()} == {
        "1x4": dict.fromkeys(names, 3),
        "2x9": dict.fromkeys(names, 3),
    }
    int8, ternary = record["packages"].values()
    size = models.SIZES["tiny"]
    # A quarter of the bits of the linear layers and of the word embeddings; scales and the rest stay.
    saved = 3 / 4 * (size.linear_weights + models.VOCABULARY * size.hidden)
    assert int8["disk_bytes"] - ternary["disk_bytes"] == pytest.approx(saved, rel=0.01)
    assert min(int8["peak_rss_mb"], ternary["peak_rss_mb"]) > 20

    lines = packages.text(record, markdown=False).splitlines()
    case = next(line for line in lines if line.startswith("2x9"))
    first, second = (median(record["times"]["2x9"][name]) for name in names)
    assert f"({second / first:.2f})" in case


def test_a_ternary_package_of_a_size_is_ternary(tmp_path) -> None:
    engine = Engine.from_pretrained(models.write_package("tiny", tmp_path, "w2a8"))
    assert "ternary" in engine.explain()
    assert "gemm_u8s2" in engine.explain()


@pytest.mark.parametrize(
    "words, message",
    [
        ("--random huge", "there is no random model 'huge'; use one of bert-base, bert-large"),
        ("minilm-l6-squad", "1 package to compare; name at least two different ones"),
        ("minilm-l6-squad minilm-l6-squad", "1 package to compare; name at least two different ones"),
        ("--random tiny --cases 8by128", "cases: line 1: '8by128' is no case; use BATCHxTOKENS"),
        ("--random tiny --cases sts", "the case sts is real texts; use shapes such as 8x128"),
        ("minilm-l6-squad /nowhere", "/nowhere"),
    ],
)
def test_bad_input(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"bench packages {words} --rounds 1 --threads 1".split()) == 2
    assert message in capsys.readouterr().err


def test_a_package_that_refuses_a_case_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = str(models.write_package("tiny", tmp_path / "long"))
    monkeypatch.setattr(models, "POSITIONS", 16)
    short = str(models.write_package("tiny", tmp_path / "short"))
    with pytest.raises(QlaError, match=f"{short} at 1x20: .*16"):
        packages.record([long, short], cases=["1x20"], threads=1, rounds=1)
