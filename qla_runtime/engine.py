"""The engine: one loaded model, and for every call a choice of how many tokens its layers keep."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime import _core, inputs, stages
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.fork_safe import importing, lazy
from qla_runtime.hub import PACKAGED, find_package
from qla_runtime.lengths import policies
from qla_runtime.lengths.configs import (
    Escalate,
    LatencyBudget,
    Length,
    LengthConfig,
    LengthPlan,
    MaxLoss,
    NamedLength,
    resolve,
)
from qla_runtime.lengths.cost_model import CostModel
from qla_runtime.lengths.table import LengthTable
from qla_runtime.lengths.timekeeper import Timekeeper
from qla_runtime.lifetime import Lifetime, while_open
from qla_runtime.options import check_count, check_switch
from qla_runtime.output import EncoderOutput
from qla_runtime.progress import Progress, in_steps, reported
from qla_runtime.tasks import heads, tags, vectors
from qla_runtime.tasks.activations import activate
from qla_runtime.tasks.answers import AnswerOptions, read_answers
from qla_runtime.tasks.prompts import Prompts
from qla_runtime.terminal import visible
from qla_runtime.texts.inputs import check_texts
from qla_runtime.texts.tokenizer import TextRules
from qla_runtime.texts.windows import Encoded, QuestionWindows, Ragged, TextEncoder, batches

Tokenized = TypeVar("Tokenized", Encoded, QuestionWindows)
Result = TypeVar("Result")

MAX_THREADS = 1024
"""Threads per call, and streams, that an engine accepts at most."""

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
    batch. Every method raises InputError for a length that does not fit (an unknown name, a list of another
    number of entries than inputs, a config of another number than layers, both arguments), and those that take
    texts PackageError for a tokenizer that cannot be read.

    Where a method takes a list of texts, it takes any ordered collection: a tuple, an array, a pandas Series, a
    generator. A text without a visible character runs as the tokenizer's special tokens alone and so keeps its
    index; a question, its context and a query need words. ``progress=True`` shows a bar on standard error.

    Close an engine with :meth:`close` or a ``with`` block; else its memory goes with its last reference.

    Args:
        path: a package folder, or what else :meth:`from_pretrained` takes.
        num_threads: threads per call; None takes what this process may use (``explain()`` says where that
            came from).
        streams: calls that may run at once; further callers wait their turn.
        isa: ``"ref"``, ``"avx2"``, ``"avxvnni"``, ``"avx512vnni"`` or ``"amx"``; None takes the best
            available.
        weights: where the linear layers' weights lie. ``"mapped"``: in the mapped file, which all processes share.
            ``"resident"``: in a private copy on pages of 2 MiB, which are read about twice as fast as scattered
            small ones. None or ``"auto"``: mapped, unless they exceed the last-level cache and the system gives
            the file no large pages. ``explain()`` says which, and why. No choice changes a result.

    Raises:
        InputError: an option out of range, or an unknown ``isa`` or ``weights``.
        PackageError: the package is missing, damaged, or no package.
        UnsupportedError: this CPU lacks ``isa``, or the package needs a newer version.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        num_threads: int | None = None,
        streams: int = 1,
        isa: str | None = None,
        weights: str | None = None,
    ) -> None:
        if num_threads is not None:
            remedy = "leave it out (None) for the threads this process may use"
            check_count("num_threads", num_threads, remedy, most=MAX_THREADS)
        check_count("streams", streams, "1 runs one call at a time", most=MAX_THREADS)
        if isa is not None and not isinstance(isa, str):
            available = ", ".join(_core.available_isas())
            raise InputError(f"isa is {shown(isa)}; use one of {available}, or None for the best available")
        if weights is not None and not isinstance(weights, str):
            raise InputError(
                f"weights is {shown(weights)}; use 'mapped', 'resident' or 'auto', or None for 'auto'"
            )
        # Absolute, so that a pickle opens the same package from another working directory.
        self._path = find_package(path).absolute()
        self._options = {"num_threads": num_threads, "streams": streams, "isa": isa, "weights": weights}
        self._core = _core.Engine(self._path, num_threads or 0, streams, isa, weights)
        self._info = self._core.info
        self._config = json.loads(self._core.config_json)
        self._task = self._config["task"]
        self._labels_of_task = tuple(self._task.get("labels", ()))
        self._prompts = Prompts(
            self._config, always=("query", "document") if self._task["kind"] == "embedding" else ()
        )
        self._texts = TextEncoder(
            self._core.tokenizer_json,
            self._task["max_length"],
            cut=self._task["kind"] != "span-qa",
            vocab_size=self._info["vocab_size"],
            type_vocab_size=self._info["type_vocab_size"],
            rules=TextRules.from_json(self._config.get("text", {})),
        )
        self._profile = stages.asked_for()
        self._times = Timekeeper(
            self._path,
            self._core.explain,
            partial(_prepared, self._core, self._info),  # not a method: a cycle would keep the memory
            self._info,
            self._task["max_length"],
        )
        self._lifetime = Lifetime()

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        num_threads: int | None = None,
        streams: int = 1,
        isa: str | None = None,
        weights: str | None = None,
        revision: str | None = None,
    ) -> Engine:
        """Opens a model by name.

        Args:
            model: a package folder, a packaged model (``"minilm-l6-squad"`` for ``answer``,
                ``"all-minilm-l6-v2"`` for ``encode``; both offline), or a Hugging Face hub id; None opens the
                first.
            num_threads: as for :class:`Engine`.
            streams: as for :class:`Engine`.
            isa: as for :class:`Engine`.
            weights: as for :class:`Engine`.
            revision: branch, tag or commit of a hub id.

        Raises:
            InputError: an option out of range.
            PackageError: nothing is there, or it is no package; for a checkpoint the message holds the
                ``qla convert`` line to run.
            UnsupportedError: this CPU lacks ``isa``, or a hub id is given without ``huggingface_hub``
                installed.
        """
        path = find_package(model, revision=revision)
        return cls(path, num_threads=num_threads, streams=streams, isa=isa, weights=weights)

    def close(self) -> None:
        """Gives up the model: its memory is unmapped, and later calls raise InputError.

        A call that another thread is in ends as usual, and the memory is given up after it. Closing twice does
        nothing. ``with Engine(path) as engine:`` closes at the end of the block.
        """
        if self._lifetime.close():
            self._release()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._lifetime.closed

    @while_open
    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self) -> None:
        self._core.close()

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
        return self._labels_of_task

    @property
    def max_length(self) -> int:
        """Tokens that one sequence of text may have, special tokens included."""
        return self._task["max_length"]

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts, name to text: what :meth:`encode` and :meth:`rank` take as ``prompt_name``."""
        return dict(self._prompts.texts)

    @property
    def default_prompt(self) -> str | None:
        """The name of the prompt that is used where a call names none; None: no prompt."""
        return self._prompts.default

    @property
    def layers(self) -> int:
        """The model's layers: how many entries a LengthConfig needs."""
        return self._info["layers"]

    @property
    def num_threads(self) -> int:
        """Threads that one call uses."""
        return self._info["num_threads"]

    @property
    @while_open
    def lengths(self) -> dict[str, NamedLength]:
        """The named length configs, with MACs at ``max_length`` and the accuracy measured with each."""
        return dict(self._table.named)

    @property
    @while_open
    def frontier(self) -> dict[str, NamedLength]:
        """The configs that policies choose from beside :attr:`lengths`, by the names that results report and
        ``length=`` takes: their own, else ``frontier-1``, ``frontier-2``, in the package's order."""
        return dict(self._table.frontier)

    @lazy
    def _table(self) -> LengthTable:
        return LengthTable(json.loads(self._core.length_configs_json), self._info, self._task)

    @lazy
    def _best_first(self) -> list[NamedLength]:
        return policies.best_first(self._table.distinct)

    @property
    @while_open
    def cost_model(self) -> CostModel:
        """What calls take on this machine, for ``LatencyBudget``.

        The first use measures some calls, in about half a second for a model like MiniLM, and leaves the figures
        in the user's cache (``$XDG_CACHE_HOME/qla_runtime``) for later processes. Where another process measures
        at the moment, it waits for its figures, 3 seconds at most.
        """
        return self._times.model

    @while_open
    def warm_up(self) -> None:
        """Does now what would slow down first calls: :attr:`cost_model`, the tokenizer, and the memory to work in.
        A cost model that turned out wrong is measured again.

        A latency budget counts wall time, so an engine with deadlines is warmed up once when it is opened.

        Raises:
            PackageError: the tokenizer cannot be read.
        """
        self._texts.load()
        _prepared(self._core, self._info, [self.max_length], self._table.configs["full"])()
        self._times.refresh()
        _ = self._best_first

    @while_open
    def explain(self) -> str:
        """What runs here and why: CPU features, kernels, threads and their source, package and lengths, and how
        old and how good the cost model is that latency budgets rest on."""
        lines = [self._core.explain().rstrip("\n"), f"lengths (at {self.max_length} tokens)"]
        for entry in self._table.named.values():
            measured = entry.accuracy
            figure = f"   {measured.metric} {measured.value:g} on {measured.data}" if measured else ""
            lines.append(f"  {entry.name:<10} {entry.macs_share:6.1%} of full, {entry.macs:,} MACs{figure}")
        lines += ["latency budgets", *(f"  {line}" for line in self._times.describe())]
        if not policies.compares(self._table.distinct):
            lines.append(
                "  no accuracy of 'full' and of another config on the same data: more MACs count as better"
            )
        return visible("\n".join(lines))

    def __repr__(self) -> str:
        return f"<Engine {self.name!r}: {self.task}, {self.layers} layers, {self.num_threads} threads>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self._options)

    # ----------------------------------------------------------------------------------------- tasks

    @while_open
    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        details: bool = False,
        top_k: int = 1,
        max_answer_tokens: int | None = None,
        doc_stride: int | None = None,
        handle_impossible_answer: bool | None = None,
        null_threshold: float | None = None,
        score: str | None = None,
        progress: Progress = False,
    ) -> Any:
        """Finds the answer to a question in a context.

        A context longer than the model reads is searched in overlapping windows. A span's score is
        ``p_start * p_end``; docs/question-answering.md says what each rule of ``score`` compares it with.

        Args:
            question: a question, or a list of them.
            context: the text that holds the answer: one per question, or one text for all questions.
            length: a name, a length config, a policy, or a list of the first two, one per question.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            details: add what the best window looked like: ``"windows"`` (their number), ``"tokens"`` (its
                tokens) and ``"kept"`` (per layer, a list of positions in it).
            top_k: more than 1 adds ``"answers"``, the best ``top_k``; they may overlap.
            max_answer_tokens: tokens of an answer at most; None takes the package's limit.
            doc_stride: context tokens that neighbouring windows share, less than :attr:`max_length`; None takes
                the package's.
            handle_impossible_answer: let "no answer" win where the model finds it more likely than every span;
                None: as the package says (False, unless it was made for questions without an answer).
            null_threshold: say "no answer" where ``"null_score"`` lies above this (0 to 1), whatever the best
                span's score; None compares the two.
            score: ``"against-null"`` (the default), ``"all-windows"``, or ``"with-null"`` (the default where "no
                answer" may win).
            progress: True shows a bar on standard error; a function is called with the number of questions done
                since the last call. ``Escalate`` counts those that it repeats once more.

        Returns:
            For a single question a dict, else a list of them: ``"answer"`` (str; ``""`` for no answer),
            ``"score"`` (0 to 1), ``"start"`` and ``"end"`` (characters of the context; 0 and 0 for no answer),
            ``"no_answer"`` (bool), ``"null_score"`` (0 to 1: the probability that no window holds an answer),
            and if asked ``"answers"``, a list of ``{"answer", "score", "start", "end"}``, best first.
            ``"length"`` (str: the config's name, or the config spelled out; ``length=`` takes it again),
            ``"length_config"`` (dict of ``rule``, ``values``, ``keep_cls``), ``"accuracy"`` (dict of
            ``metric``, ``value``, ``data``: what the package measured with the config; None where nothing
            was), ``"macs"`` (int, over all windows), ``"budget_met"`` (None where there was no budget), and
            with ``Escalate`` ``"ran"`` (the lengths that ran, in order). All are plain JSON types.

        Raises:
            InputError: an empty or missing text, unequal numbers, a question that leaves no room for a
                context, or an option out of range.
            UnsupportedError: the model does not answer questions, or ``length`` is a policy that it cannot
                follow.
        """
        began = perf_counter()
        self._require("span-qa", "answer")
        asked = {
            "top_k": top_k,
            "max_answer_tokens": max_answer_tokens,
            "doc_stride": doc_stride,
            "handle_impossible_answer": handle_impossible_answer,
            "null_threshold": null_threshold,
            "score": score,
        }
        check_switch("details", details)
        options = AnswerOptions.checked(self._task, **asked)
        questions, single = check_texts(question, "question")
        contexts, single_context = check_texts(context, "context")
        if single_context and not single:
            contexts, single_context = contexts * len(questions), False
        if single != single_context or len(questions) != len(contexts):
            raise InputError(
                f"question is {_amount(questions, single)} and context {_amount(contexts, single_context)}; pass "
                "two texts, or two lists of the same length, or a list of questions and one context for all"
            )
        plan = self._plan(length, latency_ms, len(questions))
        if isinstance(plan, Escalate):

            def again(which: list[int]) -> list[dict[str, Any]]:
                chosen = [questions[i] for i in which], [contexts[i] for i in which]
                return self.answer(*chosen, plan.dear, details=details, progress=progress, **asked)

            first = self.answer(
                questions[0] if single else questions,
                contexts[0] if single else contexts,
                plan.cheap,
                details=details,
                progress=progress,
                **asked,
            )
            return _escalated(plan, first, single, again)
        results = self._in_parts(
            plan,
            began,
            batches(questions, contexts),
            lambda part: self._windows(questions, contexts, part, single, options.doc_stride),
            lambda part, windows, plan: self._answers(contexts, part, windows, plan, options, details),
            progress,
        )
        return _stamped(results, _budget_met(plan, began), single)

    @while_open
    def encode(
        self,
        sentences: str | Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        truncate: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        progress: Progress = False,
    ) -> NDArray[np.float32]:
        """Sentence embeddings, pooled and normalized as the model's own config says.

        Args:
            sentences: a sentence, or a list of them.
            length: a name, a length config, a policy, or a list of the first two, one per sentence.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            truncate: cut longer sentences at :attr:`max_length` tokens, with one warning that says how many;
                False raises instead.
            prompt_name: the name in :attr:`prompts` of a text to put before every sentence; None takes
                :attr:`default_prompt`.
            prompt: that text itself, ``""`` for none; ``prompt_name`` is then ignored, with a warning.
            truncate_dim: give the first so many numbers of each vector; None gives as many as the model's own
                config says. A vector of length 1 is shorter afterwards.
            normalize_embeddings: bring vectors to length 1 in the end, also where the model's config does not.
            progress: True shows a bar on standard error; a function is called with the number of sentences done
                since the last call. ``Escalate`` counts those that it repeats once more.

        Returns:
            float32 (width,) for a single sentence, else (sentences, width). ``width`` is the model's hidden size,
            or ``truncate_dim``.

        Raises:
            InputError: an empty or missing text, or one too long with ``truncate=False``; no prompt of that name;
                a ``truncate_dim`` that is no width of this model.
            UnsupportedError: the model gives no embeddings, or ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        self._require("embedding", "encode")
        texts, single = check_texts(sentences, "sentences", blank=True)
        check_switch("truncate", truncate)
        check_switch("normalize_embeddings", normalize_embeddings)
        chosen = self._prompts.choose(prompt, prompt_name)
        texts = [chosen + text for text in texts]
        width = vectors.check_truncate_dim(truncate_dim, self._info["hidden"]) or self._task.get("truncate_dim")
        plan = self._plan(length, latency_ms, len(texts), no_confidence="encode() gives vectors")
        out = np.empty((len(texts), width or self._info["hidden"]), np.float32)

        def embed(part: slice, encoded: Encoded, plan: LengthPlan) -> list[int]:
            """Fills ``out``; how many texts were cut."""
            pooled = self._run(encoded.batch, plan.index[part], plan, {"logits"})["logits"][:, :width]
            out[part] = vectors.normalized(pooled) if normalize_embeddings else pooled
            return [int(encoded.cut.sum())]

        cut_texts = sum(
            self._in_parts(
                plan,
                began,
                batches(texts),
                lambda part: self._encoded(texts[part], "sentences", part, single, truncate),
                embed,
                progress,
            )
        )
        if cut_texts:
            warnings.warn(
                f"{cut_texts} of {len(texts)} sentences have more than {self.max_length} tokens and were cut "
                "there; split them, or pass truncate=False to be refused",
                stacklevel=3,  # past while_open
            )
        return out[0] if single else out

    def encode_query(
        self,
        sentences: str | Sequence[str],
        length: Length = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """:meth:`encode` for what is searched with: with the prompt called ``query``, or none where there is none.

        :attr:`default_prompt` is not used. ``prompt_name``, ``prompt`` and all else are as for :meth:`encode`.
        """
        self._require("embedding", "encode_query")
        return self.encode(sentences, length, prompt=self._prompts.query(prompt, prompt_name), **options)

    def encode_document(
        self,
        sentences: str | Sequence[str],
        length: Length = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """:meth:`encode` for what is found: with the prompt called ``document``, or none where there is none.

        :attr:`default_prompt` is not used, and neither is a prompt of another name, such as ``passage``:
        sentence-transformers 6 does the same. Name it: ``prompt_name="passage"``. All else is as for
        :meth:`encode`.
        """
        self._require("embedding", "encode_document")
        return self.encode(sentences, length, prompt=self._prompts.document(prompt, prompt_name), **options)

    def similarity(self, first: ArrayLike, second: ArrayLike) -> NDArray[np.float32]:
        """Compares vectors as the model's own config says: cosine, where it says nothing.

        Args:
            first: (n, width) vectors of :meth:`encode`, or one of (width,).
            second: (m, width), or (width,).

        Returns:
            float32 (n, m), more for what is closer: Euclidean and Manhattan distances are negative.

        Raises:
            InputError: not vectors of one width.
            UnsupportedError: the model gives no embeddings.
        """
        self._require("embedding", "similarity")
        return vectors.similarity(self._task.get("similarity", "cosine"), first, second)

    @while_open
    def classify(
        self,
        texts: str | Sequence[str],
        text_pairs: str | Sequence[str] | None = None,
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = 1,
        truncate: bool = True,
        progress: Progress = False,
    ) -> Any:
        """Labels for texts, or for pairs of texts.

        Args:
            texts: a text, or a list of them.
            text_pairs: the second text of each pair, for models trained on pairs.
            length: a name, a length config, a policy, or a list of the first two, one per text.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            top_k: more than 1 adds ``"scores"``, the best ``top_k`` labels; None adds all of them.
            truncate: cut longer texts at :attr:`max_length` tokens and say so; False raises instead.
            progress: True shows a bar on standard error; a function is called with the number of texts done
                since the last call. ``Escalate`` counts those that it repeats once more.

        Returns:
            For a single text a dict, else a list of them: ``"label"`` and ``"score"`` of the best label (a
            probability; for a regression model, and any other of one label, the value itself), ``"length"``,
            ``"length_config"``, ``"accuracy"``, ``"macs"``, ``"budget_met"`` and ``"ran"`` as in :meth:`answer`,
            ``"truncated"``, and if asked ``"scores"``, a list of ``{"label", "score"}``, best first.

        Raises:
            InputError: an empty or missing text, unequal numbers, ``top_k`` below 1, or too long with
                ``truncate=False``.
            UnsupportedError: the model does not classify texts, or ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        self._require("sequence-classification", "classify")
        firsts, single = check_texts(texts, "texts", blank=True)
        seconds = None
        if text_pairs is not None:
            seconds, single_pair = check_texts(text_pairs, "text_pairs", blank=True)
            if single != single_pair or len(firsts) != len(seconds):
                raise InputError(
                    f"there are {_amount(firsts, single)} for {_amount(seconds, single_pair)} in text_pairs; "
                    "pass two texts, or two lists of the same length"
                )
        if top_k is not None:
            check_count("top_k", top_k, "None gives the scores of all labels")
        check_switch("truncate", truncate)
        regression = self._task["problem"] == "regression"
        no_confidence = "classify() of a regression model gives values" if regression else None
        plan = self._plan(length, latency_ms, len(firsts), no_confidence=no_confidence)
        if isinstance(plan, Escalate):

            def again(which: list[int]) -> list[dict[str, Any]]:
                chosen = [firsts[i] for i in which], seconds and [seconds[i] for i in which]
                return self.classify(*chosen, plan.dear, top_k=top_k, truncate=truncate, progress=progress)

            given = (firsts[0], seconds and seconds[0]) if single else (firsts, seconds)
            first = self.classify(*given, plan.cheap, top_k=top_k, truncate=truncate, progress=progress)
            return _escalated(plan, first, single, again)
        pairs = firsts if seconds is None else list(zip(firsts, seconds, strict=True))
        results = self._in_parts(
            plan,
            began,
            batches(firsts, seconds),
            lambda part: self._encoded(pairs[part], "texts", part, single, truncate),
            lambda part, encoded, plan: self._labels(part, encoded, plan, top_k),
            progress,
        )
        return _stamped(results, _budget_met(plan, began), single)

    @while_open
    def rank(
        self,
        query: str,
        documents: Sequence[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = None,
        truncate: bool = True,
        raw_scores: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        progress: Progress = False,
    ) -> list[dict[str, Any]]:
        """Orders documents by how well they answer a query, with a cross-encoder (a model of one label).

        A score is what sentence-transformers' CrossEncoder gives: the model's logit under the activation of its
        own config, a sigmoid where that says nothing. A package whose config.json has no ``activation`` gives the
        logit.

        Args:
            query: the query.
            documents: the documents.
            length: a name, a length config, a policy, or a list of the first two, one per document.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            top_k: give the best ``top_k`` only; None gives all.
            truncate: cut longer pairs at :attr:`max_length` tokens and say so; False raises instead.
            raw_scores: give the logits, without the activation.
            prompt_name: the name in :attr:`prompts` of a text to put before the query; None takes
                :attr:`default_prompt`.
            prompt: that text itself; ``""`` for none.
            progress: True shows a bar on standard error; a function is called with the number of documents done
                since the last call. ``Escalate`` counts those that it repeats once more.

        Returns:
            dicts, best first (equal scores in the order of ``documents``): ``"index"`` (into ``documents``),
            ``"score"``, ``"truncated"``, and ``"length"``, ``"length_config"``, ``"accuracy"``, ``"macs"``,
            ``"budget_met"`` as in :meth:`answer`.

        Raises:
            InputError: an empty or missing text, ``top_k`` below 1, or too long with ``truncate=False``; no prompt
                of that name.
            UnsupportedError: the model is no cross-encoder, or ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
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
        texts, _ = check_texts(documents, "documents", blank=True)
        if top_k is not None:
            check_count("top_k", top_k, "None gives all documents")
        check_switch("truncate", truncate)
        activation = "identity" if check_switch("raw_scores", raw_scores) else self._task.get("activation")
        plan = self._plan(length, latency_ms, len(texts), no_confidence="rank() gives relevances")
        asked = self._prompts.choose(prompt, prompt_name) + query
        pairs = [(asked, text) for text in texts]
        results = self._in_parts(
            plan,
            began,
            batches(texts),
            lambda part: self._encoded(pairs[part], "documents", part, False, truncate),
            lambda part, encoded, plan: self._labels(part, encoded, plan, 1, activation),
            progress,
        )
        _stamped(results, _budget_met(plan, began), False)
        # Stable, so that equal scores stay in the caller's order.
        order = sorted(range(len(results)), key=lambda i: -results[i]["score"])[:top_k]
        keys = ("score", "length", "length_config", "accuracy", "macs", "truncated", "budget_met")
        return [{"index": i, **{key: results[i][key] for key in keys}} for i in order]

    @while_open
    def tag(
        self,
        texts: str | Iterable[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        truncate: bool = True,
        aggregation_strategy: str = "words",
        label_scheme: str | None = None,
        ignore_labels: Sequence[str] | None = None,
        progress: Progress = False,
    ) -> Any:
        """Finds labelled spans, such as names, in texts.

        Args:
            texts: a text, or a list of them.
            length: a name, a length config, a policy, or a list of the first two, one per text.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            truncate: cut longer texts at :attr:`max_length` tokens and say so; False raises instead.
            aggregation_strategy: how labels of pieces become spans. ``"words"``: each word has the label of its
                first piece, and neighbours join as the label scheme says. ``"pieces"``: the same with a label
                for each piece. ``"none"``, ``"simple"``, ``"first"``, ``"average"``, ``"max"``: as in
                transformers. docs/tags.md compares them.
            label_scheme: ``"bio"``, ``"iob1"``, ``"bioes"``, ``"bilou"`` or ``"plain"``; None reads it from the
                labels' names. For ``"words"`` and ``"pieces"``.
            ignore_labels: labels, without ``B-`` and the like, that are left out; None: those that stand for no
                entity (``O``).
            progress: True shows a bar on standard error; a function is called with the number of texts done
                since the last call. ``Escalate`` counts those that it repeats once more.

        Returns:
            For a single text :class:`heads.Spans`, else a list of them: a list of dicts with ``"label"``,
            ``"score"`` (mean probability of its words or pieces), ``"start"`` and ``"end"`` (characters),
            ``"text"``; and attributes ``truncated``, ``confidence``, and ``length``, ``length_config``,
            ``accuracy``, ``macs``, ``budget_met`` and ``ran`` as in :meth:`answer`.
            With ``"none"`` one dict per token that is not ignored, with ``"index"`` (among the tokens) and
            ``"word"`` (the token). A text without a visible character has no spans.

        Raises:
            InputError: a missing text, one too long with ``truncate=False``, an unknown strategy or scheme, or a
                scheme that the labels are not written in.
            UnsupportedError: the model does not label tokens, or ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        self._require("token-classification", "tag")
        checked, single = check_texts(texts, "texts", blank=True)
        check_switch("truncate", truncate)
        rules = tags.tag_rules(self.labels, aggregation_strategy, label_scheme, ignore_labels)
        plan = self._plan(length, latency_ms, len(checked))
        if isinstance(plan, Escalate):
            options: dict[str, Any] = {
                "truncate": truncate,
                "aggregation_strategy": aggregation_strategy,
                "label_scheme": label_scheme,
                "ignore_labels": ignore_labels,
                "progress": progress,
            }
            first = self.tag(checked[0] if single else checked, plan.cheap, **options)
            return _escalated(
                plan, first, single, lambda which: self.tag([checked[i] for i in which], plan.dear, **options)
            )
        results = self._in_parts(
            plan,
            began,
            batches(checked),
            lambda part: self._encoded(checked[part], "texts", part, single, truncate, with_offsets=True),
            lambda part, encoded, plan: self._spans(checked[part], part, encoded, plan, rules),
            progress,
        )
        return _stamped(results, _budget_met(plan, began), single)

    @while_open
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
        output_stages: bool = False,
    ) -> EncoderOutput:
        """Runs the encoder and the model's head on token ids. Nothing is truncated.

        Args:
            input_ids: a list of integer sequences of any lengths, or a 2-D integer array (sequences, tokens).
            attention_mask: the same shape, 1 on tokens and 0 on the padding to their right; None: every id is
                a token.
            token_type_ids: the same shape; None: all 0.
            length: a name, a length config, a policy, or a list of the first two, one per sequence.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            output_hidden_states: keep the states after every layer.
            output_scores: keep the attention that each token received in every layer.
            output_stages: time the stages of the forward pass.

        Returns:
            :class:`EncoderOutput`; its arrays have the real length of each sequence, not the padded one.

        Raises:
            InputError: not integers, empty, out of the vocabulary, longer than the model's positions, shapes
                that differ, or a mask that is not right-padded.
            UnsupportedError: ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        switches = {
            "hidden_states": output_hidden_states,
            "scores": output_scores,
            "stages": output_stages,
        }
        wanted = {name for name, value in switches.items() if check_switch(f"output_{name}", value)}
        batch = inputs.ragged(input_ids, attention_mask, token_type_ids)
        asked = self._plan(length, latency_ms, batch.count, no_confidence="forward() gives logits")
        plan, ran = self._within_budget(asked, began, [batch], batch.count)
        want = {"last_hidden", "logits", "kept", "macs"} | wanted
        arrays = self._run(batch, plan.index, plan, want)
        ran()
        lengths = [plan.report(i) for i in range(batch.count)]
        return EncoderOutput(arrays, batch.offsets, self.task, lengths, _budget_met(asked, began))

    # ------------------------------------------------------------------------------------ inner rooms

    def _in_parts(
        self,
        plan: LengthPlan | LatencyBudget,
        began: float,
        parts: Iterable[slice],
        tokenize: Callable[[slice], Tokenized],
        finish: Callable[[slice, Tokenized, LengthPlan], list[Result]],
        progress: Progress = False,
    ) -> list[Result]:
        """The results of a call over texts: each part tokenized, run and finished."""
        if progress is not False:
            parts = in_steps(parts)
            with reported(progress, parts[-1].stop) as done:

                def finish_and_tell(part: slice, tokenized: Tokenized, plan: LengthPlan) -> list[Result]:
                    results = finish(part, tokenized, plan)
                    done(part.stop - part.start)
                    return results

                return self._in_parts(plan, began, parts, tokenize, finish_and_tell)
        if isinstance(plan, LengthPlan):  # one part after the other, so that memory does not grow with the call
            return [result for part in parts for result in finish(part, tokenize(part), plan)]
        ready = [(part, tokenize(part)) for part in parts]
        chosen, ran = self._within_budget(
            plan, began, [tokenized.batch for _, tokenized in ready], ready[-1][0].stop
        )
        results = [result for part, tokenized in ready for result in finish(part, tokenized, chosen)]
        ran()
        return results

    def _within_budget(
        self, plan: LengthPlan | LatencyBudget, began: float, parts: Sequence[Ragged], count: int
    ) -> tuple[LengthPlan, Callable[[], None]]:
        """The plan itself, or for a budget that has run since ``began`` the best config for what is left of it.

        Args:
            plan: of the call.
            began: ``perf_counter`` at the call's beginning.
            parts: all sequences of the call, tokenized.
            count: inputs of the call; for ``answer`` the questions.

        Returns:
            What to run, and what to call when it has run: the next budget then knows how long this one took.
        """
        if isinstance(plan, LengthPlan):
            return plan, lambda: None
        end = began + 1e-3 * plan.ms
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        chosen, expected = policies.within_time(
            self._best_first, self.cost_model, lengths, lambda: end - perf_counter(), self._times.pace.ratio
        )
        decided = perf_counter()
        return (
            chosen.plan(count),
            lambda: self._times.saw(expected, perf_counter() - decided, lambda: end - perf_counter()),
        )

    def _windows(
        self, questions: list[str], contexts: list[str], part: slice, single: bool, stride: int | None = None
    ) -> QuestionWindows:
        """The windows of one slice's questions; neighbours share ``stride`` tokens, or what the package says."""
        stride = self._task["doc_stride"] if stride is None else stride
        names = ["question"] if single else [f"question[{i}]" for i in range(part.start, part.stop)]
        return self._texts.windows(questions[part], contexts[part], stride, names)

    def _encoded(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        what: str,
        part: slice,
        single: bool,
        truncate: bool,
        *,
        with_offsets: bool = False,
    ) -> Encoded:
        """One slice's texts, or pairs of texts, tokenized; too long ones are refused unless ``truncate``."""
        encoded = self._texts.encode(texts, with_offsets=with_offsets)
        self._refuse_cut(encoded.cut, truncate, what, part, single)
        return encoded

    def _answers(
        self,
        contexts: list[str],
        part: slice,
        windows: QuestionWindows,
        plan: LengthPlan,
        options: AnswerOptions,
        details: bool,
    ) -> list[dict[str, Any]]:
        """``answer`` for the questions of one slice."""
        per_question = np.diff(windows.questions)
        index = np.repeat(plan.index[part], per_question)
        want = {"logits", "macs", "kept"} if details else {"logits", "macs"}
        arrays = self._run(windows.batch, index, plan, want)
        macs = np.add.reduceat(arrays["macs"], windows.questions[:-1])
        results = []
        for q, found in enumerate(read_answers(windows, arrays["logits"], contexts[part], options)):
            result = found.entries[0] | {
                **plan.report(part.start + q),
                "macs": int(macs[q]),
                "budget_met": None,
                "no_answer": found.no_answer,
                "null_score": found.null_score,
            }
            if options.top_k != 1:
                result["answers"] = found.entries
            if details:
                offset = int(windows.batch.offsets[found.window])
                counts = arrays["kept_counts"][:, found.window]
                rows = zip(arrays["kept"], counts, strict=True)
                kept = [row[offset : offset + count].tolist() for row, count in rows]
                tokens = windows.tokens(q, found.window)
                result |= {"windows": int(per_question[q]), "tokens": tokens, "kept": kept}
            results.append(result)
        return results

    def _labels(
        self, part: slice, encoded: Encoded, plan: LengthPlan, top_k: int | None, activation: str | None = None
    ) -> list[dict[str, Any]]:
        """``classify``, or with an activation ``rank``, for the texts, or pairs of texts, of one slice."""
        arrays = self._run(encoded.batch, plan.index[part], plan, {"logits", "macs"})
        logits = arrays["logits"]
        scored = activate(activation, logits) if activation else heads.label_scores(logits, self._task["problem"])
        results = []
        for i, scores in enumerate(scored):
            # By logits: probabilities of sure labels round to the same number.
            order = np.argsort(-logits[i], kind="stable")
            result = {
                "label": self.labels[order[0]],
                "score": float(scores[order[0]]),
                **plan.report(part.start + i),
                "macs": int(arrays["macs"][i]),
                "truncated": bool(encoded.cut[i]),
                "budget_met": None,
            }
            if top_k != 1:
                result["scores"] = [{"label": self.labels[j], "score": float(scores[j])} for j in order[:top_k]]
            results.append(result)
        return results

    def _spans(
        self, texts: list[str], part: slice, encoded: Encoded, plan: LengthPlan, rules: tags.TagRules
    ) -> list[heads.Spans]:
        """``tag`` for the texts of one slice."""
        arrays = self._run(encoded.batch, plan.index[part], plan, {"logits", "macs"})
        tokenizer = self._texts.load()
        results = []
        for i, (text, encoding) in enumerate(zip(texts, encoded.encodings, strict=True)):
            logits = arrays["logits"][slice(*encoded.batch.offsets[i : i + 2])]
            spans, confidence = tags.find_spans(rules, tokenizer, text, encoding, logits)
            results.append(
                heads.Spans(
                    spans,
                    truncated=bool(encoded.cut[i]),
                    **plan.report(part.start + i),
                    macs=int(arrays["macs"][i]),
                    confidence=confidence,
                )
            )
        return results

    def _plan(
        self, length: Length, latency_ms: float | None, count: int, *, no_confidence: str | None = None
    ) -> LengthPlan | LatencyBudget | Escalate:
        """What a call over ``count`` inputs runs, as far as that is known before they are tokenized.

        Args:
            length: as the caller gave it.
            latency_ms: as the caller gave it.
            count: inputs of the call.
            no_confidence: in words, why nothing tells how sure a result is; ``Escalate`` is then refused.
        """
        plan = resolve(length, latency_ms, count, self._table.configs, self.layers)
        if isinstance(plan, Escalate) and no_confidence:
            raise UnsupportedError(
                f"Escalate repeats what a confidence shows to be unsure, and {no_confidence} without one; pass a "
                "name, a LengthConfig or another policy as length="
            )
        if isinstance(plan, Escalate):
            return policies.with_threshold(plan, json.loads(self._core.length_configs_json))
        if isinstance(plan, MaxLoss):
            return policies.within_loss(plan, self._table.distinct).plan(count)
        return self._table.with_accuracies(plan) if isinstance(plan, LengthPlan) else plan

    def _run(
        self, batch: Ragged, index: Sequence[int] | NDArray[np.int64], plan: LengthPlan, want: set[str]
    ) -> dict[str, NDArray[Any]]:
        """One native call: ``index`` says per sequence which of the plan's configs it runs."""
        chosen = None if len(plan.configs) == 1 else np.asarray(index, np.int32)
        lengths = [config.to_native() for config in plan.configs]
        if not self._profile:
            return self._core.run(batch.ids, batch.offsets, batch.type_ids, lengths, chosen, want)
        arrays = self._core.run(batch.ids, batch.offsets, batch.type_ids, lengths, chosen, want | {"stages"})
        stages.report(stages.by_name(arrays["stages"]), batch.count, len(batch.ids))
        return arrays

    def _require(self, task: str, method: str) -> None:
        if self.task != task:
            packaged = f", such as {PACKAGED[task]!r}, which is packaged" if task in PACKAGED else ""
            raise UnsupportedError(
                f"{method}() needs a {task} model; {self.name!r} is a {self.task} model. Call "
                f"{_FITTING_CALL[self.task]}, or open another model{packaged}"
            )

    def _refuse_cut(self, cut: NDArray[np.bool_], truncate: bool, what: str, part: slice, single: bool) -> None:
        if truncate or not cut.any():
            return
        where = what if single else f"{what}[{part.start + int(np.argmax(cut))}]"
        raise InputError(
            f"{where} has more than {self.max_length} tokens, the most that this model reads; shorten or "
            "split it, or pass truncate=True"
        )


