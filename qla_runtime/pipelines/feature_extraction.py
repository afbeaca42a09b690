"""Hidden states of texts, as ``FeatureExtractionPipeline`` of transformers 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_switch
from qla_runtime.pipelines.base import Cut, Found, Given, Pipeline, check_cut, check_text
from qla_runtime.task_kinds import TASK_KINDS
from qla_runtime.tasks.prepared import Call, Prepared, one_each


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(Cut):
    """What a call may ask for.

    Attributes:
        return_tensors: give arrays, and not lists.
        tokenize_kwargs: ``truncation``, ``max_length`` and ``padding`` as a dict.
    """

    return_tensors: bool | None = None
    tokenize_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value in dict(self.tokenize_kwargs or {}).items():
            if name not in ("truncation", "max_length", "padding"):
                raise InputError(
                    f"tokenize_kwargs has {shown(name)}; it may hold truncation, max_length and padding"
                )
            object.__setattr__(self, name, value)
        super().__post_init__()
        if self.return_tensors is not None:
            check_switch("return_tensors", self.return_tensors)


class FeatureExtractionPipeline(Pipeline):
    """Gives the last hidden state of each token. ``Engine.encode`` gives one vector per text.

    Example::

        >>> extractor = pipeline("feature-extraction")
        >>> np.array(extractor("This is a test.")).shape
        (1, 7, 384)
    """

    task = "feature-extraction"
    kinds = TASK_KINDS
    takes = FeatureOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Gives the hidden states of texts.

        Args:
            inputs: a text, a list of texts, or an iterator over texts.
            options: of :class:`FeatureOptions`.

        Returns:
            For a text a nested list of floats, (1, tokens, hidden), special tokens included; with
            ``return_tensors`` a float32 array of this shape. For a list a list of these, and for an iterator an
            iterator. A token that a layer dropped has the state it had when it was dropped.

        Raises:
            InputError: no text, or an option out of range.
        """
        return self._results(inputs, self._options(options))

    def make_call(self, given: Given, options: FeatureOptions) -> Call[Found]:
        """As :meth:`Pipeline.make_call`."""
        texts = [check_text(each, name) for name, each in given.named()]
        runs_once = "pipeline('feature-extraction') gives vectors without one"
        return given.call(texts, partial(self._prepare, options=options), runs_once)

    def _prepare(self, texts: Sequence[str], names: Sequence[str], options: FeatureOptions) -> Prepared[Found]:
        encoder = self.encoder(options.max_length)
        encoded = encoder.encode(texts)
        check_cut(encoded, names, encoder, options)

        def read(arrays: Arrays, plan: LengthPlan) -> list[Found]:
            results = []
            for i, states in enumerate(np.split(arrays["last_hidden"], encoded.batch.offsets[1:-1])):
                value = states[None].copy() if options.return_tensors else [states.tolist()]
                results.append(Found.of(value, 1.0, plan, i, arrays["macs"][i], encoded.cut[i]))
            return results

        return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"last_hidden", "macs"}), read)
