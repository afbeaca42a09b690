"""The engine inside sentence-transformers 6: a module for ``SentenceTransformer`` and one for ``CrossEncoder``.

Example::

    from sentence_transformers import SentenceTransformer
    from qla_runtime.integrations.sentence_transformers import QlaEncoder

    model = SentenceTransformer(modules=[QlaEncoder("all-minilm-l6-v2")])
    model.encode(["How do I reset my password?"], length="fast")

A package folder opens by its path, too: ``SentenceTransformer(folder, trust_remote_code=True)``. Prompts,
``truncate_dim``, ``precision``, ``similarity`` and ``rank`` are the library's own. docs/integrations.md lists
where its rules differ from the engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qla_runtime.activations import activate
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, shown
from qla_runtime.integrations.engine_module import EngineModule
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.texts.inputs import check_texts

# After engine_module, which says what to install where torch is missing.
import torch  # isort: skip


class QlaEncoder(EngineModule):
    """The first and only module of a ``SentenceTransformer``: texts in, sentence embeddings out.

    ``SentenceTransformer(modules=[QlaEncoder(path)])`` takes prompts, similarity function and width from the
    package, where its own arguments say nothing else. ``encode`` takes ``length=`` and ``latency_ms=``; a latency
    budget holds for each batch of ``batch_size`` texts.

    Args:
        model: what :meth:`qla_runtime.Engine.from_pretrained` takes, or an open engine.
        length: what calls without ``length=`` and ``latency_ms=`` run: a name, a LengthConfig or a policy; None
            keeps every token. It is for frameworks that call ``encode`` themselves.
        max_seq_length: tokens that a text is cut at; None takes the package's.
        **options: of :meth:`qla_runtime.Engine.from_pretrained`, such as ``num_threads``.

    Raises:
        InputError: an option out of range, or no such length.
        PackageError: no package, or a damaged one.
        UnsupportedError: the package is for another task.
    """

    task_type = EmbedTask
    opened_as = "SentenceTransformer"

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Tokenizes a batch of texts, without padding.

        Args:
            inputs: the texts.
            prompt: the text to put before each.
            task: sentence-transformers' ``"query"`` or ``"document"``, which this model does not tell apart.
            **options: ``length`` and ``latency_ms``, as for :meth:`qla_runtime.Engine.encode`.

        Raises:
            InputError: a missing text, or a length that does not fit.
        """
        texts, _ = check_texts(inputs, "batch", blank=True)
        embed = self.open_task()
        assert isinstance(embed, EmbedTask)
        before = prompt or ""
        tokenize = partial(embed.prepare, width=self.get_embedding_dimension())
        return self.prepared([before + text for text in texts], tokenize, options)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Embeds a batch: ``sentence_embedding``, a float32 CPU tensor (texts, hidden)."""
        vectors = np.stack([result["vector"] for result in self.results(features)])
        return _Embedded(sentence_embedding=torch.from_numpy(vectors))

    def get_embedding_dimension(self) -> int:
        """Numbers of a vector, before ``truncate_dim``."""
        width: int = self.engine.info["hidden"]
        return width

    def on_model_ready(self, model: Any) -> None:
        """Also the similarity function and the width of the package; see the base class."""
        super().on_model_ready(model)
        settings = self.engine.task_settings
        if self.settings_from_folder:
            return
        if model._similarity_fn_name is None:
            model.similarity_fn_name = settings.get("similarity", "cosine")
        if model.truncate_dim is None:
            model.truncate_dim = settings.get("truncate_dim")


class QlaRanker(EngineModule):
    """The first and only module of a ``CrossEncoder``: pairs of texts in, scores out; for models of one label.

    ``CrossEncoder(modules=[QlaRanker(path)])`` takes prompts and activation from the package, where its own
    arguments say nothing else. ``predict`` takes ``length=`` and ``latency_ms=``; a latency budget holds for each
    batch of ``batch_size`` pairs. ``rank`` does not pass them on: give this module a ``length``.

    The arguments and errors are those of :class:`QlaEncoder`.
    """

    task_type = LabelTask
    opened_as = "CrossEncoder"

    def __init__(self, model: str | Path | Engine, **options: Any) -> None:
        super().__init__(model, **options)
        labels = self.engine.labels
        if len(labels) != 1:
            raise UnsupportedError(
                f"CrossEncoder() needs a model of one label; {self.engine.name!r} has {len(labels)} "
                f"({', '.join(labels[:5])}). Call engine.classify(texts, text_pairs)"
            )

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Tokenizes a batch of pairs (query, document), without padding.

        Args:
            inputs: the pairs.
            prompt: the text to put before each query.
            **options: ``length`` and ``latency_ms``, as for :meth:`qla_runtime.Engine.rank`.

        Raises:
            InputError: no pairs, an empty query, a missing text, or a length that does not fit.
        """
        for i, pair in enumerate(inputs):
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"batch[{i}] is {shown(pair)}; it must be a pair of texts, (query, document)")
        queries, _ = check_texts([pair[0] for pair in inputs], "queries of the batch")
        documents, _ = check_texts([pair[1] for pair in inputs], "documents of the batch", blank=True)
        before = prompt or ""
        pairs = [(before + query, document) for query, document in zip(queries, documents, strict=True)]
        labels = self.open_task()
        assert isinstance(labels, LabelTask)
        return self.prepared(pairs, partial(labels.prepare_relevances, activation="identity"), options)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Compares a batch of pairs: ``scores``, their logits, a float32 CPU tensor (pairs, 1)."""
        logits = [[result["score"]] for result in self.results(features)]
        return {"scores": torch.tensor(logits, dtype=torch.float32)}

    def on_model_ready(self, model: Any) -> None:
        """Also the activation of the package; see the base class."""
        super().on_model_ready(model)
        if model.activation_fn is None or isinstance(model.activation_fn, PackageActivation):
            settings = self.engine.task_settings
            without = "sigmoid" if settings["problem"] == "multi_label" else "identity"
            model.activation_fn = PackageActivation(settings.get("activation", without))


class PackageActivation(torch.nn.Module):
    """What :meth:`qla_runtime.Engine.rank` makes of a logit, in the same arithmetic.

    torch's own sigmoid rounds otherwise, so scores would not have the same bits.

    Args:
        name: one of :data:`qla_runtime.activations.ACTIVATIONS`. A saved CrossEncoder names this class alone;
            :class:`QlaRanker` then takes the activation from the package.
    """

    def __init__(self, name: str = "sigmoid") -> None:
        super().__init__()
        self.name = name

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Float32 logits of any shape -> float64 scores of the same shape."""
        return torch.from_numpy(activate(self.name, logits.numpy(force=True)))

    def extra_repr(self) -> str:
        return repr(self.name)


class _Embedded(dict[str, Any]):
    """What :class:`QlaEncoder` gives; refuses what it does not."""

    def __missing__(self, name: str) -> Any:
        raise UnsupportedError(
            f"output_value={name!r} is not what this model gives; leave output_value out for sentence embeddings. "
            "qla_runtime's Engine.forward(ids).last_hidden_state has the states of tokens"
        )
