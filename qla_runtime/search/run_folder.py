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
import json
import os
from pathlib import Path
from typing import Any

from qla_runtime.errors import InputError, QlaError
from qla_runtime.run_folder import FACTS, RunFolder
from qla_runtime.search.evolve import Point
from qla_runtime.search.genome import Genome


class SearchFolder(RunFolder):
    """An open search."""

    kind, doing, another = "search", "searching", "another --run"

    def _open(self, facts: Path) -> None:
        self._found = self._read()
        # Where nothing was measured yet, the settings are still free.
        if facts.is_file() and self._found:
            self._check(facts)
        else:
            self.write_json(FACTS, {"settings": self.settings})

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
        try:
            self.replace(name, json.dumps(value, indent=2) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {name}: {error.strerror}. Choose an output with room") from error

    # ----------------------------------------------------------------------------------- private

    @property
    def _log(self) -> Path:
        return self.path / "evaluations.jsonl"

    def _check(self, facts: Path) -> None:
        try:
            settings = dict(json.loads(facts.read_text(encoding="utf-8"))["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{facts}: not what a search writes ({error}); choose another --run") from error
        changed = self.changed(settings)
        if changed:
            raise InputError(
                f"{self.path}: holds a search with other settings ({changed}), which cannot go on "
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
