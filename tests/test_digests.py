"""The engine's outputs, bit for bit, are those of version 0.1.0: a rebuilt kernel, another split of the work or a
moved wall must not change a number.

``python tests/test_digests.py`` prints the file ``digests.json`` anew. Do that only for a change that means to
change results, and say in the commit which, and why.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import package_tools
import pytest
import raw

from qla_runtime import _core

STORED = Path(__file__).with_name("digests.json")

TASKS = ("span-qa", "sequence-classification", "token-classification", "embedding")
SHAPES = {
    "two layers of 64": dict(family="bert", layers=2, hidden=64, heads=2, intermediate=128),
    "three layers of 192, static": dict(
        family="roberta", layers=3, hidden=192, heads=3, intermediate=320, activation="static"
    ),
    "two layers of 768": dict(family="bert", layers=2, hidden=768, heads=12, intermediate=3072, max_positions=96),
}
LENGTHS = (1, 2, 7, 16, 33, 64, 5, 48, 31)
PACKAGED = "the packaged model"
CASES = [PACKAGED, *(f"{task}, {shape}" for task, shape in itertools.product(TASKS, SHAPES))]


def save(case: str, folder: Path) -> tuple[Path, int, int, int]:
    """The package's folder; its layers, vocabulary and token types."""
    if case == PACKAGED:
        return raw.default_package(), 6, 30522, 2
    task, shape = case.split(", ", 1)
    package = package_tools.tiny_package(task, **SHAPES[shape])
    encoder = package.config["encoder"]
    return package.save(folder), encoder["layers"], encoder["vocab_size"], encoder["type_vocab_size"]


def digests(case: str, folder: Path, isa: str | None = None) -> dict[str, str]:
    """Output name -> digest: a ragged batch whose sequences run in full, by falling ratios, and by counts."""
    path, layers, vocabulary, types = save(case, folder)
    batch = raw.random_batch(list(LENGTHS), vocabulary, types)
    lengths = [
        (raw.RATIO, np.ones(layers), -1),
        (raw.RATIO, np.linspace(0.8, 0.2, layers), 1),
        (raw.TOKENS, np.linspace(20, 6, layers).round(), 0),
    ]
    index = [i % len(lengths) for i in range(len(LENGTHS))]
    arrays = raw.run(_core.Engine(path, num_threads=2, isa=isa), batch, lengths, index)
    return {name: hashlib.sha256(array.tobytes()).hexdigest()[:24] for name, array in sorted(arrays.items())}


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_those_of_version_0_1_0(case: str, isa: str, tmp_path: Path) -> None:
    if isa == "ref" and case == PACKAGED:
        pytest.skip("plain C++ takes long for a whole model; the small ones compare it with every instruction set")
    assert digests(case, tmp_path, isa) == json.loads(STORED.read_text())[case]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as root:
        stored = {case: digests(case, Path(root, str(i))) for i, case in enumerate(CASES)}
    STORED.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{len(stored)} cases written to {STORED.name}")
