"""Sentence embeddings: vectors of sentences, and how they are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qla_runtime import vectors
from qla_runtime.arrays import Arrays
from qla_runtime.lengths.configs import LengthPlan
from qla_runtime.options import check_switch
from qla_runtime.tasks.prepared import Call, Prepared, Task, one_each, tokenized
from qla_runtime.tasks.results import Embedding
from qla_runtime.texts.inputs import check_texts


class EmbedTask(Task):
    """What a model for sentence embeddings does."""

    kind = "embedding"
    method = "encode"
    usage = "engine.encode(sentences)"

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        truncate: bool = True,
        prompt_name: str | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
    ) -> Call[Embedding]:
        """Checks the arguments of :meth:`qla_runtime.Engine.encode`.

        Raises:
            InputError: an empty or missing text, no prompt of that name, or a ``truncate_dim`` that is no width of
                this model.
        """
        texts, single = check_texts(sentences, "sentences", blank=True)
        check_switch("truncate", truncate)
        check_switch("normalize_embeddings", normalize_embeddings)
        before = self.model.prompts.choose(prompt, prompt_name)
        prepare = partial(
            self.prepare, truncate=truncate, width=self.width(truncate_dim), normalize=normalize_embeddings
        )
        return Call(
            [before + text for text in texts],
            "sentences",
            single,
            prepare,
            runs_once="encode() gives vectors without one",
        )

    def prepare(
        self,
        texts: Sequence[str],
        names: Sequence[str],
        truncate: bool = True,
        width: int | None = None,
        normalize: bool = False,
    ) -> Prepared[Embedding]:
        """Sentences to be embedded.

        Args:
            texts: the sentences, prompts included.
            names: how error messages call each.
            truncate: cut those that are longer than the model reads.
            width: give the first so many numbers of each vector; None gives all.
            normalize: bring vectors to length 1 in the end.

        Raises:
            InputError: one is too long, and ``truncate`` is False.
            PackageError: the tokenizer fails.
        """
        encoded = tokenized(self.model.encoder, texts, names, truncate)

        def read(arrays: Arrays, plan: LengthPlan) -> list[Embedding]:
            pooled: NDArray[np.float32] = arrays["logits"][:, :width]
            rows = vectors.normalized(pooled) if normalize else pooled
            return [
                {
                    "vector": row,
                    **plan.report(i),
                    "macs": int(arrays["macs"][i]),
                    "truncated": bool(encoded.cut[i]),
                    "budget_met": None,
                }
                for i, row in enumerate(rows)
            ]

        return Prepared(encoded.batch, one_each(encoded.batch), frozenset({"logits", "macs"}), read)

    def width(self, truncate_dim: int | None) -> int:
        """Numbers of a vector: ``truncate_dim``, else what the model's own config says.

        Raises:
            InputError: ``truncate_dim`` is no width of this model.
        """
        asked = vectors.check_truncate_dim(truncate_dim, self.model.hidden)
        width: int = asked or self.model.settings.get("truncate_dim") or self.model.hidden
        return width

    def similarity(self, first: ArrayLike, second: ArrayLike) -> NDArray[np.float32]:
        """Each vector of ``first`` against each of ``second``, as the model's own config says; cosine, where it
        says nothing.

        Raises:
            InputError: not vectors of one width.
        """
        return vectors.similarity(self.model.settings.get("similarity", "cosine"), first, second)
