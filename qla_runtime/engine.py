"""The engine: one loaded model, and for every call a choice of how many tokens its layers keep."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime import _core, heads, inputs
from qla_runtime.errors import InputError, UnsupportedError
from qla_runtime.hub import find_package
from qla_runtime.length import Length, LengthPlan, NamedLength, read_named, resolve
from qla_runtime.output import EncoderOutput
from qla_runtime.windows import Ragged, TextEncoder, batches, check_texts

_FITTING_CALL = {
    "span-qa": "engine.answer(question, context)",
    "sequence-classification": "engine.classify(texts)",
    "token-classification": "engine.tag(texts)",
    "embedding": "engine.encode(sentences)",
}


class Engine:
    """A model opened for inference. Safe to use from several threads; pickles as its path and options.

    Every method takes ``length=``: a name from :attr:`lengths`, a :class:`LengthConfig`, a policy, or a list
    with a name or LengthConfig per input; None keeps every token (``"full"``). ``latency_ms=5`` stands for
    ``length=LatencyBudget(5)``. The same input and length config give the same bits, whatever else is in the
    batch.

    Args:
        path: a package folder; :meth:`from_pretrained` takes hub ids and the default model as well.
        num_threads: threads per call; None takes what this process may use (``explain()`` says where that
            came from).
        streams: calls that may run at once; further callers wait their turn.
        isa: ``"ref"``, ``"avx2"``, ``"avxvnni"``, ``"avx512vnni"`` or ``"amx"``; None takes the best
            available.

    Raises:
        InputError: an option out of range, or an unknown ``isa``.
        PackageError: the package is missing, damaged, or no package.
        UnsupportedError: this CPU lacks ``isa``, or the package needs a newer version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_threads: int | None = None,
        streams: int = 1,
        isa: str | None = None,
    ) -> None:
        _check_count("num_threads", num_threads, "leave it out (None) for the threads this process may use")
        _check_count("streams", streams, "1 runs one call at a time")
        if isa is not None and not isinstance(isa, str):
            raise InputError(
                f"isa is {isa!r}; use one of {', '.join(_core.available_isas())}, or None for the best available"
            )
        # Absolute, so that a pickle opens the same package from another working directory.
        self._path = find_package(path).absolute()
        self._options = {"num_threads": num_threads, "streams": streams, "isa": isa}
        self._core = _core.Engine(self._path, num_threads or 0, streams, isa)
        self._info = self._core.info
        self._config = json.loads(self._core.config_json)
        self._task = self._config["task"]
        self._texts = TextEncoder(
            self._path,
            self._task["max_length"],
            cut=self._task["kind"] != "span-qa",
            with_types=self._info["type_vocab_size"] > 1,
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        num_threads: int | None = None,
        streams: int = 1,
        isa: str | None = None,
        revision: str | None = None,
    ) -> Engine:
        """Opens a model by name.

        Args:
            model: a package folder or a Hugging Face hub id; None opens the packaged default (SQuAD),
                offline.
            num_threads: as for :class:`Engine`.
            streams: as for :class:`Engine`.
            isa: as for :class:`Engine`.
            revision: branch, tag or commit of a hub id.

        Raises:
            InputError: an option out of range.
            PackageError: nothing is there, or it is no package; for a checkpoint the message holds the
                ``qla convert`` line to run.
            UnsupportedError: this CPU lacks ``isa``, or a hub id is given without ``huggingface_hub``
                installed.
        """
        path = find_package(model, revision=revision)
        return cls(path, num_threads=num_threads, streams=streams, isa=isa)

    # ------------------------------------------------------------------------------------ what it is

    @property
    def path(self) -> Path:
        """The package folder."""
        return self._path

    @property
    def name(self) -> str:
        """The package's own name."""
        return self._config["name"]

    @property
    def task(self) -> str:
        """``span-qa``, ``sequence-classification``, ``token-classification`` or ``embedding``."""
        return self._task["kind"]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model tells apart; empty for question answering and embeddings."""
        return tuple(self._task.get("labels", ()))

    @property
    def max_length(self) -> int:
        """Tokens that one sequence of text may have, special tokens included."""
        return self._task["max_length"]

    @property
    def layers(self) -> int:
        """The model's layers: how many entries a LengthConfig needs."""
        return self._info["layers"]

    @property
    def num_threads(self) -> int:
        """Threads that one call uses."""
        return self._info["num_threads"]

    @property
    def lengths(self) -> dict[str, NamedLength]:
        """The named length configs, with MACs at ``max_length`` and the accuracy measured with each."""
        return dict(self._lengths)

    @cached_property
    def _lengths(self) -> dict[str, NamedLength]:
        return read_named(json.loads(self._core.length_configs_json), self._info, self._task)

    def explain(self) -> str:
        """What runs here and why: CPU features, kernels, threads and their source, package and lengths."""
        lines = [self._core.explain().rstrip("\n"), f"lengths (at {self.max_length} tokens)"]
        for entry in self._lengths.values():
            measured = entry.accuracy
            figure = f"   {measured.metric} {measured.value:g} on {measured.data}" if measured else ""
            lines.append(f"  {entry.name:<10} {entry.macs_share:6.1%} of full, {entry.macs:,} MACs{figure}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Engine {self.name!r}: {self.task}, {self.layers} layers, {self.num_threads} threads>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self._options)

    # ----------------------------------------------------------------------------------------- tasks

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        details: bool = False,
    ) -> Any:
        """Finds the answer to a question in a context.

        A context longer than the model reads is searched in overlapping windows. A span's score is
        ``p_start * p_end``, with one softmax over the context tokens of all windows.

        Args:
            question: a question, or a list of them.
            context: the text that holds the answer; one per question.
            length: a length config, or one per question.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            details: add what the best window looked like: ``"windows"`` (their number), ``"tokens"`` (its
                tokens) and ``"kept"`` (per layer, int32 positions in it).

        Returns:
            For a single question a dict, else a list of them: ``"answer"`` (str), ``"score"`` (0 to 1),
            ``"start"`` and ``"end"`` (characters of the context), ``"length"`` (a name or the LengthConfig
            passed), ``"macs"`` (int, over all windows), ``"budget_met"`` (None where there was no budget).

        Raises:
            InputError: an empty or missing text, unequal numbers, a question that leaves no room for a
                context.
            UnsupportedError: the model does not answer questions.
        """
        self._require("span-qa", "answer")
        questions, single = check_texts(question, "question")
        contexts, single_context = check_texts(context, "context")
        if single != single_context or len(questions) != len(contexts):
            raise InputError(
                f"there are {_amount(questions, single)} for {_amount(contexts, single_context)} of context; "
                "pass two texts, or two lists of the same length"
            )
        plan = self._plan(length, latency_ms, len(questions))
        results: list[dict[str, Any]] = []
        for part in batches(questions, contexts):
            results += self._answer_some(questions, contexts, part, single, plan, details)
        return results[0] if single else results

    def encode(
        self,
        sentences: str | Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        truncate: bool = True,
    ) -> NDArray[np.float32]:
        """Sentence embeddings, pooled and normalized as the model's own config says.

        Args:
            sentences: a sentence, or a list of them.
            length: a length config, or one per sentence.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            truncate: cut longer sentences at :attr:`max_length` tokens, with one warning that says how many;
                False raises instead.

        Returns:
            float32 (hidden,) for a single sentence, else (sentences, hidden).

        Raises:
            InputError: an empty or missing text, or one too long with ``truncate=False``.
            UnsupportedError: the model gives no embeddings.
        """
        self._require("embedding", "encode")
        texts, single = check_texts(sentences, "sentences")
        plan = self._plan(length, latency_ms, len(texts))
        vectors = np.empty((len(texts), self._info["hidden"]), np.float32)
        cut_texts = 0
        for part in batches(texts):
            batch, _, cut = self._texts.encode(texts[part])
            self._refuse_cut(cut, truncate, "sentences", part, single)
            vectors[part] = self._run(batch, plan.index[part], plan, {"logits"})["logits"]
            cut_texts += int(cut.sum())
        if cut_texts:
            warnings.warn(
                f"{cut_texts} of {len(texts)} sentences have more than {self.max_length} tokens and were cut "
                "there; split them, or pass truncate=False to be refused",
                stacklevel=2,
            )
        return vectors[0] if single else vectors

    def classify(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = 1,
        truncate: bool = True,
    ) -> Any:
        """Labels for texts, or for pairs of texts.

        Args:
            texts: a text, or a list of them.
            text_pairs: the second text of each pair, for models trained on pairs.
            length: a length config, or one per text.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            top_k: more than 1 adds ``"scores"``, the best ``top_k`` labels; None adds all of them.
            truncate: cut longer texts at :attr:`max_length` tokens and say so; False raises instead.

        Returns:
            For a single text a dict, else a list of them: ``"label"`` and ``"score"`` of the best label (a
            probability; for a regression model the value itself), ``"length"``, ``"macs"``, ``"truncated"``,
            and if asked ``"scores"``, a list of ``{"label", "score"}``, best first.

        Raises:
            InputError: an empty or missing text, unequal numbers, ``top_k`` below 1, or too long with
                ``truncate=False``.
            UnsupportedError: the model does not classify texts.
        """
        self._require("sequence-classification", "classify")
        firsts, single = check_texts(texts, "texts")
        seconds = None
        if text_pairs is not None:
            seconds, single_pair = check_texts(text_pairs, "text_pairs")
            if single != single_pair or len(firsts) != len(seconds):
                raise InputError(
                    f"there are {_amount(firsts, single)} for {_amount(seconds, single_pair)} in text_pairs; "
                    "pass two texts, or two lists of the same length"
                )
        _check_count("top_k", top_k, "None gives the scores of all labels")
        plan = self._plan(length, latency_ms, len(firsts))
        results: list[dict[str, Any]] = []
        for part in batches(firsts, seconds):
            chosen = firsts[part] if seconds is None else list(zip(firsts[part], seconds[part], strict=True))
            results += self._classify_some(chosen, "texts", part, single, plan, top_k, truncate)
        return results[0] if single else results

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = None,
        truncate: bool = True,
    ) -> list[dict[str, Any]]:
        """Orders documents by how well they answer a query, with a cross-encoder (a model of one label).

        Args:
            query: the query.
            documents: the documents.
            length: a length config, or one per document.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            top_k: give the best ``top_k`` only; None gives all.
            truncate: cut longer pairs at :attr:`max_length` tokens and say so; False raises instead.

        Returns:
            dicts, best first: ``"index"`` (into ``documents``), ``"score"``, ``"length"``, ``"macs"``,
            ``"truncated"``.

        Raises:
            InputError: an empty or missing text, ``top_k`` below 1, or too long with ``truncate=False``.
            UnsupportedError: the model is no cross-encoder.
        """
        self._require("sequence-classification", "rank")
        if len(self.labels) != 1:
            raise UnsupportedError(
                f"rank() needs a cross-encoder, a model of one label; {self.name!r} has {len(self.labels)} "
                f"labels ({', '.join(self.labels[:5])}). Call engine.classify(texts, text_pairs)"
            )
        if not isinstance(query, str):
            raise InputError(
                f"query is of type {type(query).__name__}; it must be one text. Call rank() once per query"
            )
        if isinstance(documents, str):
            raise InputError("documents is one text; it must be a list of texts. Wrap it in a list")
        check_texts(query, "query")
        texts, _ = check_texts(documents, "documents")
        _check_count("top_k", top_k, "None gives all documents")
        plan = self._plan(length, latency_ms, len(texts))
        results: list[dict[str, Any]] = []
        for part in batches(texts):
            pairs = [(query, text) for text in texts[part]]
            results += self._classify_some(pairs, "documents", part, False, plan, 1, truncate)
        # Stable, so that equal scores stay in the caller's order.
        order = sorted(range(len(results)), key=lambda i: -results[i]["score"])[:top_k]
        return [
            {"index": i, **{key: results[i][key] for key in ("score", "length", "macs", "truncated")}}
            for i in order
        ]

    def tag(
        self,
        texts: str | Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        truncate: bool = True,
    ) -> Any:
        """Finds labelled spans, such as names, in texts.

        Args:
            texts: a text, or a list of them.
            length: a length config, or one per text.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            truncate: cut longer texts at :attr:`max_length` tokens and say so; False raises instead.

        Returns:
            For a single text :class:`heads.Spans`, else a list of them: a list of dicts with ``"label"``,
            ``"score"`` (mean probability of its word pieces), ``"start"`` and ``"end"`` (characters),
            ``"text"``; and attributes ``truncated``, ``length`` and ``macs``.

        Raises:
            InputError: an empty or missing text, or one too long with ``truncate=False``.
            UnsupportedError: the model does not label tokens.
        """
        self._require("token-classification", "tag")
        checked, single = check_texts(texts, "texts")
        plan = self._plan(length, latency_ms, len(checked))
        results: list[heads.Spans] = []
        for part in batches(checked):
            results += self._tag_some(checked[part], part, single, plan, truncate)
        return results[0] if single else results

    def forward(
        self,
        input_ids: inputs.Ids,
        attention_mask: inputs.Ids | None = None,
        token_type_ids: inputs.Ids | None = None,
        *,
        length: Length = None,
        latency_ms: float | None = None,
        output_hidden_states: bool = False,
        output_scores: bool = False,
    ) -> EncoderOutput:
        """Runs the encoder and the model's head on token ids. Nothing is truncated.

        Args:
            input_ids: a list of integer sequences of any lengths, or a 2-D integer array (sequences, tokens).
            attention_mask: the same shape, 1 on tokens and 0 on the padding to their right; None: every id is
                a token.
            token_type_ids: the same shape; None: all 0.
            length: a length config, or one per sequence.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            output_hidden_states: keep the states after every layer.
            output_scores: keep the attention that each token received in every layer.

        Returns:
            :class:`EncoderOutput`; its arrays have the real length of each sequence, not the padded one.

        Raises:
            InputError: not integers, empty, out of the vocabulary, longer than the model's positions, shapes
                that differ, or a mask that is not right-padded.
        """
        batch = inputs.ragged(input_ids, attention_mask, token_type_ids)
        plan = self._plan(length, latency_ms, batch.count)
        want = {"last_hidden", "logits", "kept", "macs"}
        if output_hidden_states:
            want.add("hidden_states")
        if output_scores:
            want.add("scores")
        arrays = self._run(batch, plan.index, plan, want)
        return EncoderOutput(arrays, batch.offsets, self.task, [plan.label(i) for i in range(batch.count)])

    # ------------------------------------------------------------------------------------ inner rooms

    def _answer_some(
        self,
        questions: list[str],
        contexts: list[str],
        part: slice,
        single: bool,
        plan: LengthPlan,
        details: bool,
    ) -> list[dict[str, Any]]:
        """``answer`` for the questions of one slice."""
        numbers = range(part.start, part.stop)
        names = ["question"] if single else [f"question[{i}]" for i in numbers]
        windows = self._texts.windows(questions[part], contexts[part], self._task["doc_stride"], names)
        per_question = np.diff(windows.questions)
        index = np.repeat(plan.index[part], per_question)
        want = {"logits", "macs", "kept"} if details else {"logits", "macs"}
        arrays = self._run(windows.batch, index, plan, want)
        best = _core.best_spans(
            np.ascontiguousarray(arrays["logits"][:, 0]),
            np.ascontiguousarray(arrays["logits"][:, 1]),
            windows.is_context,
            windows.batch.offsets,
            windows.questions,
            self._task["max_answer_tokens"],
        )
        macs = np.add.reduceat(arrays["macs"], windows.questions[:-1])
        results = []
        for q, (i, window, first, last, score) in enumerate(
            zip(numbers, *(column.tolist() for column in best), strict=True)
        ):
            start, end = windows.characters(q, window, first, last)
            result = {
                "answer": contexts[i][start:end],
                "score": score,
                "start": start,
                "end": end,
                "length": plan.label(i),
                "macs": int(macs[q]),
                "budget_met": None,
            }
            if details:
                offset = int(windows.batch.offsets[window])
                counts = arrays["kept_counts"][:, window]
                kept = [row[offset : offset + count] for row, count in zip(arrays["kept"], counts, strict=True)]
                result |= {"windows": int(per_question[q]), "tokens": windows.tokens(q, window), "kept": kept}
            results.append(result)
        return results

    def _classify_some(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        what: str,
        part: slice,
        single: bool,
        plan: LengthPlan,
        top_k: int | None,
        truncate: bool,
    ) -> list[dict[str, Any]]:
        """``classify`` for the texts, or pairs of texts, of one slice."""
        batch, _, cut = self._texts.encode(texts)
        self._refuse_cut(cut, truncate, what, part, single)
        arrays = self._run(batch, plan.index[part], plan, {"logits", "macs"})
        results = []
        for i, scores in enumerate(heads.label_scores(arrays["logits"], self._task["problem"])):
            order = np.argsort(-scores, kind="stable")
            result = {
                "label": self.labels[order[0]],
                "score": float(scores[order[0]]),
                "length": plan.label(part.start + i),
                "macs": int(arrays["macs"][i]),
                "truncated": bool(cut[i]),
            }
            if top_k != 1:
                result["scores"] = [{"label": self.labels[j], "score": float(scores[j])} for j in order[:top_k]]
            results.append(result)
        return results

    def _tag_some(
        self, texts: list[str], part: slice, single: bool, plan: LengthPlan, truncate: bool
    ) -> list[heads.Spans]:
        """``tag`` for the texts of one slice."""
        batch, encodings, cut = self._texts.encode(texts, with_offsets=True)
        self._refuse_cut(cut, truncate, "texts", part, single)
        arrays = self._run(batch, plan.index[part], plan, {"logits", "macs"})
        probabilities = heads.softmax(arrays["logits"])
        best = probabilities.argmax(axis=1)
        results = []
        for i, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            rows = slice(*batch.offsets[i : i + 2])
            names = [self.labels[j] for j in best[rows]]
            spans = heads.merge_spans(
                text, names, probabilities[rows].max(axis=1), encoding.offsets, encoding.word_ids
            )
            label, macs = plan.label(part.start + i), int(arrays["macs"][i])
            results.append(heads.Spans(spans, truncated=bool(cut[i]), length=label, macs=macs))
        return results

    def _plan(self, length: Length, latency_ms: float | None, count: int) -> LengthPlan:
        named = {name: entry.config for name, entry in self._lengths.items()}
        return resolve(length, latency_ms, count, named, self.layers)

    def _run(
        self, batch: Ragged, index: Sequence[int] | NDArray[np.int64], plan: LengthPlan, want: set[str]
    ) -> dict[str, NDArray[Any]]:
        """One native call: ``index`` says per sequence which of the plan's configs it runs."""
        chosen = None if len(plan.configs) == 1 else np.asarray(index, np.int32)
        lengths = [config.to_native() for config in plan.configs]
        return self._core.run(batch.ids, batch.offsets, batch.type_ids, lengths, chosen, want)

    def _require(self, task: str, method: str) -> None:
        if self.task != task:
            raise UnsupportedError(
                f"{method}() needs a {task} model; {self.name!r} is a {self.task} model. Call "
                f"{_FITTING_CALL[self.task]}, or open another model"
            )

    def _refuse_cut(self, cut: NDArray[np.bool_], truncate: bool, what: str, part: slice, single: bool) -> None:
        if truncate or not cut.any():
            return
        where = what if single else f"{what}[{part.start + int(np.argmax(cut))}]"
        raise InputError(
            f"{where} has more than {self.max_length} tokens, the most that this model reads; shorten or "
            "split it, or pass truncate=True"
        )


def _reopen(path: str, options: dict[str, Any]) -> Engine:
    """Unpickling: the same package with the same options."""
    return Engine(path, **options)


def _check_count(name: str, value: Any, remedy: str) -> None:
    """``value`` must be a positive integer, or None where that has a meaning."""
    if value is None and name != "streams":
        return
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise InputError(f"{name} is {value!r}; it must be an integer of at least 1; {remedy}")


def _amount(texts: list[str], single: bool) -> str:
    return "a single text" if single else f"a list of {len(texts)}"
