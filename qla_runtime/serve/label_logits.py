"""Logits of a classifier's labels, and the scores that text-embeddings-inference makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.activations import activate
from qla_runtime.arrays import Arrays
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.pipelines.text_classification import FUNCTIONS
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Call, Prepared, one_each, tokenized
from qla_runtime.tasks.results import Run

Scores = NDArray[np.floating]
Function = Callable[[NDArray[np.float32]], Scores]


class Logits(Run):
    """The ``logits`` of one text or pair, float32 (labels,), and whether it was ``truncated``."""

    logits: NDArray[np.float32]
    truncated: bool


def label_logits(
    task: LabelTask, inputs: Sequence[str | tuple[str, str]], what: str, *, single: bool, truncate: bool
) -> Call[Logits]:
    """A call over texts and pairs of texts, in any mixture.

    Args:
        task: of the model.
        inputs: the texts and pairs.
        what: how error messages call them.
        single: whether the client sent one and no list.
        truncate: cut what is longer than the model reads.
    """
    return Call(inputs, what, single, partial(_prepare, task, truncate), runs_once="logits have no confidence")


def _prepare(task: LabelTask, truncate: bool, inputs: Sequence[Any], names: Sequence[str]) -> Prepared[Logits]:
    encoded = tokenized(task.model.encoder, inputs, names, truncate)

    def read(arrays: Arrays, plan: LengthPlan) -> list[Logits]:
        return [
            {
                "logits": row,
                **plan.report(i),
                "macs": int(arrays["macs"][i]),
                "truncated": bool(encoded.cut[i]),
                "budget_met": None,
            }
            for i, row in enumerate(arrays["logits"])
        ]

    return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"logits", "macs"}), read)


def own_function(settings: Mapping[str, Any]) -> Function:
    """What a model's own config makes of logits: the activation of a cross-encoder, else what fits its problem.

    Args:
        settings: the ``task`` object of the package's ``config.json``.
    """
    activation = settings.get("activation")
    if activation is not None:
        return partial(activate, activation)
    return FUNCTIONS[{"single_label": "softmax", "multi_label": "sigmoid"}.get(settings["problem"], "none")]


def best_first(labels: Sequence[str], logits: NDArray[np.float32], function: Function) -> list[dict[str, Any]]:
    """``[{"label", "score"}]`` of all labels, best first: by logits, as sure scores round to the same number."""
    scores = function(logits)
    return [{"label": labels[i], "score": float(scores[i])} for i in np.argsort(-logits, kind="stable").tolist()]
