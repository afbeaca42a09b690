"""Text classification, as ``TextClassificationPipeline`` of transformers 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.activations import sigmoid, softmax
from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_choice, check_count
from qla_runtime.pipelines.base import Cut, Found, Given, Pipeline, check_cut, check_text
from qla_runtime.tasks.prepared import Call, Prepared, one_each

FUNCTIONS = {"sigmoid": sigmoid, "softmax": softmax, "none": lambda logits: logits.astype(np.float64)}
"""What ``function_to_apply`` may name: logits of any shape -> scores."""

LEGACY = ""
"""``top_k`` that nobody gave: the best label alone, not in a list of its own."""


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(Cut):
    """What a call may ask for.

    Attributes:
        top_k: labels at most; None gives all. Where it is given, each text has a list of labels, best first.
        function_to_apply: what makes scores of logits: ``"sigmoid"``, ``"softmax"`` or ``"none"``. None or
            ``"default"``: a softmax for a model that chooses one label of several, a sigmoid for a model whose
            labels are independent, nothing for regression with several outputs.
    """

    top_k: int | str | None = LEGACY
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None and self.top_k != LEGACY:
            check_count("top_k", self.top_k, "None gives the scores of all labels")
        if self.function_to_apply is not None:
            check_choice(
                "function_to_apply", str(self.function_to_apply).lower(), [*FUNCTIONS, "default"], ", or None"
            )


class TextClassificationPipeline(Pipeline):
    """Gives labels to texts or pairs of texts.

    Example::

        >>> classifier = pipeline("text-classification", "my-package")
        >>> classifier("This movie is disgustingly good!")
        [{'label': 'POSITIVE', 'score': 0.99...}]
    """

    task = "text-classification"
    kinds = ("sequence-classification",)
    takes = ClassifyOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Classifies texts.

        Args:
            inputs: a text; a pair of texts, as a dict of ``text`` and ``text_pair``; a list of these; or an
                iterator over them.
            options: of :class:`ClassifyOptions`.

        Returns:
            As in transformers: for a text a list of one dict of ``label`` and ``score``, for a pair the dict, and
            for a list of inputs a list of such dicts. With ``top_k`` a list of dicts takes the place of each.

        Raises:
            InputError: no text, or an option out of range.
            UnsupportedError: a model of one label, and no ``function_to_apply``.
        """
        asked = self._options(options)
        found = self._results(inputs, asked)
        # transformers asks whether this call, not the pipeline, was given top_k.
        return [found] if isinstance(inputs, str) and "top_k" not in options else found

    def make_call(self, given: Given, options: ClassifyOptions) -> Call[Found]:
        """As :meth:`Pipeline.make_call`."""
        function = self._function(options.function_to_apply)
        checked = [_input(each, name) for name, each in given.named()]
        runs_once = "the scores of this call are no probabilities" if function == "none" else None
        return given.call(checked, partial(self._prepare, options=options, function=function), runs_once)

    def _function(self, asked: str | None) -> str:
        name = (asked or "default").lower()
        if name != "default":
            return name
        problem = self.engine.task_settings["problem"]
        if problem == "regression" and len(self.engine.labels) == 1:
            raise UnsupportedError(
                f"{self.engine.name!r} has one label. transformers applies nothing to its score if the checkpoint "
                "says that it is a regression model, else a sigmoid, and a package does not say which; pass "
                "function_to_apply='none' or function_to_apply='sigmoid'"
            )
        return {"single_label": "softmax", "multi_label": "sigmoid"}.get(problem, "none")

    def _prepare(
        self, inputs: Sequence[Any], names: Sequence[str], options: ClassifyOptions, function: str
    ) -> Prepared[Found]:
        encoder = self.encoder(options.max_length)
        encoded = encoder.encode(inputs)
        check_cut(encoded, names, encoder, options)

        def read(arrays: Arrays, plan: LengthPlan) -> list[Found]:
            scores = FUNCTIONS[function](arrays["logits"])
            return [
                Found.of(self._labels(row, options.top_k), row.max(), plan, i, arrays["macs"][i], encoded.cut[i])
                for i, row in enumerate(scores)
            ]

        return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"logits", "macs"}), read)

    def _labels(self, scores: NDArray[np.float64], top_k: int | str | None) -> Any:
        order = np.argsort(-scores, kind="stable").tolist()
        found = [{"label": self.engine.labels[i], "score": float(scores[i])} for i in order]
        return found[0] if isinstance(top_k, str) else found[:top_k]


def _input(value: Any, name: str) -> str | tuple[str, str]:
    """A text, or a pair of texts."""
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("text", "text_pair")]
        if unknown or "text" not in value:
            raise InputError(
                f"{name} is {shown(value)}; a pair of texts is a dict of 'text' and 'text_pair' alone"
            )
        first = check_text(value["text"], f"{name}['text']")
        second = value.get("text_pair")
        return first if second is None else (first, check_text(second, f"{name}['text_pair']"))
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list) and len(value[0]) == 2:
        first, second = value[0]  # the former way to pass a pair
        return check_text(first, f"{name}[0][0]"), check_text(second, f"{name}[0][1]")
    if isinstance(value, (list, tuple)):
        raise InputError(
            f"{name} is {shown(value)}; pass a pair of texts as a dict: {{'text': 'first', 'text_pair': 'second'}}"
        )
    return check_text(value, name)
