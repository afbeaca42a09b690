"""Keeps a machine's cost model between processes: one small file in the user's cache folder, and a lock file."""

from __future__ import annotations

import json
import math
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qla_runtime.fork_safe import importing
from qla_runtime.lengths.cost_model import COUNTS, MAX_MARGIN, MIN_MARGIN, REST_SECONDS, CostModel, Fit

try:
    import fcntl
except ImportError:  # not a Unix; processes then do without the lock
    fcntl = None  # type: ignore[assignment]

FORMAT = 2
"""The number of the file's format. Files of other formats have other names."""

MAX_SIZE = 1 << 16
"""The size in bytes of the largest file that is read. A larger one was not written by this module."""

POLL_SECONDS = 0.01
"""The pause between two attempts to take a lock that another process holds."""

_held: set[int] = set()  # descriptors of the locks that this process holds


class CostCache:
    """The stored fit of one package on one machine. Its methods raise nothing, because it is not needed to work.

    Args:
        path: the file; None where there is no folder for one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    @classmethod
    def of(cls, package: Path, description: str) -> CostCache:
        """The cache for a package.

        Args:
            package: the package folder. Its manifest has the checksums of all other files.
            description: ``_core.Engine.explain()``: the library's version, kernels, CPU features and threads.
        """
        return cls(_file(package, description))

    def load(self, info: Mapping[str, Any]) -> Fit | None:
        """The stored fit; None where there is none, where it is damaged, or where its model has another shape than
        ``info``."""
        if self._path is None:
            return None
        try:
            entry = json.loads(_read(self._path))
            saved = entry["model"]
            model = CostModel(
                _integer(saved["layers"]),
                _integer(saved["hidden"]),
                _integer(saved["intermediate"]),
                tuple(float(price) for price in saved["prices"]),
                float(saved["margin"]),
            )
            fit = Fit(model, float(entry["made"]), entry["doubt"])
        except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        return fit if _is_sound(fit, info) else None

    def save(self, fit: Fit) -> None:
        """Stores the fit for later processes. A process sees the old file or the new one, never a mixture."""
        with importing():  # here, so that importing the package stays quick
            from tempfile import mkstemp

        if self._path is None:
            return
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = mkstemp(dir=self._path.parent, prefix=self._path.stem)
            try:
                with os.fdopen(descriptor, "w") as file:
                    json.dump(asdict(fit), file)
                os.replace(name, self._path)
            except OSError:
                os.unlink(name)

    @contextmanager
    def lock(self, wait: float) -> Iterator[bool]:
        """Holds the lock that keeps other processes from measuring at the same time.

        Args:
            wait: seconds to wait while another process holds it.

        Yields:
            False where another process still holds it. True where this process holds it, or where there is no
            folder for a lock file.
        """
        descriptor = self._open_lock()
        if descriptor is None:
            yield True
            return
        _held.add(descriptor)
        mine = False
        try:
            mine = _acquire(descriptor, wait)
            yield mine
        finally:
            if descriptor in _held:  # a child that was forked meanwhile has forgotten its locks
                _held.discard(descriptor)
                if mine:
                    # A child that was forked meanwhile has the same lock open, so closing would not free it.
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _open_lock(self) -> int | None:
        if self._path is None or fcntl is None:
            return None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(self._path.with_suffix(".lock"), flags, 0o600)
        except OSError:
            return None


def _acquire(descriptor: int, wait: float) -> bool:
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        except OSError:  # a file system without locks
            return True


def _forget_locks() -> None:
    """Closes the parent's locks in a forked child, which would otherwise hold them after the parent's end."""
    for descriptor in list(_held):
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def _file(package: Path, description: str) -> Path | None:
    """The file for the fit of this package on this machine; None where there is no folder for it."""
    with importing():  # here, so that importing the package stays quick
        from hashlib import sha256

    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG base directory specification says to ignore relative paths.
        folder = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
        manifest = (package / "manifest.json").read_bytes()
    except (OSError, RuntimeError, ValueError):
        return None
    key = sha256()
    recipe = repr((FORMAT, COUNTS, REST_SECONDS)).encode()
    for part in (manifest, description.encode(errors="surrogatepass"), _cpu_model().encode(), recipe):
        key.update(len(part).to_bytes(8, "little") + part)
    return folder / "qla_runtime" / f"cost-{key.hexdigest()[:32]}.json"


def _cpu_model() -> str:
    """The name of the CPU. Two CPUs with the same features may differ in speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _read(path: Path) -> bytes:
    """The content of a small regular file. Anything else is refused without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        return file.read(MAX_SIZE)


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("not an integer")
    return value


def _is_sound(fit: Fit, info: Mapping[str, Any]) -> bool:
    model = fit.model
    return (
        all(getattr(model, name) == info[name] for name in ("layers", "hidden", "intermediate"))
        and len(model.prices) == len(COUNTS)
        and all(0 <= price < math.inf for price in model.prices)
        and any(model.prices)
        and MIN_MARGIN <= model.margin <= MAX_MARGIN
        and 0 <= fit.made <= time.time()
        and isinstance(fit.doubt, str)
        and len(fit.doubt) <= 200
        and fit.doubt.isprintable()
    )
