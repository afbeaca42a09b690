"""The one training loop. A :class:`Recipe` says what is trained, on which batches, by which losses.

What a run computes depends on its settings alone: every random choice is drawn from a generator made of the
seed and the batch's number, so a run that was interrupted and continued ends at the same bits as one that was
not, on the same CPU and thread count. (CUDA adds up some gradients in no fixed order.)
"""

from __future__ import annotations

import dataclasses
import math
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qla_runtime.bars import bar
from qla_runtime.errors import InputError, QlaError
from qla_runtime.model.float_model import Model
from qla_runtime.training.data import Batch
from qla_runtime.training.device import Device
from qla_runtime.training.run_folder import RunFolder

TIMED_BATCHES = 8
"""Batches run, without learning from them, to find how many steps fit in ``minutes``."""

_ORDER, _BATCH = 0, 1
"""First key of a random generator: the order of an epoch, or the draws of one batch."""

Assess = Callable[[], Mapping[str, float]]
"""Measures the model as it stands: names and figures for the log."""


class Diverged(QlaError):
    """A loss or a gradient became NaN or infinite; no step was taken with it."""


@dataclass(frozen=True)
class Pass:
    """One forward pass of a batch, about to be differentiated.

    Attributes:
        terms: scalar losses by the name they have in the log.
        total: their weighted sum, scaled so that a batch's passes add up to its loss.
    """

    terms: Mapping[str, Tensor]
    total: Tensor


