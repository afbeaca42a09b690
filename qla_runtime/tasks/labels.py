"""Sequence classification: labels for texts or pairs of texts, and relevances of documents to a query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qla_runtime.activations import activate, sigmoid, softmax
from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_count, check_switch
from qla_runtime.tasks.prepared import Call, Prepared, Task, amount, one_each, tokenized
from qla_runtime.tasks.results import Label, Ranked, Relevance
from qla_runtime.texts.inputs import check_texts

_WANT = frozenset({"logits", "macs"})


class LabelTask(Task):
    """What a classifier does, a model of one label included."""

    kind = "sequence-classification"
    method = "classify"
    usage = "engine.classify(texts)"

    def classify(
        self,
        texts: str | Iterable[str],
        text_pairs: str | Iterable[str] | None = None,
        *,
        top_k: int | None = 1,
        truncate: bool = True,
    ) -> Call[Label]:
        """Checks the arguments of :meth:`qla_runtime.Engine.classify`.

        Raises:
            InputError: an empty or missing text, unequal numbers, or an option out of range.
        """
        firsts, single = check_texts(texts, "texts", blank=True)
        inputs: Sequence[str] | Sequence[tuple[str, str]] = firsts
        if text_pairs is not None:
            seconds, single_pair = check_texts(text_pairs, "text_pairs", blank=True)
            if single != single_pair or len(firsts) != len(seconds):
                raise InputError(
                    f"there are {amount(firsts, single)} for {amount(seconds, single_pair)} in text_pairs; "
                    "pass two texts, or two lists of the same length"
                )
            inputs = list(zip(firsts, seconds, strict=True))
        check_top_k(top_k, "None gives the scores of all labels")
        prepare = partial(self.prepare, top_k=top_k, truncate=check_switch("truncate", truncate))
        regression = self.model.settings["problem"] == "regression"
        return Call(
            inputs,
            "texts",
            single,
            prepare,
            runs_once="classify() of a regression model gives values without one" if regression else None,
        )

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        truncate: bool = True,
        raw_scores: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Call[Relevance]:
        """Checks the arguments of :meth:`qla_runtime.Engine.rank`. The results stand in the documents' order;
        :func:`ranked` puts the best first.

        Raises:
            InputError: an empty or missing text, no prompt of that name, or an option that is no switch.
            UnsupportedError: the model has several labels.
        """
        labels = self.model.labels
        if len(labels) != 1:
            raise UnsupportedError(
                f"rank() needs a cross-encoder, a model of one label; {self.model.name!r} has {len(labels)} "
                f"labels ({', '.join(labels[:5])}). Call engine.classify(texts, text_pairs)"
            )
        if not isinstance(query, str):
            raise InputError(
                f"query is of type {type(query).__name__}; it must be one text. Call rank() once per query"
            )
        if isinstance(documents, str):
            raise InputError("documents is one text; it must be a list of texts. Wrap it in a list")
        check_texts(query, "query")
        texts, _ = check_texts(documents, "documents", blank=True)
        check_switch("truncate", truncate)
        activation = (
            "identity" if check_switch("raw_scores", raw_scores) else self.model.settings.get("activation")
        )
        asked = self.model.prompts.choose(prompt, prompt_name) + query
        return Call(
            [(asked, text) for text in texts],
            "documents",
            False,
            partial(self.prepare_relevances, activation=activation, truncate=truncate),
            runs_once="rank() gives relevances without one",
        )

    def prepare(
        self,
        inputs: Sequence[str] | Sequence[tuple[str, str]],
        names: Sequence[str],
        top_k: int | None = 1,
        truncate: bool = True,
    ) -> Prepared[Label]:
        """Texts or pairs of texts to be classified.

        Raises:
            InputError: one is too long, and ``truncate`` is False.
            PackageError: the tokenizer fails.
        """
        encoded = tokenized(self.model.encoder, inputs, names, truncate)
        labels, problem = self.model.labels, self.model.settings["problem"]

        def read(arrays: Arrays, plan: LengthPlan) -> list[Label]:
            results = []
            for i, scores in enumerate(_label_scores(arrays["logits"], problem)):
                # By logits: probabilities of sure labels round to the same number.
                order = np.argsort(-arrays["logits"][i], kind="stable")
                report = plan.report(i)
                result: Label = {
                    "label": labels[order[0]],
                    "score": float(scores[order[0]]),
                    "length": report["length"],
                    "length_config": report["length_config"],
                    "accuracy": report["accuracy"],
                    "macs": int(arrays["macs"][i]),
                    "truncated": bool(encoded.cut[i]),
                    "budget_met": None,
                }
                if top_k != 1:
                    result["scores"] = [{"label": labels[j], "score": float(scores[j])} for j in order[:top_k]]
                results.append(result)
            return results

        return Prepared(encoded.batch, one_each(encoded.batch), _WANT, read)

    def prepare_relevances(
        self,
        pairs: Sequence[tuple[str, str]],
        names: Sequence[str],
        activation: str | None,
        truncate: bool = True,
    ) -> Prepared[Relevance]:
        """Pairs of a query and a document to be compared; as :meth:`prepare`, but for a model of one label.

        Args:
            pairs: the texts.
            names: how error messages call each pair.
            activation: one of ``activations.ACTIVATIONS``; None gives what :meth:`classify` does.
            truncate: cut pairs that are longer than the model reads.
        """
        encoded = tokenized(self.model.encoder, pairs, names, truncate)
        problem = self.model.settings["problem"]

        def read(arrays: Arrays, plan: LengthPlan) -> list[Relevance]:
            logits = arrays["logits"]
            scores = activate(activation, logits) if activation else _label_scores(logits, problem)
            return [
                {
                    "score": float(score),
                    **plan.report(i),
                    "macs": int(arrays["macs"][i]),
                    "truncated": bool(encoded.cut[i]),
                    "budget_met": None,
                }
                for i, score in enumerate(scores[:, 0])
            ]

        return Prepared(encoded.batch, one_each(encoded.batch), _WANT, read)


def check_top_k(top_k: int | None, remedy: str) -> None:
    """Raises InputError for a ``top_k`` below 1; the message ends with ``remedy``."""
    if top_k is not None:
        check_count("top_k", top_k, remedy)


def ranked(relevances: Sequence[Relevance], top_k: int | None = None) -> list[Ranked]:
    """The best ``top_k`` documents, or all of them, best first; equal scores in the documents' order."""
    order = sorted(range(len(relevances)), key=lambda i: -relevances[i]["score"])[:top_k]
    return [{"index": i, **relevances[i]} for i in order]


def _label_scores(logits: NDArray[np.float32], problem: str) -> NDArray[np.floating]:
    """Logits (n, labels) -> scores of the same shape: probabilities, or the value itself for regression."""
    if problem == "single_label":
        return softmax(logits)
    return sigmoid(logits) if problem == "multi_label" else logits
