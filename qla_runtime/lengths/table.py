"""``length_configs.json``: the length configs that a package brings, read and written in one place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from qla_runtime.errors import InputError
from qla_runtime.fork_safe import lazy
from qla_runtime.lengths.configs import (
    Accuracy,
    LengthConfig,
    LengthPlan,
    NamedLength,
    count_macs,
    one_config,
)

FORMAT_VERSION = 1


class LengthTable:
    """The configs, by the names that ``length=`` takes and results report.

    An entry of the frontier that has no name of its own, or one that is taken, is called ``frontier-N``,
    counted from 1 in the file's order.

    Args:
        content: the parsed file, which the engine has checked.
        info: the model's shape, as ``_core.Engine.info`` gives it.
        task: the ``task`` object of the package's ``config.json``.

    Attributes:
        named: the configs that the package names.
        frontier: the configs that policies choose from besides.
        thresholds: (cheap, dear) -> the threshold that ``Escalate`` takes between these two names.
    """

    def __init__(self, content: Mapping[str, Any], info: Mapping[str, Any], task: Mapping[str, Any]) -> None:
        self._content, self._info, self._task = content, info, task
        self._full = self._macs(LengthConfig.ratio([1.0] * info["layers"]))
        self.named = {entry["name"]: self._read(entry["name"], entry) for entry in content["configs"]}
        self.frontier: dict[str, NamedLength] = {}
        for number, entry in enumerate(content["frontier"], 1):
            name = self._free_name(entry.get("name"), number)
            self.frontier[name] = self._read(name, entry)
        escalations = content.get("escalations", ())
        self.thresholds = {(entry["cheap"], entry["dear"]): entry["threshold"] for entry in escalations}

    @classmethod
    def of(
        cls, configs: Mapping[str, LengthConfig], info: Mapping[str, Any], task: Mapping[str, Any]
    ) -> LengthTable:
        """A new package's table, with nothing measured.

        Args:
            configs: by name; ``full`` is among them.
            info: as for the class.
            task: as for the class.

        Raises:
            InputError: a name that is no text, or empty.
        """
        empty = cls({"format_version": FORMAT_VERSION, "configs": [], "frontier": []}, info, task)
        return empty.replaced({name: (config, None) for name, config in configs.items()}, ())

    def replaced(
        self,
        named: Mapping[str, tuple[LengthConfig, Accuracy | None]],
        frontier: Iterable[tuple[LengthConfig, Accuracy | None]],
    ) -> LengthTable:
        """The table with other configs.

        Args:
            named: replaces or joins the named configs; those of other names stay. Thresholds between a replaced
                config and another go with it: they were calibrated with both.
            frontier: replaces the frontier.

        Raises:
            InputError: a name that is no text, or empty.
        """
        entries = [{"name": _checked(name), **self._entry(*found)} for name, found in named.items()]
        entries += [entry for entry in self._content["configs"] if entry["name"] not in named]
        content = {**self._content, "configs": entries, "frontier": [self._entry(*found) for found in frontier]}
        kept = [e for e in content.pop("escalations", ()) if not {e["cheap"], e["dear"]} & set(named)]
        return LengthTable(content | ({"escalations": kept} if kept else {}), self._info, self._task)

    def with_threshold(self, cheap: str, dear: str, threshold: float, accuracy: Accuracy) -> LengthTable:
        """The table with one threshold for ``Escalate``, between two of its names, and what was measured so."""
        entry = {"cheap": cheap, "dear": dear, "threshold": threshold, "accuracy": asdict(accuracy)}
        return LengthTable({**self._content, "escalations": [entry]}, self._info, self._task)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        return dict(self._content)

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

    def _entry(self, config: LengthConfig, accuracy: Accuracy | None) -> dict[str, Any]:
        entry = {
            "rule": config.rule,
            "values": list(config.values),
            "keep_cls": self._task["keep_cls"] if config.keep_cls is None else config.keep_cls,
            "macs_share": round(self._macs(config) / self._full, 4),
        }
        if accuracy is not None:
            entry["accuracy"] = asdict(accuracy) | {"value": round(accuracy.value, 2)}
        return entry

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


def _checked(name: str) -> str:
    if not isinstance(name, str) or not name:
        raise InputError(f"the name of a length config is {name!r}; it must be a text, and not empty")
    return name
