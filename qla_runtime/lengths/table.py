"""The length configs that a package brings: those it names, and its frontier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qla_runtime.fork_safe import lazy
from qla_runtime.lengths.configs import (
    Accuracy,
    LengthConfig,
    LengthPlan,
    NamedLength,
    count_macs,
    one_config,
)


class LengthTable:
    """What ``length_configs.json`` holds, by the names that ``length=`` takes and results report.

    An entry of the frontier that has no name of its own, or one that is taken, is called ``frontier-N``,
    counted from 1 in the file's order.

    Args:
        package: the parsed ``length_configs.json``.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        task: the ``task`` object of the package's ``config.json``.
    """

    def __init__(self, package: Mapping[str, Any], info: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self._info, self._task = info, task
        self._full = self._macs(LengthConfig.ratio([1.0] * info["layers"]))
        self.named = {entry["name"]: self._read(entry["name"], entry) for entry in package["configs"]}
        self.frontier: dict[str, NamedLength] = {}
        for number, entry in enumerate(package["frontier"], 1):
            name = self._free_name(entry.get("name"), number)
            self.frontier[name] = self._read(name, entry)

    @lazy
    def configs(self) -> dict[str, LengthConfig]:
        """Every config by its name, the package's own names first."""
        return {name: entry.config for name, entry in (self.named | self.frontier).items()}

    def config(self, length: str | LengthConfig | NamedLength | None) -> LengthConfig:
        """What ``length=`` means for one sequence; None is ``full``.

        Raises:
            InputError: an unknown name, or a config for another number of layers.
        """
        return one_config(length, self.configs, self._info["layers"])

    @lazy
    def distinct(self) -> list[NamedLength]:
        """Every config once: under its first name in the file, but ``full`` under that name."""
        found: dict[LengthConfig, NamedLength] = {}
        named = sorted(self.named.values(), key=lambda entry: entry.name != "full")
        for entry in (*named, *self.frontier.values()):
            found.setdefault(entry.config, entry)
        return list(found.values())

    def with_accuracies(self, plan: LengthPlan) -> LengthPlan:
        """The plan with what the package measured with its configs."""
        by_name = self.named | self.frontier
        accuracies: list[Accuracy | None] = []
        for name, config in zip(plan.labels, plan.configs, strict=True):
            entry = by_name.get(name) or next((e for e in self.distinct if e.config == config), None)
            accuracies.append(entry.accuracy if entry else None)
        return replace(plan, accuracies=tuple(accuracies))

    def _read(self, name: str, entry: Mapping[str, Any]) -> NamedLength:
        config = LengthConfig(entry["rule"], tuple(entry["values"]), entry.get("keep_cls"))
        macs = self._macs(config)
        accuracy = Accuracy(**entry["accuracy"]) if entry.get("accuracy") else None
        return NamedLength(name, config, macs, macs / self._full, accuracy)

    def _macs(self, config: LengthConfig) -> int:
        return count_macs(self._info, self._task, self._task["max_length"], config)

    def _free_name(self, own: str | None, number: int) -> str:
        taken = self.named.keys() | self.frontier.keys()
        numbered = f"frontier-{number}"
        wanted = [name for name in (own, numbered) if name and name not in taken]
        while not wanted:
            numbered += "'"
            wanted = [numbered] if numbered not in taken else []
        return wanted[0]
