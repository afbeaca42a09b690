"""Zero-shot classification by a model of natural language inference, as in transformers 5.

Each label becomes a sentence ("This example is sports."), and the model says whether the text entails it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from string import Formatter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime.activations import softmax
from qla_runtime.arrays import Arrays
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_switch
from qla_runtime.pipelines.base import Cut, Found, Given, Pipeline, check_cut, check_text
from qla_runtime.tasks.prepared import Call, Prepared
from qla_runtime.texts.inputs import check_texts


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(Cut):
    """What a call may ask for.

    Attributes:
        candidate_labels: the labels: a list of texts, or one text with commas between labels.
        hypothesis_template: the sentence that a label is put into, at its one ``{}``.
        multi_label: several labels may be true: each has a probability of its own. False: the scores of the labels
            add up to 1.
    """

    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_switch("multi_label", self.multi_label)
        template = self.hypothesis_template
        if not isinstance(template, str) or not _has_one_place(template):
            raise InputError(
                f"hypothesis_template is {shown(template)}; it must be a sentence with {{}} where the label goes, "
                "once"
            )

    @property
    def labels(self) -> list[str]:
        """The labels as a list.

        Raises:
            InputError: there are none.
        """
        given = self.candidate_labels
        if given is None:
            raise InputError("candidate_labels is missing; pass the labels, such as ['sports', 'law']")
        if isinstance(given, str):
            given = [label.strip() for label in given.split(",") if label.strip()]
        return check_texts(given, "candidate_labels")[0]


def _has_one_place(template: str) -> bool:
    """Whether ``template.format(label)`` puts the label in once, as it is.

    A width (``{:>9999999999}``) or many places could make a text that no memory holds, and a template may come
    from a client of a server.
    """
    try:
        fields = [field for _, *field in Formatter().parse(template) if field[0] is not None]
    except ValueError:
        return False
    return fields in ([["", "", None]], [["0", "", None]])


class ZeroShotClassificationPipeline(Pipeline):
    """Gives labels to texts that the model was not trained on.

    Example::

        >>> classifier = pipeline("zero-shot-classification", "my-nli-package")
        >>> classifier("Who scored the goal?", candidate_labels=["sports", "law"])
        {'sequence': 'Who scored the goal?', 'labels': ['sports', 'law'], 'scores': [0.98..., 0.02...]}

    Raises:
        UnsupportedError: the model has no label whose name begins with "entail", or no other label.
    """

    task = "zero-shot-classification"
    kinds = ("sequence-classification",)
    takes = ZeroShotOptions

    def __init__(self, engine: Engine, **options: Any) -> None:
        super().__init__(engine, **options)
        found = [i for i, label in enumerate(engine.labels) if label.lower().startswith("entail")]
        if not found or len(engine.labels) < 2:
            raise UnsupportedError(
                f"pipeline({self.task!r}) needs a model of natural language inference, which has a label "
                f"'entailment' and others; {engine.name!r} has {', '.join(engine.labels[:5])}. Convert such a "
                "model, or name the labels in the checkpoint's config.json (id2label)"
            )
        self._entailment = found[0]
        # transformers takes the last label where entailment is the first, else the first.
        self._contradiction = len(engine.labels) - 1 if found[0] == 0 else 0

    def __call__(self, sequences: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Classifies texts.

        Args:
            sequences: a text, a list of texts, or an iterator over texts.
            candidate_labels: the labels, as in :class:`ZeroShotOptions`.
            options: of :class:`ZeroShotOptions`.

        Returns:
            For a text a dict of ``sequence`` (the text), ``labels`` and ``scores``, both best first. For a list a
            list of these, and for an iterator an iterator.

        Raises:
            InputError: no text, no labels, or an option out of range.
        """
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        asked = self._options(options)
        _ = asked.labels  # refuses what is wrong now, and not when the first result is asked for
        return self._results(sequences, asked)

    def make_call(self, given: Given, options: ZeroShotOptions) -> Call[Found]:
        """As :meth:`Pipeline.make_call`."""
        texts = [check_text(each, name) for name, each in given.named()]
        return given.call(texts, partial(self._prepare, options=options))

    def _prepare(self, texts: Sequence[str], names: Sequence[str], options: ZeroShotOptions) -> Prepared[Found]:
        labels = options.labels
        pairs = [(text, options.hypothesis_template.format(label)) for text in texts for label in labels]
        encoder = self.encoder(options.max_length)
        encoded = encoder.encode(pairs)
        check_cut(encoded, [name for name in names for _ in labels], encoder, options)
        bounds = np.arange(len(texts) + 1) * len(labels)

        def read(arrays: Arrays, plan: LengthPlan) -> list[Found]:
            results = []
            for i, text in enumerate(texts):
                pairs_of_text = slice(*bounds[i : i + 2])
                scores = self._scores(arrays["logits"][pairs_of_text], options.multi_label)
                order = scores.argsort(kind="stable")[::-1].tolist()
                value = {
                    "sequence": text,
                    "labels": [labels[j] for j in order],
                    "scores": scores[order].tolist(),
                }
                cut = encoded.cut[pairs_of_text].any()
                results.append(Found.of(value, scores.max(), plan, i, arrays["macs"][pairs_of_text].sum(), cut))
            return results

        return Prepared(encoded.batch, bounds, frozenset({"logits", "macs"}), read)

    def _scores(self, logits: NDArray[np.float32], multi_label: bool) -> NDArray[np.float64]:
        """Logits (candidates, labels of the model) -> the score of each candidate."""
        if multi_label or len(logits) == 1:
            return softmax(logits[:, [self._contradiction, self._entailment]])[:, 1]
        return softmax(logits[:, self._entailment])
