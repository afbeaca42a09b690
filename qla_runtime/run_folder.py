"""The folder of a long run that may be interrupted and continued: its settings in ``run.json``, and a lock."""

from __future__ import annotations

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from qla_runtime.errors import InputError

FACTS = "run.json"

Run = TypeVar("Run", bound="RunFolder")


class RunFolder(ABC):
    """An open run; one process at a time has it. Each kind of run is a subclass.

    Attributes:
        path: the folder.
        settings: what the run's result depends on, as JSON reads it back.
    """

    kind: str
    """What the folder holds, for messages."""
    doing: str
    """What a process does in it, for messages."""
    another: str
    """What to choose in its place, for messages."""

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Opens a run or begins a new one.

        Raises:
            InputError: the folder holds something else, or a run with other settings, or a damaged one; another
                process has it; or it cannot be written.
        """
        self.path = Path(path)
        # What JSON makes of the settings is what a later session compares with.
        self.settings = json.loads(json.dumps(settings))
        facts = self.path / FACTS
        if self.path.exists() and not facts.is_file() and (self.path.is_file() or self._holds_files()):
            raise InputError(f"{self.path}: exists and is no {self.kind}; it is left alone. Choose {self.another}")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 - held while the run is open
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); choose {self.another}"
            ) from error
        try:
            self._take_lock()
            self._open(facts)
        except BaseException:
            self._lock.close()
            raise

    @abstractmethod
    def _open(self, facts: Path) -> None:
        """Continues the run that ``facts`` describes, or begins a new one where there is no such file."""

    def __enter__(self: Run) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def changed(self, before: Mapping[str, Any]) -> str:
        """Which settings differ from earlier ones, in words; empty where none does."""
        return "; ".join(
            f"{key} was {before.get(key)!r} and is now {self.settings.get(key)!r}"
            for key in sorted({*before, *self.settings})
            if before.get(key) != self.settings.get(key)
        )

    def replace(self, name: str, text: str) -> None:
        """Writes a file of the run: whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        new = self.path / f".{name}.tmp"
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self.path / name)

    def _holds_files(self) -> bool:
        # A process that was killed at the beginning leaves the facts under their temporary name.
        return bool(set(os.listdir(self.path)) - {".lock", f".{FACTS}.tmp"})

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{self.path}: another process is {self.doing} in this folder") from error
