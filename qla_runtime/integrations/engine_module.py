"""What the modules of :mod:`qla_runtime.integrations.sentence_transformers` share."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qla_runtime.checkpoints.sentence_settings import SETTINGS_FILE
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, shown, warn
from qla_runtime.lengths.configs import Length, LengthConfig
from qla_runtime.model.limits import MIN_LENGTH
from qla_runtime.model.package import CARD, LISTED
from qla_runtime.model.staging import MANIFEST, publish
from qla_runtime.options import check_count
from qla_runtime.tasks.prepared import Call, Prepared, Task

try:
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise UnsupportedError(
        f"this needs sentence-transformers 6.2 or newer, and torch; Python says: {error}. Run: pip install "
        "'qla_runtime[sentence-transformers]'"
    ) from error

_OPTIONS = ("length", "max_seq_length", "num_threads", "streams", "isa", "weights", "revision")
_RUNS_ONCE = "sentence-transformers asks for vectors and scores alone"


class EngineModule(InputModule):
    """What both modules share: the opened package, the length config, and files.

    Numbers of inputs in error messages count within a batch, which sentence-transformers sorts by length.
    """

    forward_kwargs: set[str] = {"length", "latency_ms"}
    config_keys: list[str] = ["length", "max_seq_length"]
    config_file_name: str = "qla_sentence_transformers.json"

    task_type: type[Task]
    """The engine's task that the module needs."""
    opened_as: str
    """The class of sentence-transformers around it, for messages."""

    def __init__(
        self,
        model: str | Path | Engine,
        *,
        length: Length = None,
        max_seq_length: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if isinstance(model, Engine) and options:
            raise InputError(
                f"{', '.join(options)} belongs to the opening of an engine, and this one is open already"
            )
        self.engine = model if isinstance(model, Engine) else Engine.from_pretrained(model, **options)
        self.engine.as_task(self.task_type, self.opened_as)
        self._task: Task | None = None
        self._max_seq_length = self.engine.max_length
        self.settings_from_folder = False
        if isinstance(length, (str, LengthConfig)):
            self.engine.macs(1, length)  # refuses one that this model lacks
        self.length = _one_length(length)
        if max_seq_length is not None:
            self.max_seq_length = max_seq_length

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> EngineModule:
        """Opens a package folder, or one of the hub, for ``SentenceTransformer(path)`` or ``CrossEncoder(path)``.

        Args:
            model_name_or_path: as sentence-transformers got it.
            subfolder: where the package lies in it.
            model_kwargs: the keyword arguments of this class.
            processor_kwargs: ``model_max_length``, which CrossEncoder's ``max_length`` arrives as.
            token: for the hub, as are the following.
            cache_folder: where the hub's files are kept.
            revision: branch, tag or commit.
            local_files_only: do not ask the hub.
            **kwargs: what other modules need.

        Raises:
            InputError: an unknown argument, or a value out of range.
            PackageError: no package, or a damaged one.
            UnsupportedError: the package is for another task.
        """
        folder = cls.load_dir_path(
            model_name_or_path,
            subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        options = {**cls.load_config(folder or model_name_or_path), **(model_kwargs or {})}
        if "model_max_length" in (processor_kwargs or {}):
            options["max_seq_length"] = (processor_kwargs or {})["model_max_length"]
        unknown = options.keys() - set(_OPTIONS)
        if unknown:
            raise InputError(
                f"model_kwargs holds {', '.join(sorted(map(repr, unknown)))}; the engine takes "
                f"{', '.join(_OPTIONS)}"
            )
        module = cls(folder or model_name_or_path, **options)
        module.settings_from_folder = (module.engine.path / SETTINGS_FILE).is_file()
        return module

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Copies the package into a folder, with this module's settings. A package there is replaced.

        Raises:
            InputError: a file cannot be written.
            UnsupportedError: the module's length is a policy, which has no form in a file.
        """
        settings = json.dumps(self.get_config_dict(), indent=2) + "\n"
        target = Path(output_path)
        if target.resolve() != self.engine.path.resolve():
            with tempfile.TemporaryDirectory(prefix=".qla.", suffix=".tmp", dir=target) as stage:
                for name in (*LISTED, MANIFEST):
                    shutil.copyfile(self.engine.path / name, Path(stage) / name)
                publish(Path(stage), target)
        (target / self.config_file_name).write_text(settings, encoding="utf-8")

    def get_config_dict(self) -> dict[str, Any]:
        """The length config of calls that name none, and the limit of tokens, in plain JSON types."""
        if self.length is not None and not isinstance(self.length, (str, LengthConfig)):
            raise UnsupportedError(
                f"the module's length is the policy {shown(self.length)}, which cannot be saved; set it to None, "
                "a name or a LengthConfig first, and give the policy again after loading"
            )
        length = None if self.length is None else str(self.length)
        return {"length": length, "max_seq_length": self.max_seq_length}

    def __repr__(self) -> str:
        length = "" if self.length is None else f", length={str(self.length)!r}"
        return f"{type(self).__name__}({self.engine.name!r}, max_seq_length={self.max_seq_length}{length})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_task": None}  # the engine pickles as its path and options

    def on_model_ready(self, model: Any) -> None:
        """Gives the model around this module the package's own settings, where its caller gave none.

        A model that is opened by its path has them from ``config_sentence_transformers.json``.

        Raises:
            UnsupportedError: this module is for another kind of model.
        """
        if model.model_type != self.opened_as:
            raise UnsupportedError(
                f"{type(self).__name__} is for {self.opened_as}, and this is a {model.model_type}; open the "
                f"package {self.engine.name!r} with {self.opened_as}"
            )
        if self.settings_from_folder:
            return
        for name, text in self.engine.prompts.items():
            model.prompts[name] = model.prompts.get(name) or text
        if model.default_prompt_name is None:
            model.default_prompt_name = self.engine.default_prompt
        card = self.engine.path / CARD
        if model._model_card_text is None and card.is_file():
            model._model_card_text = card.read_text(encoding="utf-8")

    @property
    def tokenizer(self) -> Any:
        """The package's ``tokenizers.Tokenizer``."""
        return self.open_task().model.encoder.load()

    @property
    def max_seq_length(self) -> int:
        """Tokens that an input is cut at, special tokens included; at most the model's positions."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        most = self.engine.info["max_positions"]
        remedy = f"{self.engine.max_length} is the package's own limit"
        self._max_seq_length = check_count("max_seq_length", value, remedy, least=MIN_LENGTH, most=most)
        self._task = None

    def open_task(self) -> Task:
        """The engine's task, with a tokenizer that cuts at :attr:`max_seq_length`."""
        if self._task is None:
            task = self.engine.as_task(self.task_type)
            if self._max_seq_length != self.engine.max_length:
                encoder = task.model.encoder.cutting_at(self._max_seq_length)
                task = self.task_type(replace(task.model, encoder=encoder))
            self._task = task
        return self._task

    def prepared(
        self,
        inputs: Sequence[Any],
        tokenize: Callable[[Sequence[Any], Sequence[str]], Prepared[Any]],
        options: dict[str, Any],
    ) -> dict[str, Any]:
        """The features of a batch: its ragged token ids and its length config, ready to run."""
        if options.get("processing_kwargs"):
            raise InputError(
                "processing_kwargs is for sentence-transformers' own tokenization; leave it out, and set "
                "max_seq_length for another limit"
            )
        length, latency_ms = _one_length(options.get("length")), options.get("latency_ms")
        if length is None and latency_ms is None:
            length = self.length
        call: Call[Any] = Call(inputs, "batch", False, tokenize, _RUNS_ONCE)
        return {"prepared": self.engine.prepare(call, length, latency_ms=latency_ms)}

    def results(self, features: Mapping[str, Any]) -> list[Any]:
        """Runs a batch of :meth:`prepared`."""
        (results,) = self.engine.run([features["prepared"]])
        if any(result["truncated"] for result in results):
            warn(f"some inputs have more than {self.max_seq_length} tokens and were cut there; split them")
        return results


def _one_length(length: Any) -> Any:
    """The length, unless it is a list, whose order would be lost.

    Raises:
        InputError: it is a list.
    """
    if isinstance(length, Iterable) and not isinstance(length, str):
        raise InputError(
            "length is a list; sentence-transformers sorts its inputs, so they have one length per call. Pass one "
            "name, LengthConfig or policy, or call qla_runtime's Engine, which takes a list"
        )
    return length
