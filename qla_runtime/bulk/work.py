"""What a job adds to each row: a vector or a label, as columns of Arrow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qla_runtime.bulk.options import ClassifyOptions, EmbedOptions
from qla_runtime.bulk.order import by_length
from qla_runtime.engine import Engine
from qla_runtime.errors import InputError
from qla_runtime.lengths.configs import Escalate, LatencyBudget, Length, MaxLoss
from qla_runtime.tasks.embed import EmbedTask
from qla_runtime.tasks.labels import LabelTask
from qla_runtime.tasks.prepared import Call

SAMPLE = 256
"""Texts that a latency budget is settled on."""


@dataclass(frozen=True)
class Done:
    """What was found for some texts.

    Attributes:
        columns: one per field of the work, in the texts' order.
        truncated: texts that are longer than the model reads, and were cut.
        tokens: what the model read; 0 where that is not known.
    """

    columns: list[pa.Array]
    truncated: int
    tokens: int


class Work(ABC):
    """What an engine does with texts, independent of where they come from.

    Attributes:
        engine: the engine.
        fields: the columns that it adds.
        facts: what they depend on, beside the texts and the length, in plain JSON types.
    """

    engine: Engine
    fields: list[pa.Field]
    facts: Mapping[str, Any]

    def run(self, texts: Sequence[Sequence[str]], length: Length) -> Done:
        """Results for texts.

        Args:
            texts: the texts; for pairs, the first texts and the second ones.
            length: as :meth:`settled` gives it.

        """
        results: list[Any] = [None] * len(texts[0])
        tokens = 0
        for rows in by_length(*texts) if results else ():
            found, read = self._found([[column[i] for i in rows] for column in texts], length)
            tokens += read
            for row, result in zip(rows, found, strict=True):
                results[row] = result
        return Done(self._columns(results), sum(result["truncated"] for result in results), tokens)

    def check(self, length: Length, columns: int) -> None:
        """Runs one text, so that options and lengths that do not fit fail before a job begins.

        Args:
            length: of the job.
            columns: of texts; 2 for pairs.

        Raises:
            InputError: an option or a length that does not fit.
            UnsupportedError: a policy that cannot be followed.
        """
        self._found([["a short text"]] * columns, length)

    def settled(self, length: Length, texts: Sequence[Sequence[str]]) -> Length:
        """The length of a whole job: in place of a policy that chooses a config, the config's name.

        ``LatencyBudget(ms)`` is settled on a sample of the texts, and means ``ms`` for each text on average.

        Raises:
            UnsupportedError: a policy that cannot be followed.
        """
        if not isinstance(length, (LatencyBudget, MaxLoss)) or not texts[0]:
            return length
        if isinstance(length, LatencyBudget):
            self.engine.warm_up()
            sample = [list(column[:: -(-len(column) // SAMPLE)]) for column in texts]
            length = LatencyBudget(length.ms * len(sample[0]))
        else:
            sample = [[column[0]] for column in texts]
        prepared = self.engine.prepare(self._call(sample), length)
        chosen: str = self.engine.run([prepared])[0][0]["length"]
        return chosen

    def _found(self, texts: list[list[str]], length: Length) -> tuple[Sequence[Any], int]:
        """The engine's results for texts, and the tokens that it read."""
        prepared = self.engine.prepare(self._call(texts), length)
        return self.engine.run([prepared])[0], len(prepared.batch.ids)

    @abstractmethod
    def _call(self, texts: list[list[str]]) -> Call[Any]:
        """The task's call for texts."""

    @abstractmethod
    def _columns(self, results: list[Any]) -> list[pa.Array]:
        """The engine's results as columns."""


class Embed(Work):
    """Vectors of an embedding model.

    Raises:
        InputError: no such width.
        UnsupportedError: the model gives no embeddings.
    """

    def __init__(self, engine: Engine, options: EmbedOptions) -> None:
        self.engine, self._options = engine, options
        self._task = engine.as_task(EmbedTask)
        self.width = self._task.width(options.truncate_dim)
        numbers = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}[options.vectors]
        self.fields = [pa.field(options.into, pa.list_(numbers, self.width))]
        if options.vectors == "int8":
            self.fields.append(pa.field(f"{options.into}_scale", pa.float32()))
        self.facts = {"task": "embed", **asdict(options)}

    def _call(self, texts: list[list[str]]) -> Call[Any]:
        options = self._options
        return self._task.encode(
            texts[0],
            prompt_name=options.prompt_name,
            prompt=options.prompt,
            truncate_dim=options.truncate_dim,
            normalize_embeddings=options.normalize_embeddings,
        )

    def _columns(self, results: list[Any]) -> list[pa.Array]:
        vectors = np.empty((len(results), self.width), np.float32)
        for row, result in enumerate(results):
            vectors[row] = result["vector"]
        if self._options.vectors == "int8":
            codes, scales = int8(vectors)
            return [self._lists(codes), pa.array(scales)]
        return [self._lists(float16(vectors) if self._options.vectors == "float16" else vectors)]

    def _lists(self, numbers: NDArray[Any]) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), self.width)


class Classify(Work):
    """Labels of a classifier: the best one and its score, and where more are asked for, a list of the best.

    Raises:
        UnsupportedError: the model does not classify texts.
    """

    def __init__(self, engine: Engine, options: ClassifyOptions) -> None:
        self.engine, self._options = engine, options
        self._task = engine.as_task(LabelTask)
        self.fields = [pa.field("label", pa.string()), pa.field("score", pa.float64())]
        if options.top_k != 1:
            entry = pa.struct([("label", pa.string()), ("score", pa.float64())])
            self.fields.append(pa.field("scores", pa.list_(entry)))
        self.facts = {"task": "classify", **asdict(options)}

    def _found(self, texts: list[list[str]], length: Length) -> tuple[Sequence[Any], int]:
        if isinstance(length, Escalate):
            pairs = texts[1] if len(texts) > 1 else None
            return self.engine.classify(texts[0], pairs, length, top_k=self._options.top_k), 0
        return super()._found(texts, length)

    def _call(self, texts: list[list[str]]) -> Call[Any]:
        return self._task.classify(*texts, top_k=self._options.top_k)

    def _columns(self, results: list[Any]) -> list[pa.Array]:
        return [pa.array([result[field.name] for result in results], field.type) for field in self.fields]


def float16(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Vectors in half precision.

    Raises:
        InputError: a number is too large for it.
    """
    largest = np.abs(vectors).max(initial=0.0)
    if largest > np.finfo(np.float16).max:
        raise InputError(
            f"vectors is 'float16', whose largest number is 65504, and a vector holds {largest:g}; use "
            "vectors='float32', or normalize_embeddings=True"
        )
    return vectors.astype(np.float16)


def int8(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Vectors (n, width) as codes from -127 to 127 and a scale for each vector; ``codes * scale`` is the vector.

    A vector's codes depend on no other vector, so that shards and reruns fit together.
    """
    scales = np.abs(vectors).max(axis=1, initial=0.0) / np.float32(127)
    steps = np.where(scales > 0, scales, np.float32(1))
    return np.rint(vectors / steps[:, None]).astype(np.int8), scales.astype(np.float32)
