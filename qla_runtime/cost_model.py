"""What a call will take on this machine: a small model of time, fitted to a few measured calls and kept on disk.

The time of a ragged call is a sum of five counts, each with a price in seconds that is not negative. The counts
are those of ``length.count_macs``, taken apart: a MAC of a linear layer and one of attention do not cost the
same, and a row costs something whatever is multiplied.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime.errors import InputError
from qla_runtime.length import MIN_KEPT, LengthConfig

COUNTS = ("calls", "sequences", "rows", "linear_macs", "attention_macs")
"""What a call is made of, in the order of a model's prices."""

FIT_SECONDS = 0.6
"""No new round of measured calls begins later than this. The first round is always finished, so the fit of a
model many times larger than MiniLM takes as long as four calls of its longest sequence."""

MAX_ROUNDS = 9
"""Rounds of measured calls; the median of nine ignores four disturbed ones."""

REST_SECONDS = 5e-4
"""Before each measured call: a call that comes when nothing ran has threads to wake and finds caches colder."""

MIN_MARGIN = 0.10
"""Least share that predictions are raised by: calls on an idle machine scatter by a few percent, and texts of
answers are put together after the native call that is measured."""

MAX_MARGIN = 0.5
"""Most that one badly predicted call may raise all predictions by; more says that the machine was not idle."""

MAX_KEPT_MARGIN = 0.25
"""A fit with a larger margin is not left on disk: the machine was busy, and a later process may find it idle."""

Prepare = Callable[[Sequence[int], LengthConfig], Callable[[], object]]
"""Sequence lengths and the config to run them with -> the call to be timed."""


@dataclass(frozen=True)
class CostModel:
    """Predicts the time of a call from its sequences' lengths and their length config.

    Attributes:
        layers: layers of the model.
        hidden: its channels.
        intermediate: channels inside its feed-forward part.
        prices: seconds per unit of each of :data:`COUNTS`; none is negative.
        margin: share to add where a prediction must hold: the worst that the fit fell short of a measured call,
            within ``MIN_MARGIN`` and ``MAX_MARGIN``.
    """

    layers: int
    hidden: int
    intermediate: int
    prices: tuple[float, ...]
    margin: float

    def seconds(self, lengths: ArrayLike, config: LengthConfig) -> float:
        """Expected time in seconds of a call over sequences of ``lengths`` tokens, from token ids to logits.

        Raises:
            InputError: no lengths, one below 1, or a config that is not for the model's layers.
        """
        config.check_layers(self.layers)
        if not np.size(lengths) or np.min(lengths) < 1:
            raise InputError(
                f"lengths are {lengths!r:.60}; give the tokens of one sequence or more, each at least 1"
            )
        return float((_counts(self.hidden, self.intermediate, lengths, [config]) @ self.prices)[0])

    def safe_seconds(self, lengths: ArrayLike, configs: Sequence[LengthConfig]) -> NDArray[np.float64]:
        """:meth:`seconds` of each config with the margin, (configs,): nearly all calls on an idle machine stay
        below it. All configs at once and nothing checked, because a budget pays for the prediction too."""
        return (1 + self.margin) * (_counts(self.hidden, self.intermediate, lengths, configs) @ self.prices)


class Pace:
    """How the machine runs at the moment against a cost model: 1.0 as when it was fitted, 1.2 a fifth slower.

    Neighbours on a shared machine, other calls on the same engine and the CPU's frequency change it within
    seconds; the calls that were predicted tell. Safe to use from several threads: a lost update is forgotten.
    """

    SHARE = 0.1
    """Of the way to what the latest call says; twenty calls follow a change to nine tenths."""

    LIMITS = (0.5, 2.0)
    """What one call may say; more says that it was interrupted."""

    def __init__(self) -> None:
        self.ratio = 1.0

    def saw(self, expected: float, took: float) -> None:
        """A call took ``took`` seconds where :meth:`CostModel.seconds` expects ``expected``."""
        low, high = self.LIMITS
        self.ratio += self.SHARE * (min(high, max(low, took / expected)) - self.ratio)


