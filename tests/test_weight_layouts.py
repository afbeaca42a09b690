"""Where weights lie, and in which order, changes no bit: old packages open, and large models may be copied."""

from __future__ import annotations

import pickle

import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import Engine, InputError, UnsupportedError, _core

BATCH_LENGTHS = [1, 5, 16, 33]


@pytest.mark.parametrize("task", ["span-qa", "embedding"])
def test_a_package_of_version_0_1_gives_the_same_bits(task: str, tmp_path) -> None:
    package = package_tools.tiny_package(task, hidden=128, heads=4, intermediate=192)
    new, old = package.save(tmp_path / "new"), package.as_version_0_1().save(tmp_path / "old")
    assert (new / "model.safetensors").read_bytes() != (old / "model.safetensors").read_bytes()
    batch = raw.random_batch(BATCH_LENGTHS, 101, 2)
    lengths = [(raw.RATIO, np.array([0.7, 0.4]), 1)]
    want = raw.run(_core.Engine(new), batch, lengths)
    for isa in raw.available_isas():
        got = raw.run(_core.Engine(old, isa=isa), batch, lengths)
        for name in want:
            assert got[name].tobytes() == want[name].tobytes(), f"{name} on {isa}"


def test_an_unknown_layout_is_named(tmp_path) -> None:
    package = package_tools.tiny_package()
    package.manifest["weight_layout"] = "n32k4"
    with pytest.raises(UnsupportedError, match="n32k4"):
        _core.Engine(package.save(tmp_path))


@pytest.mark.parametrize("weights", ["mapped", "resident", "auto"])
def test_a_placement_changes_no_bit_and_is_explained(weights: str, tmp_path) -> None:
    path = package_tools.tiny_package("embedding").save(tmp_path)
    batch = raw.random_batch(BATCH_LENGTHS, 101, 2)
    want, engine = raw.run(_core.Engine(path), batch), Engine(path, weights=weights)
    got = raw.run(_core.Engine(path, weights=weights), batch)
    assert all(got[name].tobytes() == want[name].tobytes() for name in want)
    where = "in a private copy (asked for)" if weights == "resident" else "read where the file is mapped"
    assert f"weights: 0.1 MB of linear layers, {where}" in engine.explain()
    again = pickle.loads(pickle.dumps(engine))
    assert where in again.explain()


@pytest.mark.parametrize("weights", ["shared", "", "resident\0", 3, "x" * 500])
def test_an_unknown_placement_is_refused(weights: object, tmp_path) -> None:
    path = package_tools.tiny_package("embedding").save(tmp_path)
    words = "weights (is 3|holds a NUL|.* is unknown; use auto, mapped or resident)"
    with pytest.raises(InputError, match=words) as error:
        Engine(path, weights=weights)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("threads", [2, 3])
def test_few_rows_of_a_wide_model_share_out_columns(threads: int, tmp_path) -> None:
    """768 wide: a layer's 7 MB exceed what by_columns (csrc/encoder/work_split.cpp) asks for, and these batches
    have few rows. A layer that drops tokens may cross from one way to the other."""
    package = package_tools.tiny_package(layers=3, hidden=768, heads=12, intermediate=3072, vocab_size=64)
    path = package.save(tmp_path)
    for tokens in ([1], [2, 3], [16, 1, 9], [60], [64, 64]):
        batch = raw.random_batch(tokens, 64, 2)
        lengths = [(raw.RATIO, np.array([0.8, 0.3, 0.1]), 1)]
        want = raw.run(_core.Engine(path, num_threads=1), batch, lengths)
        engine = _core.Engine(path, num_threads=threads)
        for _ in range(3):
            got = raw.run(engine, batch, lengths)
            for name in want:
                assert got[name].tobytes() == want[name].tobytes(), f"{name}, {tokens} tokens, {threads} threads"
