"""The engine: one loaded model, and for every call a choice of how many tokens its layers keep."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime import _core, inputs
from qla_runtime.arrays import Arrays
from qla_runtime.errors import InputError, UnsupportedError, a_model, shown, warn
from qla_runtime.hub import PACKAGED, find_package
from qla_runtime.lengths import policies
from qla_runtime.lengths.configs import Length, LengthConfig, LengthPlan, NamedLength, count_macs
from qla_runtime.lengths.cost_model import CostModel
from qla_runtime.lengths.timekeeper import Timekeeper
from qla_runtime.lifetime import Lifetime, while_open
from qla_runtime.options import check_count, check_switch
from qla_runtime.output import EncoderOutput
from qla_runtime.progress import Progress
from qla_runtime.runner import Runner
from qla_runtime.tasks import TASKS
from qla_runtime.tasks.answer import AnswerTask
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask, check_top_k, ranked
from qla_runtime.tasks.prepared import Call, OpenedModel, Prepared, Task, one_each
from qla_runtime.tasks.prompts import Prompts
from qla_runtime.tasks.results import Answer, Label, Ranked, Spans
from qla_runtime.tasks.tag import TagTask
from qla_runtime.terminal import visible
from qla_runtime.texts.text_encoder import TextEncoder
from qla_runtime.texts.tokenizer import TextRules
from qla_runtime.texts.windows import QuestionWindows

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qla_runtime.tasks.keywords import AnswerKeywords, ClassifyKeywords, EncodeKeywords, TagKeywords

Result = TypeVar("Result")
AnyTask = TypeVar("AnyTask", bound=Task)

MAX_THREADS = 1024
"""Threads per call, and streams, that an engine accepts at most."""


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
        config = json.loads(self._core.config_json)
        task: dict[str, Any] = config["task"]
        encoder = TextEncoder(
            self._core.tokenizer_json,
            task["max_length"],
            cut=task["kind"] != "span-qa",
            vocab_size=self._info["vocab_size"],
            type_vocab_size=self._info["type_vocab_size"],
            rules=TextRules.from_json(config.get("text", {})),
        )
        prompts = Prompts(config, always=("query", "document") if task["kind"] == "embedding" else ())
        self._model = OpenedModel(config["name"], task, encoder, prompts, self._info["hidden"])
        self._task = TASKS[task["kind"]](self._model)
        self._runner = Runner(self._core, self._path, task)
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
        return self._model.name

    @property
    def task(self) -> str:
        """``span-qa``, ``sequence-classification``, ``token-classification`` or ``embedding``."""
        return self._task.kind

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model tells apart; empty for question answering and embeddings."""
        return self._model.labels

    @property
    def max_length(self) -> int:
        """Tokens that one sequence of text may have, special tokens included."""
        length: int = self._model.settings["max_length"]
        return length

    @property
    def prompts(self) -> dict[str, str]:
        """The model's prompts, name to text: what :meth:`encode` and :meth:`rank` take as ``prompt_name``."""
        return dict(self._model.prompts.texts)

    @property
    def default_prompt(self) -> str | None:
        """The name of the prompt that is used where a call names none; None: no prompt."""
        return self._model.prompts.default

    @property
    def matryoshka_dims(self) -> tuple[int, ...]:
        """Widths that vectors were trained to be cut at, largest first: good values of ``truncate_dim``. Empty
        where the checkpoint names none, and for other tasks."""
        return tuple(self._model.settings.get("matryoshka_dims", ()))

    @property
    def layers(self) -> int:
        """The model's layers: how many entries a LengthConfig needs."""
        layers: int = self._info["layers"]
        return layers

    @property
    def num_threads(self) -> int:
        """Threads that one call uses."""
        threads: int = self._info["num_threads"]
        return threads

    @property
    def info(self) -> dict[str, Any]:
        """The model's shape and the engine's threads: ``layers``, ``hidden``, ``heads``, ``intermediate``,
        ``vocab_size``, ``max_positions``, ``type_vocab_size``, ``task``, ``outputs`` (numbers that the head gives
        per row), ``num_threads`` and ``streams``."""
        return dict(self._info)

    @property
    def task_settings(self) -> dict[str, Any]:
        """The ``task`` object of the package's ``config.json`` (docs/file-format.md)."""
        return copy.deepcopy(dict(self._model.settings))

    @property
    def text_encoder(self) -> TextEncoder:
        """The package's tokenizer, which gives the token ids that the methods for texts run."""
        return self._model.encoder

    @property
    @while_open
    def lengths(self) -> dict[str, NamedLength]:
        """The named length configs, with MACs at ``max_length`` and the accuracy measured with each."""
        return dict(self._runner.table.named)

    @property
    @while_open
    def frontier(self) -> dict[str, NamedLength]:
        """The configs that policies choose from beside :attr:`lengths`, by the names that results report and
        ``length=`` takes: their own, else ``frontier-1``, ``frontier-2``, in the package's order."""
        return dict(self._runner.table.frontier)

    @property
    @while_open
    def cost_model(self) -> CostModel:
        """What calls take on this machine, for ``LatencyBudget``.

        The first use measures some calls, in about half a second for a model like MiniLM, and leaves the figures
        in the user's cache (``$XDG_CACHE_HOME/qla_runtime``) for later processes. Where another process measures
        at the moment, it waits for its figures, 3 seconds at most.
        """
        return self._runner.times.model

    @property
    def timekeeper(self) -> Timekeeper:
        """What stands behind :attr:`cost_model`: its fit, and what calls under a budget said about it."""
        return self._runner.times

    @while_open
    def macs(self, tokens: int, length: str | LengthConfig | NamedLength | None = None) -> int:
        """Multiply-accumulates of one sequence, as results report them.

        Args:
            tokens: of the sequence, special tokens included.
            length: a name or a length config; None keeps every token.

        Raises:
            InputError: no such length, or a number of tokens below 1.
        """
        return count_macs(self._info, self._model.settings, tokens, self._runner.table.config(length))

    @while_open
    def warm_up(self) -> None:
        """Does now what would slow down first calls: :attr:`cost_model`, the tokenizer, and the memory to work in.
        A cost model that turned out wrong is measured again.

        A latency budget counts wall time, so an engine with deadlines is warmed up once when it is opened.

        Raises:
            PackageError: the tokenizer cannot be read.
        """
        self._model.encoder.load()
        self._runner.warm_up()

    @while_open
    def explain(self) -> str:
        """What runs here and why: CPU features, kernels, threads and their source, package and lengths, and how
        old and how good the cost model is that latency budgets rest on."""
        lines = [self._core.explain().rstrip("\n"), f"lengths (at {self.max_length} tokens)"]
        for entry in self._runner.table.named.values():
            measured = entry.accuracy
            figure = f"   {measured.metric} {measured.value:g} on {measured.data}" if measured else ""
            lines.append(f"  {entry.name:<10} {entry.macs_share:6.1%} of full, {entry.macs:,} MACs{figure}")
        lines += ["latency budgets", *(f"  {line}" for line in self._runner.times.describe())]
        if not policies.compares(self._runner.table.distinct):
            lines.append(
                "  no accuracy of 'full' and of another config on the same data: more MACs count as better"
            )
        return visible("\n".join(lines))

    def __repr__(self) -> str:
        return f"<Engine {self.name!r}: {self.task}, {self.layers} layers, {self.num_threads} threads>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (str(self._path), self._options)

    # ----------------------------------------------------------------------------------------- tasks

    @overload
    def answer(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self, question: str, context: str, length: Length = None, **options: Unpack[AnswerKeywords]
    ) -> Answer: ...

    @overload
    def answer(
        self,
        question: Iterable[str],
        context: str | Iterable[str],
        length: Length = None,
        **options: Unpack[AnswerKeywords],
    ) -> list[Answer]: ...

    @while_open
    def answer(
        self,
        question: str | Iterable[str],
        context: str | Iterable[str],
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
    ) -> Answer | list[Answer]:
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
        call = self.as_task(AnswerTask).answer(
            question,
            context,
            details=details,
            top_k=top_k,
            max_answer_tokens=max_answer_tokens,
            doc_stride=doc_stride,
            handle_impossible_answer=handle_impossible_answer,
            null_threshold=null_threshold,
            score=score,
        )
        results = self._runner.results(call, length, latency_ms, began, progress)
        return results[0] if call.single else results

    @while_open
    def encode(
        self,
        sentences: str | Iterable[str],
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
        task = self.as_task(EmbedTask)
        call = task.encode(
            sentences,
            truncate=truncate,
            prompt_name=prompt_name,
            prompt=prompt,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
        )
        out = np.empty((call.count, task.width(truncate_dim)), np.float32)
        done = cut = 0
        plan = self._runner.plan(length, latency_ms, call.count, call.runs_once or "")
        for part in self._runner.parts(call, plan, began, progress):
            for embedding in part:
                out[done] = embedding["vector"]
                done += 1
                cut += embedding["truncated"]
        if cut:
            warn(
                f"{cut} of {call.count} sentences have more than {self.max_length} tokens and were cut there; "
                "split them, or pass truncate=False to be refused"
            )
        return out[0] if call.single else out

    def encode_query(
        self,
        sentences: str | Iterable[str],
        length: Length = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[EncodeKeywords],
    ) -> NDArray[np.float32]:
        """:meth:`encode` for what is searched with: with the prompt called ``query``, or none where there is none.

        :attr:`default_prompt` is not used. ``prompt_name``, ``prompt`` and all else are as for :meth:`encode`.
        """
        self.as_task(EmbedTask, "encode_query")
        return self.encode(sentences, length, prompt=self._model.prompts.query(prompt, prompt_name), **options)

    def encode_document(
        self,
        sentences: str | Iterable[str],
        length: Length = None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        **options: Unpack[EncodeKeywords],
    ) -> NDArray[np.float32]:
        """:meth:`encode` for what is found: with the prompt called ``document``, or none where there is none.

        :attr:`default_prompt` is not used, and neither is a prompt of another name, such as ``passage``:
        sentence-transformers 6 does the same. Name it: ``prompt_name="passage"``. All else is as for
        :meth:`encode`.
        """
        self.as_task(EmbedTask, "encode_document")
        return self.encode(sentences, length, prompt=self._model.prompts.document(prompt, prompt_name), **options)

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
        return self.as_task(EmbedTask, "similarity").similarity(first, second)

    @overload
    def classify(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self,
        texts: str,
        text_pairs: str | None = None,
        length: Length = None,
        **options: Unpack[ClassifyKeywords],
    ) -> Label: ...

    @overload
    def classify(
        self,
        texts: Iterable[str],
        text_pairs: Iterable[str] | None = None,
        length: Length = None,
        **options: Unpack[ClassifyKeywords],
    ) -> list[Label]: ...

    @while_open
    def classify(
        self,
        texts: str | Iterable[str],
        text_pairs: str | Iterable[str] | None = None,
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = 1,
        truncate: bool = True,
        progress: Progress = False,
    ) -> Label | list[Label]:
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
        call = self.as_task(LabelTask).classify(texts, text_pairs, top_k=top_k, truncate=truncate)
        results = self._runner.results(call, length, latency_ms, began, progress)
        return results[0] if call.single else results

    @while_open
    def rank(
        self,
        query: str,
        documents: Iterable[str],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        top_k: int | None = None,
        truncate: bool = True,
        raw_scores: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        progress: Progress = False,
    ) -> list[Ranked]:
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
        call = self.as_task(LabelTask, "rank").rank(
            query,
            documents,
            truncate=truncate,
            raw_scores=raw_scores,
            prompt_name=prompt_name,
            prompt=prompt,
        )
        check_top_k(top_k, "None gives all documents")
        return ranked(self._runner.results(call, length, latency_ms, began, progress), top_k)

    @overload
    def tag(  # type: ignore[overload-overlap]  # a str is an Iterable[str], too
        self, texts: str, length: Length = None, **options: Unpack[TagKeywords]
    ) -> Spans: ...

    @overload
    def tag(self, texts: Iterable[str], length: Length = None, **options: Unpack[TagKeywords]) -> list[Spans]: ...

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
        ignore_labels: Collection[str] | None = None,
        progress: Progress = False,
    ) -> Spans | list[Spans]:
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
            For a single text :class:`~qla_runtime.tasks.results.Spans`, else a list of them: a list of dicts
            with ``"label"``, ``"score"`` (mean probability of its words or pieces), ``"start"`` and ``"end"``
            (characters), ``"text"``; and attributes ``truncated``, ``confidence``, and ``length``,
            ``length_config``, ``accuracy``, ``macs``, ``budget_met`` and ``ran`` as in :meth:`answer`.
            With ``"none"`` one dict per token that is not ignored, with ``"index"`` (among the tokens) and
            ``"word"`` (the token). A text without a visible character has no spans.

        Raises:
            InputError: a missing text, one too long with ``truncate=False``, an unknown strategy or scheme, or a
                scheme that the labels are not written in.
            UnsupportedError: the model does not label tokens, or ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        call = self.as_task(TagTask).tag(
            texts,
            truncate=truncate,
            aggregation_strategy=aggregation_strategy,
            label_scheme=label_scheme,
            ignore_labels=ignore_labels,
        )
        results = self._runner.results(call, length, latency_ms, began, progress)
        return results[0] if call.single else results

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
        kind = self.task

        def read(arrays: Arrays, plan: LengthPlan) -> list[EncoderOutput]:
            return [EncoderOutput(arrays, batch.offsets, kind, [plan.report(i) for i in range(batch.count)])]

        want = frozenset({"last_hidden", "logits", "kept", "macs"} | wanted)
        prepared = Prepared(batch, one_each(batch), want, read)
        plan = self._runner.plan(length, latency_ms, batch.count, "forward() gives logits without one")
        ((output,),) = self._runner.run([prepared.planned(plan, began)])
        return output

    # --------------------------------------------------------------------------- calls of mixed origin

    def as_task(self, task: type[AnyTask], method: str | None = None) -> AnyTask:
        """The model as one of :mod:`qla_runtime.tasks`, whose methods check the arguments of a call.

        With :meth:`prepare` and :meth:`run` it makes one batch of many calls, as a server does::

            task = engine.as_task(AnswerTask)
            first = engine.prepare(task.answer("Who wrote it?", "It was written by Ada."), "fast")
            second = engine.prepare(task.answer(questions, contexts, top_k=3), latency_ms=20)
            [answer], answers = engine.run([first, second])

        Args:
            task: the class.
            method: the method that needs it, as the error names it; None: the task's own.

        Raises:
            UnsupportedError: the model does something else.
        """
        if isinstance(self._task, task):
            return self._task
        packaged = f", such as {PACKAGED[task.kind]!r}, which is packaged" if task.kind in PACKAGED else ""
        raise UnsupportedError(
            f"{method or task.method}() needs {a_model(task.kind)}; {self.name!r} is {a_model(self.task)}. Call "
            f"{self._task.usage}, or open another model{packaged}"
        )

    @while_open
    def results(
        self,
        call: Call[Result],
        length: Length = None,
        *,
        latency_ms: float | None = None,
        progress: Progress = False,
    ) -> list[Result]:
        """Runs one call as the engine's own methods do: slice by slice, and twice where ``Escalate`` asks for it.

        Args:
            call: the checked arguments, from a method of :meth:`as_task`.
            length: a name, a length config, a policy, or a list of the first two, one per input.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.
            progress: as for :meth:`answer`.

        Returns:
            One result per input, also where the caller of ``call`` passed a single one.

        Raises:
            InputError: an input or a length that does not fit.
            PackageError: the tokenizer cannot be read.
            UnsupportedError: ``length`` is a policy that it cannot follow.
        """
        return self._runner.results(call, length, latency_ms, perf_counter(), progress)

    @while_open
    def prepare(
        self, call: Call[Result], length: Length = None, *, latency_ms: float | None = None
    ) -> Prepared[Result]:
        """Tokenizes all inputs of a call, and settles which length config each runs with.

        A latency budget begins now. Its config is chosen by :meth:`run`.

        Args:
            call: the checked arguments, from a method of :meth:`as_task`.
            length: as for the engine's method of that name; ``Escalate`` runs twice, and so is refused here.
            latency_ms: sugar for ``length=LatencyBudget(latency_ms)``.

        Raises:
            InputError: an input or a length that does not fit, or what is no call.
            PackageError: the tokenizer cannot be read.
            UnsupportedError: ``length`` is a policy that it cannot follow.
        """
        began = perf_counter()
        if not isinstance(call, Call):
            raise InputError(
                f"call is of type {type(call).__name__}; it must be what a method of as_task() gives, such as "
                f"as_task({type(self._task).__name__}).{self._task.method}(...)"
            )
        runs_once = call.runs_once or "prepare() is for one run"
        plan = self._runner.plan(length, latency_ms, call.count, runs_once)
        return replace(call.prepare().planned(plan, began), model=self._model)

    @while_open
    def run(self, prepared: Iterable[Prepared[Result]]) -> list[list[Result]]:
        """Runs the inputs of several calls as one batch.

        Each result is the same, bit for bit, as if its call ran alone with its length config. Where calls have
        latency budgets, one config is chosen for all of these: the best that is predicted to end the whole batch
        before the earliest deadline, else the fastest.

        Args:
            prepared: from :meth:`prepare` of this engine, in any mixture.

        Returns:
            Per Prepared its results, one per input, in order.

        Raises:
            InputError: the list is empty, or holds what :meth:`prepare` of this engine did not make.
        """
        if isinstance(prepared, Prepared) or not isinstance(prepared, Iterable):
            kind = type(prepared).__name__
            raise InputError(f"prepared is of type {kind}; it must be a list of what prepare() made")
        given = list(prepared)
        for i, each in enumerate(given):
            made_by = each.model if isinstance(each, Prepared) else None
            if made_by is not None and made_by is not self._model:
                raise InputError(f"prepared[{i}] was made by the engine of {made_by.name!r}; run it there")
        return self._runner.run(given)

    @while_open
    def windows(
        self, questions: Iterable[str], contexts: Iterable[str], doc_stride: int | None = None
    ) -> QuestionWindows:
        """The windows that :meth:`answer` reads.

        Args:
            questions: one per context.
            contexts: the texts that hold the answers.
            doc_stride: context tokens that neighbouring windows share; None takes the package's.

        Raises:
            InputError: what :meth:`answer` refuses of these arguments.
            PackageError: the tokenizer cannot be read.
            UnsupportedError: the model does not answer questions.
        """
        return self.as_task(AnswerTask, "windows").windows(questions, contexts, doc_stride)


def _reopen(path: str, options: dict[str, Any]) -> Engine:
    """Unpickling: the same package with the same options."""
    return Engine(path, **options)
