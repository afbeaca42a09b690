"""The engine in Ray Data: a class for ``map_batches``. Needs ``ray[data]``.

    import ray
    from qla_runtime.integrations.ray import BatchModel

    ray.data.read_parquet("pages/").map_batches(
        BatchModel,
        fn_constructor_kwargs={"model": "all-minilm-l6-v2", "length": "fast"},
        batch_size=1024,
        batch_format="pyarrow",
        num_cpus=4,
        compute=ray.data.ActorPoolStrategy(size=8),
    ).write_parquet("vectors/")

Every actor opens the package by its path and maps its weights, so the actors of a node share one copy of them. A
model that went through ``ray.put`` would be a copy for each actor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from qla_runtime.bulk.options import ClassifyOptions, EmbedOptions
from qla_runtime.bulk.work import Classify, Embed, Work
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError, UnsupportedError, a_model, shown
from qla_runtime.lengths.configs import LatencyBudget, Length
from qla_runtime.texts.inputs import check_texts

TOKENIZER_THREADS = "RAYON_NUM_THREADS"
"""The tokenizers library has a thread pool of its own, which takes all cores of the node unless this says less."""


class BatchModel:
    """What ``map_batches`` runs on each batch: vectors of an embedding model, or labels of a classifier.

    The added columns are those of ``qla embed`` and ``qla classify --in``: ``embedding`` (and ``embedding_scale``
    for int8), or ``label`` and ``score``. A text's result does not depend on its batch, its actor or its node, so
    a repeated task gives the same bits.

    Args:
        model: a package folder that every node has at this path, a packaged model, or a hub id.
        column: the column of the texts.
        length: a name, a length config or a policy but ``LatencyBudget``.
        options: what the vectors are like, or how many labels there are; None: as the class has them.
        num_threads: of the engine and of the tokenizer; None: the CPUs that Ray gave this actor (``num_cpus=``).
        weights: as for :class:`qla_runtime.Engine`. The default is mapped, which the actors of a node share.

    Raises:
        InputError: an option that does not fit.
        PackageError: no package is there, or it is damaged.
        UnsupportedError: the model neither embeds nor classifies, or the length is a latency budget.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        length: Length = None,
        options: EmbedOptions | ClassifyOptions | None = None,
        num_threads: int | None = None,
        weights: str | None = "mapped",
    ) -> None:
        if isinstance(length, LatencyBudget):
            raise UnsupportedError(
                "length is a LatencyBudget, which nodes of different speed would follow with different configs; "
                "pass a name, a LengthConfig or MaxLoss"
            )
        self._column = column
        self._engine = open_engine(model, num_threads, weights)
        self._work = work_of(self._engine, options)
        self._length = length
        self._work.check(length, columns=1)

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table | dict[str, Any]:
        """The batch with the added columns.

        Args:
            batch: an Arrow table (``batch_format="pyarrow"``), or NumPy arrays by name, as Ray gives by default.

        Raises:
            InputError: no such column, a missing text, a column of a name that is added, or another kind of batch.
        """
        if isinstance(batch, pa.Table):
            found = self._results(batch.column_names, lambda: batch[self._column].to_pylist())
            schema = pa.schema([*batch.schema, *self._work.fields])
            return pa.Table.from_arrays([*batch.columns, *found], schema=schema)
        if isinstance(batch, Mapping):
            found = self._results(list(batch), lambda: batch[self._column])
            added = zip(self._work.fields, found, strict=True)
            return {**batch, **{field.name: _numpy(column) for field, column in added}}
        raise InputError(
            f"the batch is of type {type(batch).__name__}; pass batch_format='pyarrow' or 'numpy' to map_batches()"
        )

    def _results(self, names: list[str], values: Callable[[], Any]) -> list[pa.Array]:
        """The columns to add.

        Args:
            names: the columns of the batch.
            values: gives the column of the texts.
        """
        if self._column not in names:
            raise InputError(f"there is no column {shown(self._column)}; it is one of {', '.join(names)}")
        for field in self._work.fields:
            if field.name in names:
                raise InputError(f"the column {shown(field.name)} is there already; drop it before map_batches()")
        found = values()
        texts = check_texts(found, self._column, blank=True)[0] if len(found) else []
        return self._work.run([texts], self._length).columns


def open_engine(model: str | os.PathLike[str], num_threads: int | None, weights: str | None) -> Engine:
    """An engine for this actor. Its threads, and those of the tokenizer, are the CPUs that Ray gave the actor.

    ``RAYON_NUM_THREADS`` is left alone where it is set.

    Raises:
        InputError: an option out of range.
        PackageError: no package is there, or it is damaged.
    """
    threads = num_threads if num_threads is not None else cpus_of_actor()
    engine = Engine.from_pretrained(model, num_threads=threads, weights=weights)
    os.environ.setdefault(TOKENIZER_THREADS, str(engine.num_threads))
    return engine


def cpus_of_actor() -> int | None:
    """Whole CPUs that Ray gave this actor or task, at least 1; None outside of one."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().worker.mode != ray.WORKER_MODE:
        return None
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def work_of(engine: Engine, options: EmbedOptions | ClassifyOptions | None) -> Work:
    """What the engine does with texts.

    Raises:
        InputError: options of another task.
        UnsupportedError: it neither embeds nor classifies.
    """
    if engine.task not in ("embedding", "sequence-classification"):
        raise UnsupportedError(
            f"{engine.name!r} is {a_model(engine.task)}; open one that embeds or classifies texts"
        )
    embeds = engine.task == "embedding"
    options = options or (EmbedOptions() if embeds else ClassifyOptions())
    if embeds and isinstance(options, EmbedOptions):
        return Embed(engine, options)
    if not embeds and isinstance(options, ClassifyOptions):
        return Classify(engine, options)
    wanted = (EmbedOptions if embeds else ClassifyOptions).__name__
    raise InputError(f"options is of type {type(options).__name__}; {engine.name!r} takes {wanted}")


def _numpy(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy().reshape(len(column), -1)
    if pa.types.is_nested(column.type):
        values = np.empty(len(column), object)
        values[:] = column.to_pylist()
        return values
    return column.to_numpy(zero_copy_only=False)
