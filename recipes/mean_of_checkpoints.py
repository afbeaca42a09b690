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

from qla_runtime.checkpoints.reader import open_checkpoint
from qla_runtime.errors import InputError, QlaError
from qla_runtime.training.export import export


def mean_of_checkpoints(out: Path, parts: Sequence[tuple[float, Path]]) -> None:
    """Writes ``out``, a Hugging Face folder with weights in float16.

    Args:
        out: the folder; it appears in one step. An older checkpoint there is replaced.
        parts: shares, which add up to 1, and the folders they are of.

    Raises:
        InputError: shares that are negative or do not add up to 1, checkpoints of different models, or ``out``
            is something else.
    """
    shares = [share for share, _ in parts]
    if not shares or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # NaN is refused, too
        raise InputError(f"shares are {shares}; they must be 0 or more and add up to 1")
    if out.exists() and not (out / "config.json").is_file():
        raise InputError(f"{out}: exists and is no checkpoint; it is left alone. Choose another folder")
    sources = [open_checkpoint(folder) for _, folder in parts]
    first = sources[0]
    for source in sources[1:]:
        if (source.encoder, source.task) != (first.encoder, first.task):
            raise InputError(f"{source.source}: is another model than {first.source}; give fine-tunes of one")
    model = first.load_model()
    states = [source.load_model().state_dict() for source in sources]
    mean = {name: sum(s * state[name] for s, state in zip(shares, states, strict=True)) for name in states[0]}
    model.load_state_dict(mean)
    export(model, first, out)


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
