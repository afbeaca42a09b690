"""The one training loop: steps, schedule, interruption. A recipe says what is trained, and by which losses.

What a run computes depends on its settings alone: every random choice is drawn from a generator made of the
seed and the batch's number, so a run that was interrupted and continued ends at the same bits as one that was
not, on the same CPU and thread count. (CUDA adds up some gradients in no fixed order.)
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from qla_runtime.bars import bar
from qla_runtime.errors import QlaError
from qla_runtime.training.device import Device
from qla_runtime.training.options import LoopOptions
from qla_runtime.training.recipe import Recipe
from qla_runtime.training.run_folder import TrainingFolder

TIMED_BATCHES = 8
"""Batches run, without learning from them, to find how many steps fit in ``minutes``."""

_ORDER, _BATCH = 0, 1
"""First key of a random generator: the order of an epoch, or the draws of one batch."""

Assess = Callable[[], Mapping[str, float]]
"""Measures the model as it stands: names and figures for the log."""


class Diverged(QlaError):
    """A loss or a gradient became NaN or infinite; no step was taken with it."""


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
        folder: TrainingFolder,
        options: LoopOptions,
        assess: Assess | None = None,
        progress: bool = True,
    ) -> None:
        self._recipe, self._folder, self._options = recipe, folder, options
        self._assess, self._progress = assess, progress
        torch.manual_seed(options.seed)
        model = recipe.model
        model.encoder.embeddings.word.weight.requires_grad_(options.train_word_embeddings)
        groups = recipe.parameter_groups()
        self._rates = [group.learning_rate for group in groups]
        optimizer = torch.optim.AdamW(
            [
                {"params": list(group.parameters), "weight_decay": group.weight_decay * options.weight_decay}
                for group in groups
            ],
            lr=options.learning_rate,
            fused=True,
        )
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
        steps = self._folder.steps
        if steps is None:
            steps = self._count_steps()
            self._folder.begin(steps)
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
                    self._report(window, steps)
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
        tokens, seen = 0, []
        for _ in range(options.accumulation):
            rows = next(stream)
            seen.append(rows)
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
        self._check_finite({**means, "gradient norm": norm}, seen)

        rate = learning_rate(options, self._step, steps)
        for group, multiple in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = multiple * rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._step += 1
        seconds = time.perf_counter() - began
        self._seconds += seconds
        return {**means, "gradient_norm": norm, "tokens_per_second": tokens / seconds}

    def _check_finite(self, values: Mapping[str, float], seen: Sequence[NDArray[np.int64]]) -> None:
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            rate = self._options.learning_rate
            first = self._batches - len(seen) + 1
            which = f"batch {first}" if len(seen) == 1 else f"batches {first} to {self._batches}"
            some = ", ".join(str(row) for row in np.concatenate(seen)[:8])
            raise Diverged(
                f"training diverged in step {self._step + 1}: {', '.join(bad)} ({which}, epoch {self._epoch}; "
                f"features {some}, ...). Train with a learning rate "
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
        assert options.minutes is not None  # one of the three is given
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

    def _report(self, window: Mapping[str, list[float]], steps: int) -> None:
        rate = learning_rate(self._options, self._step - 1, steps)
        means = {name: float(np.mean(values)) for name, values in window.items()}
        left = self._seconds / self._step * (steps - self._step)
        entry = {
            "step": self._step,
            "epoch": self._epoch,
            "seconds": self._seconds,
            "seconds_left": left,
            "learning_rate": rate,
        }
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
