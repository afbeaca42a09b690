"""Published configs, with random weights: the engine gives the ids and the scores of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="torch is not installed (pip install 'qla_runtime[convert]')")
pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("neural_compressor", reason="neural-compressor-pt is not installed")

import model_configs  # noqa: E402
from model_configs import PUBLISHED, TRIED_LAYERS, Published  # noqa: E402


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return model_configs.write_texts(tmp_path_factory.mktemp("texts") / "texts.txt")


@pytest.mark.parametrize(
    "published",
    [pytest.param(p, id=p.name, marks=() if p.fast else pytest.mark.slow) for p in PUBLISHED],
)
def test_published_config(published: Published, texts: Path, tmp_path: Path) -> None:
    trial = model_configs.try_out(published, tmp_path, texts)
    assert trial.same_ids == trial.texts
    tolerance = model_configs.hidden_tolerance(TRIED_LAYERS)
    assert trial.hidden >= tolerance, (trial.hidden, tolerance)
    if published.task == "embedding":
        assert trial.scores >= tolerance, (trial.scores, tolerance)
    else:
        # Some hundred outputs of one random error each: none is beyond five deviations.
        assert trial.scores <= 5


def test_the_table_has_every_family_and_task():
    assert len(PUBLISHED) >= 40 and len({p.name for p in PUBLISHED}) == len(PUBLISHED)
    fast = [p for p in PUBLISHED if p.fast]
    assert {p.task for p in fast} == {p.task for p in PUBLISHED}
    assert {p.family.split("-")[0] for p in fast} == {p.family.split("-")[0] for p in PUBLISHED}