# --------------------------------------------------------------------------------------------- fitting


def fit(
    prepare: Prepare,
    info: Mapping[str, Any],
    longest: int,
    clock: Callable[[], float] = time.perf_counter,
) -> CostModel:
    """Measures calls on this machine, rounds of them interleaved, and fits a model to their medians.

    A budget speaks of an idle engine, so every call begins after a rest.

    Args:
        prepare: makes a call that can be timed.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        longest: tokens of the longest sequence to measure.
        clock: seconds from any beginning.
    """
    shapes = _shapes(longest, info["layers"])
    times = _measure([prepare(lengths, config) for lengths, config in shapes], clock)
    counts = np.vstack([_counts(info["hidden"], info["intermediate"], n, [config]) for n, config in shapes])
    # Divided by the times, the fit minimizes relative errors: short calls count as much as long ones.
    prices = nnls(counts / times[:, None], np.ones(len(times)))
    short = float((times / np.maximum(counts @ prices, 1e-12) - 1).max())
    margin = min(MAX_MARGIN, max(MIN_MARGIN, short))
    return CostModel(info["layers"], info["hidden"], info["intermediate"], tuple(prices.tolist()), margin)


def nnls(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ``x`` without a negative entry that minimizes ``|a x - b|``.

    Where the optimum is not zero it is a plain least-squares solution of those columns alone; with a handful of
    columns all subsets can be tried.
    """
    best, least = np.zeros(a.shape[1]), float(b @ b)
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)  # counts differ by nine orders of magnitude
    for chosen in itertools.product((False, True), repeat=a.shape[1]):
        x = np.zeros(a.shape[1])
        columns = np.array(chosen)
        x[columns] = np.linalg.lstsq(a[:, columns] / scale[columns], b, rcond=None)[0] / scale[columns]
        error = float(((a @ x - b) ** 2).sum())
        if (x >= 0).all() and error < least:
            best, least = x, error
    return best


def _shapes(longest: int, layers: int) -> list[tuple[list[int], LengthConfig]]:
    """Calls that tell the prices apart: short and long, one and many sequences, dropping and not."""
    full = LengthConfig.ratio([1.0] * layers)
    steep = LengthConfig.ratio(np.linspace(1.0, 0.1, layers + 1)[1:])
    short, quarter, half = min(8, longest), max(2, longest // 4), max(2, longest // 2)
    return [
        ([short], full),
        ([short] * 16, full),
        ([max(2, longest // 8)], full),
        ([quarter] * 3, full),
        ([quarter] * 3, steep),
        ([half], full),
        ([half], steep),
        ([longest], steep),
        ([longest], full),
    ]


def _measure(calls: Sequence[Callable[[], object]], clock: Callable[[], float]) -> NDArray[np.float64]:
    """Median of each call's seconds, begun on a rested engine. The last is run once before, so that its memory is
    there."""
    deadline = clock() + FIT_SECONDS
    calls[-1]()
    rounds: list[list[float]] = []
    while not rounds or (len(rounds) < MAX_ROUNDS and clock() < deadline):
        rounds.append([_timed(call, clock) for call in calls])
    return np.maximum(np.median(rounds, axis=0), 1e-9)


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    time.sleep(REST_SECONDS)
    began = clock()
    call()
    return clock() - began


def _counts(
    hidden: int, intermediate: int, lengths: ArrayLike, configs: Sequence[LengthConfig]
) -> NDArray[np.float64]:
    """A call with each config in units of :data:`COUNTS`: (configs, counts)."""
    n, repeats = np.unique(np.asarray(lengths, np.float64), return_counts=True)
    after = _kept(n, configs)
    before = np.concatenate([np.broadcast_to(n, after[:, :1].shape), after[:, :-1]], axis=1)
    rows = n + (before + after).sum(axis=1)
    # The engine projects attention's output for kept rows only.
    linear = 3 * before * hidden * hidden + after * hidden * (hidden + 2 * intermediate)
    attention = 2 * before * before * hidden
    per_config = np.empty((len(configs), len(COUNTS)))
    per_config[:, 0] = 1.0
    per_config[:, 1] = repeats.sum()
    per_config[:, 2] = rows @ repeats
    per_config[:, 3] = linear.sum(axis=1) @ repeats
    per_config[:, 4] = attention.sum(axis=1) @ repeats
    return per_config


def _kept(n: NDArray[np.float64], configs: Sequence[LengthConfig]) -> NDArray[np.float64]:
    """``LengthConfig.kept`` of all configs and every length in ``n`` at once: (configs, layers, lengths)."""
    values = np.array([config.values for config in configs])[:, :, None]
    of_length = np.array([config.rule == "ratio" for config in configs])[:, None, None]
    wanted = np.where(of_length, np.ceil(values * n - 1e-6), values)
    return np.minimum(n, np.maximum(MIN_KEPT, wanted))


# ---------------------------------------------------------------------------------------------- on disk


def load_or_fit(
    package: Path, description: str, prepare: Prepare, info: Mapping[str, Any], longest: int
) -> CostModel:
    """The model that an earlier process left in the user's cache, or a new one, left there if it fits well.

    Args:
        package: the package folder; its manifest vouches for all other files.
        description: ``_core.Engine.explain()``: the library's version, kernels, CPU features and threads.
        prepare: as for :func:`fit`.
        info: as for :func:`fit`.
        longest: as for :func:`fit`.
    """
    path = _cache_file(package, description)
    model = _load(path, info)
    if model is None:
        model = fit(prepare, info, longest)
        if model.margin <= MAX_KEPT_MARGIN:
            _save(path, model)
    return model


def _cache_file(package: Path, description: str) -> Path | None:
    """Where the model of this package on this machine is kept; None where there is no place."""
    from hashlib import sha256  # here, so that importing the package stays quick

    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # Relative paths are to be ignored, says the XDG base directory specification.
        folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
        manifest = (package / "manifest.json").read_bytes()
    except (OSError, RuntimeError):
        return None
    key = sha256()
    for part in (manifest, description.encode(), _cpu_model().encode(), repr((COUNTS, REST_SECONDS)).encode()):
        key.update(len(part).to_bytes(8, "little") + part)
    return folder / "qla_runtime" / f"cost-{key.hexdigest()[:32]}.json"


def _cpu_model() -> str:
    """The CPU's name, which the features alone do not tell: two CPUs with the same ones differ in speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _load(path: Path | None, info: Mapping[str, Any]) -> CostModel | None:
    """The cached model; None where there is none, or it is damaged or of another model."""
    if path is None:
        return None
    try:
        entry = json.loads(path.read_bytes())
        model = CostModel(
            int(entry["layers"]),
            int(entry["hidden"]),
            int(entry["intermediate"]),
            tuple(float(price) for price in entry["prices"]),
            float(entry["margin"]),
        )
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    shape = all(getattr(model, name) == info[name] for name in ("layers", "hidden", "intermediate"))
    prices = (
        len(model.prices) == len(COUNTS) and all(0 <= p < math.inf for p in model.prices) and any(model.prices)
    )
    return model if shape and prices and MIN_MARGIN <= model.margin <= MAX_KEPT_MARGIN else None


def _save(path: Path | None, model: CostModel) -> None:
    """Leaves the model for later processes; a cache that cannot be written is no reason to complain."""
    from tempfile import mkstemp  # here, for the same reason

    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = mkstemp(dir=path.parent, prefix=path.stem)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(model), file)
            os.replace(name, path)  # readers see the old file or the new one
        except OSError:
            os.unlink(name)
    except OSError:
        pass
