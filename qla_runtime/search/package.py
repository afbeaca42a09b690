"""The searched package: its shape, its identity, its new length configs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import Accuracy, LengthConfig
from qla_runtime.lengths.table import LengthTable
from qla_runtime.model.card import replace_length_section
from qla_runtime.model.package import (
    CARD,
    CONFIG,
    LENGTHS,
    TOKENIZER,
    WEIGHTS,
    checksums,
    json_bytes,
    read_json,
    update_package,
)
from qla_runtime.model.staging import staging
from qla_runtime.texts.text_encoder import TextEncoder

_IDENTITY = (CONFIG, WEIGHTS, TOKENIZER)
"""Files that decide what a config scores. The length configs are what a search is there to change."""


class Package:
    """A package folder, opened to be searched and rewritten.

    Args:
        source: the folder. A hub id is refused: what a cache holds is not to be rewritten.
        num_threads: of the engine; None takes what this process may use.

    Attributes:
        path: the folder, links resolved.
        engine: the package, opened.
        task: the ``task`` object of its ``config.json``.

    Raises:
        InputError: there is no such folder.
        PackageError: it is no package, or damaged.
    """

    def __init__(self, source: str | os.PathLike[str], num_threads: int | None = None) -> None:
        if not os.path.isdir(source):
            raise InputError(f"{source}: no such folder; a search rewrites a package, so name its folder")
        self.path = Path(os.path.realpath(source))
        self.engine = Engine(self.path, num_threads=num_threads)
        self.task: dict[str, Any] = self.engine.task_settings

    def text_encoder(self) -> TextEncoder:
        """The tokenizer, as the Engine uses it."""
        return self.engine.text_encoder

    def macs(self, length: int, config: LengthConfig) -> int:
        """Multiply-accumulates of one sequence of ``length`` tokens."""
        return self.engine.macs(length, config)

    def identity(self) -> str:
        """Checksums of what decides a config's accuracy; of the files as they are now."""
        found = checksums(self.path)
        return " ".join(found[name] for name in _IDENTITY)

    def lengths(self) -> LengthTable:
        """The length configs that the package has now."""
        return LengthTable(read_json(self.path, LENGTHS), self.engine.info, self.task)

    def check_writable(self) -> None:
        """Asked before a search of hours rather than after it.

        Raises:
            InputError: nothing can be written beside the package, where its new version will be made.
        """
        with staging(self.path):
            pass

    def write_lengths(
        self,
        named: Mapping[str, tuple[LengthConfig, Accuracy]],
        frontier: Iterable[tuple[LengthConfig, Accuracy]],
    ) -> None:
        """Rewrites ``length_configs.json``, and the list of configs in the card, all at once.

        Args:
            named: replaces or joins the package's configs; those of other names stay. Escalation thresholds
                of a replaced config go with it.
            frontier: replaces the package's frontier.

        Raises:
            InputError: the package cannot be replaced; it is then as it was.
        """
        table = self.lengths().replaced(named, frontier)
        changes = {LENGTHS: json_bytes(table.to_json())}
        card = self.path / CARD
        if card.is_file():
            configs = {name: entry.config for name, entry in table.named.items()}
            changes[card.name] = _with_lengths(card.read_bytes(), configs)
        update_package(self.path, changes)


def _with_lengths(card: bytes, configs: Mapping[str, LengthConfig]) -> bytes:
    # Readers may edit the card, in any encoding; what is not ours comes back as it was.
    return replace_length_section(card.decode(errors="surrogateescape"), configs).encode(errors="surrogateescape")
