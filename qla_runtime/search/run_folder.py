"""A search on disk: its settings, and every measurement as soon as it is made.

===================== ==================================================================================
``run.json``          what the measurements depend on; a search goes on only under the same settings
``evaluations.jsonl`` one line per measurement, on disk before the next one begins
``result.json``       what was found
``frontier.png``      the same as a picture
===================== ==================================================================================

There is no other state: a search that is started again decides everything anew, and looks here before it
measures.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qla_runtime.errors import InputError, QlaError
from qla_runtime.model.staging import write_file
from qla_runtime.search.evolve import Point
from qla_runtime.search.genome import Genome


class RunFolder:
    """An open run; one process at a time has it.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Opens a run or begins a new one.

        Raises:
            InputError: the folder holds something else, a run with other settings, or a damaged one; another
                process searches in it; or it cannot be written.
        """
        self.path = path
        # What JSON makes of the settings is what a later session compares with.
        self._settings = json.loads(json.dumps(settings))
        facts = path / "run.json"
        if path.exists() and not facts.is_file() and (path.is_file() or set(os.listdir(path)) - {".lock"}):
            raise InputError(f"{path}: exists and is no search; it is left alone. Choose another --run")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / ".lock", "w")  # noqa: SIM115 - held while the run is open
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --run") from error
        try:
            self._take_lock()
            self._found = self._read()
            # Where nothing was measured yet, the settings are still free.
            if facts.is_file() and self._found:
                self._check(facts)
            else:
                self.write_json("run.json", {"settings": self._settings})
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __len__(self) -> int:
        """Measurements made so far."""
        return len(self._found)

    def find(self, items: int, genome: Genome) -> Point | None:
        """What was measured of a genome on a sample of so many items."""
        return self._found.get((items, genome))

    def add(self, items: int, point: Point) -> None:
        """Appends a measurement and flushes it to disk.

        Raises:
            QlaError: it cannot be written, for want of space say; what was there before is as it was.
        """
        line = json.dumps(
            {
                "items": items,
                "genome": point.genome,
                "origin": point.origin,
                "cost": point.cost,
                "accuracy": point.accuracy,
            }
        )
        try:
            self._append(line.encode() + b"\n")
        except OSError as error:
            raise QlaError(
                f"{self._log}: cannot be written ({error.strerror}). The {len(self)} measurements before are "
                "intact; the same command goes on from them"
            ) from error
        self._found[items, point.genome] = point

    def write_json(self, name: str, value: Any) -> None:
        """Writes a file of the run: whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        new = self.path / f".{name}.tmp"
        write_file(new, (json.dumps(value, indent=2) + "\n").encode())
        os.replace(new, self.path / name)

    # ----------------------------------------------------------------------------------- private

    @property
    def _log(self) -> Path:
        return self.path / "evaluations.jsonl"

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{self.path}: another process is searching in this folder") from error

    def _check(self, facts: Path) -> None:
        try:
            settings = dict(json.loads(facts.read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{facts}: not what a search writes ({error}); choose another --run") from error
        changed = [
            f"{key} was {settings.get(key)!r} and is now {self._settings.get(key)!r}"
            for key in sorted({*settings, *self._settings})
            if settings.get(key) != self._settings.get(key)
        ]
        if changed:
            raise InputError(
                f"{self.path}: holds a search with other settings ({'; '.join(changed)}), which cannot go on "
                "with these. Use the same ones, or another --run"
            )

    def _append(self, line: bytes) -> None:
        with open(self._log, "ab", buffering=0) as file:
            before = file.tell()
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except OSError:
                # Half a line would spoil the next one.
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise

    def _read(self) -> dict[tuple[int, Genome], Point]:
        """The measurements; a last line that a power cut left unfinished is cut off."""
        try:
            content = self._log.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                os.truncate(self._log, whole)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(f"{self._log}: cannot be read or written ({error.strerror})") from error
        found = {}
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                genome = tuple(int(step) for step in entry["genome"])
                point = Point(genome, str(entry["origin"]), float(entry["cost"]), float(entry["accuracy"]))
                found[int(entry["items"]), genome] = point
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{self._log}: line {number} is damaged ({error}). Delete the line to measure it again"
                ) from None
        return found
