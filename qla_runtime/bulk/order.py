"""Texts by length. Texts that the model reads together then take about equally long, so that no thread waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qla_runtime.texts.text_encoder import batches


def by_length(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Iterator[NDArray[np.int64]]:
    """The numbers of the texts, longest first, in groups that are small enough to be tokenized at once.

    Args:
        texts: the texts.
        pairs: the second text of each; None: there is none.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    if pairs is not None:
        sizes += np.fromiter(map(len, pairs), np.int64, len(pairs))
    order = np.argsort(-sizes, kind="stable")
    others = None if pairs is None else [pairs[i] for i in order]
    for part in batches([texts[i] for i in order], others):
        yield order[part]
