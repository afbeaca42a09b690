"""Sequences of different lengths, one after another, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """Sequences one after another, as the C door takes them; ``i`` owns ``[offsets[i], offsets[i + 1])``."""

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    type_ids: NDArray[np.int32] | None = None

    @property
    def count(self) -> int:
        """The number of sequences."""
        return len(self.offsets) - 1

    @classmethod
    def join(cls, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None) -> Ragged:
        """Lists of token ids and of token types (None: all 0), one per sequence."""
        if len(ids) == 1:  # half of the time of the general way, which counts for a short text
            types = None if type_ids is None else np.array(type_ids[0], np.int32)
            return cls(np.array(ids[0], np.int32), np.array([0, len(ids[0])], np.int64), types)
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(row) for row in ids], out=offsets[1:])
        flat = np.fromiter(chain.from_iterable(ids), np.int32, count=offsets[-1])
        if type_ids is None:
            return cls(flat, offsets)
        return cls(flat, offsets, np.fromiter(chain.from_iterable(type_ids), np.int32, count=offsets[-1]))

    @classmethod
    def concatenated(cls, parts: Sequence[Ragged]) -> Ragged:
        """The sequences of several batches in one. Where some have token types, the others have type 0."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.concatenate([[0], *(np.diff(part.offsets) for part in parts)]).cumsum()
        ids = np.concatenate([part.ids for part in parts])
        if all(part.type_ids is None for part in parts):
            return cls(ids, offsets)
        types = [np.zeros_like(part.ids) if part.type_ids is None else part.type_ids for part in parts]
        return cls(ids, offsets, np.concatenate(types))