def _prepared(
    core: _core.Engine, info: Mapping[str, Any], lengths: Sequence[int], config: LengthConfig
) -> Callable[[], object]:
    """A native call over random ids, ready to be timed."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    with importing():
        random = np.random.default_rng(0)
    ids = random.integers(0, info["vocab_size"], offsets[-1], dtype=np.int32)
    native = [config.to_native()]
    return lambda: core.run(ids, offsets, None, native, None, {"logits", "macs"})


def _reopen(path: str, options: dict[str, Any]) -> Engine:
    """Unpickling: the same package with the same options."""
    return Engine(path, **options)


def _budget_met(plan: LengthPlan | LatencyBudget, began: float) -> bool | None:
    """Whether a call that began at ``perf_counter`` = ``began`` keeps within its budget; None without one."""
    return perf_counter() - began <= 1e-3 * plan.ms if isinstance(plan, LatencyBudget) else None


def _stamped(results: list[Any], met: bool | None, single: bool) -> Any:
    """The results, or the only one of a single input, with their ``budget_met``."""
    for result in results:
        if isinstance(result, heads.Spans):
            result.budget_met = met
        else:
            result["budget_met"] = met
    return results[0] if single else results


def _escalated(policy: Escalate, first: Any, single: bool, again: Callable[[list[int]], list[Any]]) -> Any:
    """The results of a cheap run with the unsure ones replaced; each reports the MACs of all its runs."""
    results = [first] if single else first
    of_spans = isinstance(results[0], heads.Spans)

    def tell(result: Any, before: Any | None = None) -> Any:
        """The result with what ran for it, and with the MACs of all that ran."""
        if of_spans:
            result.ran = [*(before.ran if before else ()), result.length]
            result.macs += before.macs if before else 0
            return result
        return result | {
            "ran": [*(before["ran"] if before else ()), result["length"]],
            "macs": result["macs"] + (before["macs"] if before else 0),
        }

    results = [tell(result) for result in results]
    confidence = attrgetter("confidence") if of_spans else itemgetter("score")
    merged = policies.escalate(results, confidence, policy.threshold, again, lambda cheap, dear: tell(dear, cheap))
    return merged[0] if single else merged


def _amount(texts: list[str], single: bool) -> str:
    return "a single text" if single else f"a list of {len(texts)}"