class Recipe(Protocol):
    """What the loop trains. LengthDrop is one; distillation and quantization-aware training are others."""

    model: Model

    def plan(self, draw: np.random.Generator) -> Sequence[NDArray[np.int64]]:
        """The batches of an epoch, in order: feature numbers, for :meth:`batch`."""

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        """A batch on the device."""

    def losses(self, batch: Batch, draw: np.random.Generator) -> Iterator[Pass]:
        """The passes of a batch. Each is differentiated before the next is asked for, so only one pass's
        activations are in memory."""


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

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    learning_rate: float = 1e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulation: int = 1
    train_word_embeddings: bool = False
    seed: int = 0
    checkpoint_minutes: float = 5.0
    log_steps: int = 10
    assess_steps: int | None = None

    def __post_init__(self) -> None:
        durations = [self.steps, self.epochs, self.minutes]
        if sum(value is not None for value in durations) != 1:
            raise InputError("say how long to train by exactly one of steps, epochs and minutes")
        limits = {
            "steps": (1, math.inf),
            "epochs": (1e-6, math.inf),
            "minutes": (1e-6, math.inf),
            "learning_rate": (1e-12, 1.0),
            "warmup": (0.0, 0.9),
            "weight_decay": (0.0, 1.0),
            "clip": (1e-6, math.inf),
            "accumulation": (1, 4096),
            "seed": (0, 2**32 - 1),
            "checkpoint_minutes": (0.0, math.inf),
            "log_steps": (1, math.inf),
            "assess_steps": (1, math.inf),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; it must be between {least:g} and {most:g}")

    def settings(self) -> dict[str, Any]:
        """Those that the result depends on."""
        values = dataclasses.asdict(self)
        for name in ("checkpoint_minutes", "log_steps", "assess_steps"):
            del values[name]
        return values


class Loop:
    """Runs a recipe in a run folder.

    Args:
        recipe: what to train; its model is on the device already.
        device: where and in which precision.
        folder: the run, new or to be continued.
        options: how.
        assess: measures accuracy for the log; None for never.
        progress: bars and a closing line on standard error.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: Device,
        folder: RunFolder,
        options: LoopOptions,
        assess: Assess | None = None,
        progress: bool = True,
    ) -> None:
        self._recipe, self._folder, self._options = recipe, folder, options
        self._assess, self._progress = assess, progress
        torch.manual_seed(options.seed)
        model = recipe.model
        model.encoder.embeddings.word.weight.requires_grad_(options.train_word_embeddings)
        optimizer = _adamw(model, options)
        self._model, self._optimizer = device.prepare(model, optimizer)
        self._trained = [p for p in self._model.parameters() if p.requires_grad]

        self._step = 0
        self._epoch, self._index = 0, 0
        """The next batch: its epoch, and its place in the epoch's plan."""
        self._batches = 0
        """Batches seen, over all epochs."""
        self._seconds = 0.0
        """Time spent in steps, over all sessions."""
        self._saved: int | None = None
        """The step of the newest checkpoint."""

    def run(self) -> int:
        """Trains to the end, from the newest checkpoint where there is one.

        Returns:
            The number of steps of the whole run.

        Raises:
            Diverged: a loss is NaN or infinite.
            QlaError: a checkpoint or the log cannot be written.
            KeyboardInterrupt: SIGINT or SIGTERM came; a checkpoint of the last whole step was written.
        """
        newest = self._folder.latest()
        if newest is not None:
            self._restore(newest)
        if self._folder.steps is None:
            self._folder.begin(self._count_steps())
        steps = self._folder.steps
        if newest == steps:
            return steps
        self._folder.rewind_log(self._step)
        if self._step == 0:
            self._report_accuracy()
        with _deferred_signals() as stop:
            self._train(steps, stop)
            if self._saved != self._step:
                self._save()
        if self._step < steps:
            if self._progress:
                line = f"stopped after step {self._step} of {steps}; the same command continues"
                print(line, file=sys.stderr)
            raise KeyboardInterrupt
        self._report_accuracy()
        return steps

    def _train(self, steps: int, stop: threading.Event) -> None:
        """Steps, reports and checkpoints, until the last step or the event."""
        options = self._options
        stream = self._stream()
        window: dict[str, list[float]] = defaultdict(list)
        last_save = time.monotonic()
        with bar(steps, "training", self._progress, done=self._step, unit="step", delay=0) as shown:
            while self._step < steps and not stop.is_set():
                for name, value in self._advance(stream, steps).items():
                    window[name].append(value)
                shown.set_postfix({k: f"{np.mean(v):.4g}" for k, v in window.items()}, refresh=False)
                shown.update()
                if self._step % options.log_steps == 0 or self._step == steps:
                    self._report(window)
                    window.clear()
                if options.assess_steps and self._step % options.assess_steps == 0 and self._step < steps:
                    self._report_accuracy()
                if time.monotonic() - last_save >= 60 * options.checkpoint_minutes:
                    self._save()
                    last_save = time.monotonic()

    # ------------------------------------------------------------------------------------- steps

    def _stream(self) -> Iterator[NDArray[np.int64]]:
        """The run's batches from the current position on, epoch after epoch."""
        while True:
            plan = self._recipe.plan(self._draw(_ORDER, self._epoch))
            while self._index < len(plan):
                rows = plan[self._index]
                self._index += 1
                self._batches += 1
                yield rows
            self._epoch, self._index = self._epoch + 1, 0

    def _advance(self, stream: Iterator[NDArray[np.int64]], steps: int) -> dict[str, float]:
        """One optimizer step; returns what the log says of it."""
        began = time.perf_counter()
        options = self._options
        terms: list[tuple[str, Tensor]] = []
        tokens = 0
        for _ in range(options.accumulation):
            rows = next(stream)
            batch = self._recipe.batch(rows)
            tokens += batch.tokens
            for part in self._recipe.losses(batch, self._draw(_BATCH, self._batches)):
                (part.total / options.accumulation).backward()
                terms += [(name, value.detach()) for name, value in part.terms.items()]
        norm = torch.nn.utils.clip_grad_norm_(self._trained, options.clip)
        # The only point where the host waits for a GPU.
        *values, norm = torch.stack([value.float() for _, value in terms] + [norm.float()]).tolist()
        report = defaultdict(list)
        for (name, _), value in zip(terms, values, strict=True):
            report[name].append(value)
        means = {name: sum(parts) / len(parts) for name, parts in report.items()}
        self._check_finite({**means, "gradient norm": norm})

        rate = learning_rate(options, self._step, steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        seconds = time.perf_counter() - began
        self._seconds += seconds
        return {**means, "gradient_norm": norm, "tokens_per_second": tokens / seconds}

    def _check_finite(self, values: Mapping[str, float]) -> None:
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            rate = self._options.learning_rate
            raise Diverged(
                f"training diverged in step {self._step + 1}: {', '.join(bad)}. Train with a learning rate "
                f"below {rate:g}, in a new folder. {self._folder.safe()}"
            )

    def _draw(self, kind: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._options.seed, kind, number])

    # --------------------------------------------------------------------------------- duration

    def _count_steps(self) -> int:
        options = self._options
        if options.steps is not None:
            return options.steps
        plan = self._recipe.plan(self._draw(_ORDER, 0))
        if options.epochs is not None:
            return max(1, math.ceil(options.epochs * len(plan) / options.accumulation))
        seconds = self._time_batches(plan) * options.accumulation
        steps = max(1, int(60 * options.minutes / seconds))
        if self._progress:
            print(f"{seconds:.2f} s per step: {steps} steps in {options.minutes:g} minutes", file=sys.stderr)
        return steps

    def _time_batches(self, plan: Sequence[NDArray[np.int64]]) -> float:
        """Median seconds of a batch's passes. Nothing is learned, and no random number of the run is used."""
        times = []
        for number in range(TIMED_BATCHES):
            rows = plan[number % len(plan)]
            began = time.perf_counter()
            for part in self._recipe.losses(self._recipe.batch(rows), self._draw(_BATCH, number)):
                part.total.backward()
            torch.nn.utils.get_total_norm([p.grad for p in self._trained if p.grad is not None]).item()
            times.append(time.perf_counter() - began)
        self._optimizer.zero_grad(set_to_none=True)
        return float(np.median(times[2:]))  # the first ones still prepare kernels and memory

    # ----------------------------------------------------------------------------------- records

    def _report(self, window: Mapping[str, list[float]]) -> None:
        rate = self._optimizer.param_groups[0]["lr"]
        means = {name: float(np.mean(values)) for name, values in window.items()}
        entry = {"step": self._step, "epoch": self._epoch, "seconds": self._seconds, "learning_rate": rate}
        self._folder.log(entry | means)

    def _report_accuracy(self) -> None:
        if self._assess is None:
            return
        figures = dict(self._assess())
        self._folder.log({"step": self._step, "seconds": self._seconds, "accuracy": figures})
        if self._progress:
            shown = "   ".join(f"{name} {value:.2f}" for name, value in figures.items())
            tqdm.write(f"step {self._step}: {shown}", file=sys.stderr)

    def _save(self) -> None:
        state = {
            "step": self._step,
            "epoch": self._epoch,
            "index": self._index,
            "batches": self._batches,
            "seconds": self._seconds,
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        self._folder.save(self._step, self._model.state_dict(), state)
        self._saved = self._step

    def _restore(self, step: int) -> None:
        tensors, state = self._folder.load(step)
        self._model.load_state_dict(tensors)
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        if torch.cuda.is_available() and len(state["random_cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self._step, self._batches, self._seconds = state["step"], state["batches"], state["seconds"]
        self._epoch, self._index = state["epoch"], state["index"]
        self._saved = step


def learning_rate(options: LoopOptions, step: int, steps: int) -> float:
    """The rate of the optimizer step after ``step`` others: up, then down to 0 after the last, linearly."""
    warmup = round(options.warmup * steps)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    return options.learning_rate * (steps - step) / (steps - warmup)


def _adamw(model: Model, options: LoopOptions) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.learning_rate, fused=True)


@contextmanager
def _deferred_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set the event, so that a step is not torn apart; a second one ends it at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
