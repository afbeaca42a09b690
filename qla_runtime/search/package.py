"""The searched package: its shape, its identity, its new length configs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qla_runtime.convert.card import replace_length_section
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, PackageError
from qla_runtime.lengths.configs import Accuracy, LengthConfig
from qla_runtime.model.package_writer import json_bytes, staging, update_package
from qla_runtime.texts.text_encoder import TextEncoder

_IDENTITY = ("config.json", "model.safetensors", "tokenizer.json")
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
        self._full = self.macs(self.task["max_length"], LengthConfig.ratio([1.0] * self.engine.layers))

    def text_encoder(self) -> TextEncoder:
        """The tokenizer, as the Engine uses it."""
        return self.engine.text_encoder

    def macs(self, length: int, config: LengthConfig) -> int:
        """Multiply-accumulates of one sequence of ``length`` tokens."""
        return self.engine.macs(length, config)

    def identity(self) -> str:
        """Checksums of what decides a config's accuracy; of the files as they are now."""
        files = _read_json(self.path / "manifest.json")["files"]
        return " ".join(files[name]["crc32c"] for name in _IDENTITY)

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
        old = _read_json(self.path / "length_configs.json")
        entries = {name: {"name": name, **self._entry(*found)} for name, found in named.items()}
        entries |= {entry["name"]: entry for entry in old["configs"] if entry["name"] not in named}
        new = old | {"configs": list(entries.values()), "frontier": [self._entry(*found) for found in frontier]}
        # A threshold belongs to the two configs that it was calibrated with.
        kept = [e for e in old.get("escalations", ()) if not {e["cheap"], e["dear"]} & set(named)]
        new = {key: value for key, value in new.items() if key != "escalations"}
        changes = {"length_configs.json": json_bytes(new | ({"escalations": kept} if kept else {}))}
        card = self.path / "README.md"
        if card.is_file():
            configs = {
                name: LengthConfig(entry["rule"], tuple(entry["values"]), entry["keep_cls"])
                for name, entry in entries.items()
            }
            changes[card.name] = _with_lengths(card.read_bytes(), configs)
        update_package(self.path, changes)

    def _entry(self, config: LengthConfig, accuracy: Accuracy) -> dict[str, Any]:
        share = self.macs(self.task["max_length"], config) / self._full
        return {
            "rule": config.rule,
            "values": list(config.values),
            "keep_cls": self.task["keep_cls"] if config.keep_cls is None else config.keep_cls,
            "macs_share": round(share, 4),
            "accuracy": vars(accuracy) | {"value": round(accuracy.value, 2)},
        }


def _with_lengths(card: bytes, configs: Mapping[str, LengthConfig]) -> bytes:
    # Readers may edit the card, in any encoding; what is not ours comes back as it was.
    return replace_length_section(card.decode(errors="surrogateescape"), configs).encode(errors="surrogateescape")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path}: cannot be read ({error}); make the package again") from error
