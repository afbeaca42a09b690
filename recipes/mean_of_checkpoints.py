"""The weighted mean of fine-tunes of one model, as a checkpoint: often better than each of them.

    python recipes/mean_of_checkpoints.py OUT 0.8 CHECKPOINT 0.2 CHECKPOINT ...

Runs that begin at the same weights end in the same valley, and its middle generalizes better than its walls
(Wortsman et al., "Model soups", ICML 2022). Everything but the weights comes from the first checkpoint. Choose
the shares by accuracy on selection data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from qla_runtime.convert.package_writer import publish, staging, write_file
from qla_runtime.errors import InputError, QlaError

WEIGHTS = "model.safetensors"


def mean_of_checkpoints(out: Path, parts: Sequence[tuple[float, Path]]) -> None:
    """Writes ``out``, a Hugging Face folder with weights in float16.

    Args:
        out: the folder; it appears in one step, and an older one is replaced in one.
        parts: shares, which add up to 1, and the folders they are of.

    Raises:
        InputError: shares that are negative or do not add up to 1, or checkpoints of different models.
    """
    shares = [share for share, _ in parts]
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"shares are {shares}; they must be 0 or more and add up to 1")
    total: dict[str, NDArray[np.float32]] = {}
    for share, folder in parts:
        if not (folder / WEIGHTS).is_file():
            raise InputError(f"{folder}: has no {WEIGHTS}; give checkpoint folders")
        tensors = load_file(folder / WEIGHTS)
        if total and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in total.items()}:
            raise InputError(f"{folder}: has other tensors than {parts[0][1]}; give fine-tunes of one model")
        for name, tensor in tensors.items():
            total[name] = total.get(name, np.float32(0)) + np.float32(share) * tensor.astype(np.float32)
    with staging(out) as stage:
        new = stage / "new"
        new.mkdir()
        for path in parts[0][1].iterdir():
            if path.is_file() and path.suffix in (".json", ".txt"):
                write_file(new / path.name, path.read_bytes())
        halves = {name: tensor.astype(np.float16) for name, tensor in total.items()}
        write_file(new / WEIGHTS, save(halves, metadata={"format": "pt"}))
        publish(new, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("parts", nargs="+", metavar="SHARE CHECKPOINT")
    args = parser.parse_args()
    try:
        shares = [float(share) for share in args.parts[::2]]
    except ValueError as error:
        parser.error(f"{error}; give a share before each checkpoint")
    folders = [Path(folder) for folder in args.parts[1::2]]
    if len(shares) != len(folders):
        parser.error("give a share before each checkpoint")
    try:
        mean_of_checkpoints(args.out, list(zip(shares, folders, strict=True)))
    except QlaError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
