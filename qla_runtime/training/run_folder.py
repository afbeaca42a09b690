"""A training run on disk: its settings, its checkpoints, its log.

============================= ==============================================================================
``run.json``                  what the run's result depends on; it continues only under the same settings
``log.jsonl``                 one line per report: losses, learning rate, accuracy
``checkpoints/step-NNNNNNN/`` ``model.safetensors`` (float32), ``state.pt`` (optimizer, random state, place)
``teacher.npy``               a fixed teacher's outputs
``corpus/``                   the shards of a corpus
``final/``                    the trained model, a Hugging Face folder
============================= ==============================================================================

A checkpoint is written beside the others and renamed when it is complete and on disk, so every one that has a
name can be continued from, however the process ended.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qla_runtime.errors import InputError, QlaError
from qla_runtime.model.staging import publish, staging, write_file
from qla_runtime.run_folder import FACTS, RunFolder

KEPT_CHECKPOINTS = 2

_PREFIX = "step-"


class TrainingFolder(RunFolder):
    """An open training run.

    Attributes:
        steps: optimizer steps that the whole run takes; None until :meth:`begin`.
    """

    kind, doing, another = "training run", "training", "another"

    def _open(self, facts: Path) -> None:
        self.steps: int | None = None
        with self._writing("checkpoints"):
            self._checkpoints.mkdir(exist_ok=True)
        if facts.is_file():
            self._check(facts)
        else:
            self._write_facts()
        for leftover in self._checkpoints.glob(f".{_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def begin(self, steps: int) -> None:
        """Settles how many steps the run takes; a continued run keeps to it."""
        self.steps = steps
        self._write_facts()

    # ------------------------------------------------------------------------------- checkpoints

    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none yet."""
        return max(self._saved(), default=None)

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes a checkpoint, then deletes all but the newest :data:`KEPT_CHECKPOINTS`.

        Args:
            step: optimizer steps taken.
            tensors: the model's parameters.
            state: the rest; tensors, numbers, strings, and lists and dicts of them.

        Raises:
            QlaError: it cannot be written, for want of space say; older checkpoints are as they were.
        """
        from safetensors.torch import save

        rest = io.BytesIO()
        torch.save(dict(state), rest)
        target = self._folder(step)
        try:
            with staging(target) as stage:
                new = stage / "new"
                new.mkdir()
                write_file(new / "model.safetensors", save({k: t.contiguous() for k, t in tensors.items()}))
                write_file(new / "state.pt", rest.getvalue())
                publish(new, target)
        except InputError as error:
            raise QlaError(f"the checkpoint of step {step} is lost: {error}. {self.safe()}") from error
        for old in sorted(self._saved())[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(self._folder(old), ignore_errors=True)

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and state of a checkpoint, on the CPU. Nothing in it can run code.

        Raises:
            InputError: a file of it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = self._folder(step)
        try:
            tensors = load((folder / "model.safetensors").read_bytes())
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(
                f"{folder}: this checkpoint is damaged ({str(error).splitlines()[0]}). Delete the folder to "
                "continue from the one before"
            ) from error
        return tensors, state

    def safe(self) -> str:
        """A sentence for error messages: what is not lost."""
        step = self.latest()
        if step is None:
            return "There is no checkpoint yet"
        return f"The checkpoint of step {step} is intact; the same command continues from it"

    # --------------------------------------------------------------------------------------- log

    def log(self, entry: Mapping[str, Any]) -> None:
        """Appends one line.

        Raises:
            QlaError: it cannot be written.
        """
        try:
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise QlaError(f"log.jsonl: cannot be written ({error.strerror}). {self.safe()}") from error

    def rewind_log(self, step: int) -> None:
        """Drops the lines after ``step``, which a continued run is about to write again."""
        with self._writing("log.jsonl"):
            entries = [entry for entry in read_log(self.path) if entry["step"] <= step]
            self.replace("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))

    # ----------------------------------------------------------------------------------- private

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def _log(self) -> Path:
        return self.path / "log.jsonl"

    def _folder(self, step: int) -> Path:
        return self._checkpoints / f"{_PREFIX}{step:07d}"

    def _saved(self) -> list[int]:
        names = [path.name.removeprefix(_PREFIX) for path in self._checkpoints.glob(f"{_PREFIX}*")]
        return [int(name) for name in names if name.isdigit()]

    def _check(self, facts: Path) -> None:
        try:
            saved = json.loads(facts.read_text(encoding="utf-8"))
            settings, self.steps = saved["settings"], saved["steps"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{facts}: not what training writes ({error}); choose another folder") from error
        changed = self.changed(settings)
        if changed and self.latest() is None:
            # Nothing was learned yet: the run begins anew, without what it computed for the old settings.
            self.steps = None
            for name in ("teacher.npy", "log.jsonl"):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / "corpus", ignore_errors=True)
            self._write_facts()
        elif changed:
            raise InputError(
                f"{self.path}: holds a run with other settings ({changed}), which cannot be "
                "continued with these. Use the same ones, or another folder"
            )

    def _write_facts(self) -> None:
        facts = {"settings": self.settings, "steps": self.steps}
        with self._writing(FACTS):
            self.replace(FACTS, json.dumps(facts, indent=2) + "\n")

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise QlaError(f"{name}: cannot be written ({error.strerror}). {self.safe()}") from error


def read_log(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off in writing is left out."""
    entries = []
    with contextlib.suppress(FileNotFoundError), open(Path(folder) / "log.jsonl", encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                entries.append(json.loads(line))
    return entries
