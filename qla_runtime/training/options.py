"""How any recipe is run: for how long, how fast, and how often it reports. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from qla_runtime.errors import InputError
from qla_runtime.settings import between, check_limits, setting


@dataclass(frozen=True)
class LoopOptions:
    """How a recipe is run. Exactly one of ``steps``, ``epochs`` and ``minutes`` says for how long.

    Attributes:
        steps: optimizer steps.
        epochs: passes over the data, fractions allowed.
        minutes: wall time of training; a few batches are timed first, and that settles the number of steps.
        learning_rate: the peak.
        warmup: share of the steps in which the rate rises linearly from 0; over the others it falls to 0.
        weight_decay: AdamW's, on weight matrices; norms and biases have none.
        clip: largest norm of a step's gradient.
        accumulation: batches per optimizer step.
        train_word_embeddings: else they stay as they are, which saves a dense gradient of vocabulary x H.
        seed: of everything random.
        checkpoint_minutes: wall time between checkpoints.
        log_steps: steps per line of the log.
        assess_steps: steps between two assessments; None assesses at the start and the end only.

    Raises:
        InputError: a value out of range, or not exactly one duration.
    """

    steps: int | None = setting(None, "optimizer steps", limit=between(1, math.inf), metavar="N")
    epochs: float | None = setting(
        None, "passes over the data, such as 1.5", limit=between(1e-6, math.inf), metavar="X"
    )
    minutes: float | None = setting(
        None, "as many steps as fit; some batches are timed first to tell", limit=between(1e-6, math.inf),
        metavar="X",
    )  # fmt: skip
    learning_rate: float = setting(1e-4, "peak (default: 1e-4)", limit=between(1e-12, 1.0), metavar="X")
    warmup: float = setting(
        0.06, "share of the steps (default: %(default)g)", limit=between(0.0, 0.9), metavar="X"
    )
    weight_decay: float = setting(0.01, "(default: %(default)g)", limit=between(0.0, 1.0), metavar="X")
    clip: float = setting(
        1.0, "largest gradient norm (default: %(default)g)", limit=between(1e-6, math.inf), metavar="X"
    )
    accumulation: int = setting(1, "batches per step (default: %(default)s)", limit=between(1, 4096), metavar="N")
    train_word_embeddings: bool = setting(False, "train them too; slower")
    seed: int = setting(0, "(default: %(default)s)", limit=between(0, 2**32 - 1), metavar="N")
    checkpoint_minutes: float = setting(
        5.0, "between checkpoints (default: %(default)g)", limit=between(0.0, math.inf), metavar="X"
    )
    log_steps: int = setting(10, "per log line (default: %(default)s)", limit=between(1, math.inf), metavar="N")
    assess_steps: int | None = setting(
        None, "and every N steps", limit=between(1, math.inf), metavar="N", flag="--eval-steps"
    )

    def __post_init__(self) -> None:
        durations = [self.steps, self.epochs, self.minutes]
        if sum(value is not None for value in durations) != 1:
            raise InputError("say how long to train by exactly one of steps, epochs and minutes")
        check_limits(self)

    def settings(self) -> dict[str, Any]:
        """Those that the result depends on."""
        values = dataclasses.asdict(self)
        for name in ("checkpoint_minutes", "log_steps", "assess_steps"):
            del values[name]
        return values
