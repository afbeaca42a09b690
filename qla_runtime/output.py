"""What ``forward`` gives back: the engine's flat arrays, read one sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qla_runtime import stages, task_kinds
from qla_runtime.arrays import Arrays, kept_positions
from qla_runtime.fork_safe import lazy
from qla_runtime.lengths.configs import AccuracyReport, LengthReport


class EncoderOutput:
    """The results of one ``forward`` call. Sequence ``i`` has ``n_i`` tokens, the model ``L`` layers and
    ``H`` channels.

    Lists hold one entry per sequence; their arrays are views, so nothing is copied until :meth:`padded`.

    Attributes:
        length: per sequence the name of its length config, or the config spelled out; ``length=`` takes it
            again.
        length_config: per sequence its length config in plain JSON types: a dict of ``rule``, ``values``,
            ``keep_cls``. ``LengthConfig(**length_config[i])`` is the config itself.
        accuracy: per sequence what the package measured with its config, a dict of ``metric``, ``value``,
            ``data``; None where nothing was.
        macs: int64 (sequences,): multiply-accumulates that each sequence cost.
        lengths: int64 (sequences,): ``n_i``.
        budget_met: whether the call kept within its latency budget; None where there was none.
    """

    def __init__(
        self,
        arrays: Arrays,
        offsets: NDArray[np.int64],
        task: str,
        lengths: Sequence[LengthReport],
        budget_met: bool | None = None,
    ) -> None:
        self._arrays = arrays
        self._offsets = offsets
        self._task = task
        self.length: list[str] = [entry["length"] for entry in lengths]
        self.length_config: list[dict[str, Any]] = [entry["length_config"] for entry in lengths]
        self.accuracy: list[AccuracyReport | None] = [entry["accuracy"] for entry in lengths]
        self.budget_met = budget_met
        self.lengths: NDArray[np.int64] = offsets[1:] - offsets[:-1]
        self.macs: NDArray[np.int64] = arrays["macs"]

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        tokens, macs = int(self._offsets[-1]), int(self.macs.sum())
        return f"<EncoderOutput of {len(self)} sequences, {tokens} tokens, {macs:,} MACs>"

    @lazy
    def last_hidden_state(self) -> list[NDArray[np.float32]]:
        """float32 (n_i, H): every original token; a dropped one has the state it had when it was dropped."""
        return self._by_token(self._arrays["last_hidden"])

    @lazy
    def logits(self) -> list[NDArray[np.float32]] | None:
        """float32 (n_i, outputs) for span QA and token classification, (outputs,) for sequence
        classification.

        None for an embedding model, which has no such head.
        """
        if self._task == "embedding":
            return None
        logits = self._arrays["logits"]
        return self._by_token(logits) if task_kinds.per_token(self._task) else list(logits)

    @lazy
    def start_logits(self) -> list[NDArray[np.float32]] | None:
        """float32 (n_i,): logit of "the answer begins here"; None unless the model answers questions."""
        return self._by_token(self._arrays["logits"][:, 0]) if self._task == "span-qa" else None

    @lazy
    def end_logits(self) -> list[NDArray[np.float32]] | None:
        """float32 (n_i,): logit of "the answer ends here"; None unless the model answers questions."""
        return self._by_token(self._arrays["logits"][:, 1]) if self._task == "span-qa" else None

    @lazy
    def pooled(self) -> list[NDArray[np.float32]] | None:
        """float32 (H,): the sentence embedding; None unless it is an embedding model."""
        return list(self._arrays["logits"]) if self._task == "embedding" else None

    @lazy
    def kept(self) -> list[list[NDArray[np.int32]]]:
        """``kept[i][layer]``: int32, ascending: positions that entered the layer's feed-forward."""
        return [kept_positions(self._arrays, self._offsets, i) for i in range(len(self))]

    @lazy
    def hidden_states(self) -> list[NDArray[np.float32]] | None:
        """float32 (L + 1, n_i, H): embeddings and every layer, dropped rows carried on; None if not asked."""
        return self._by_layer("hidden_states")

    @lazy
    def scores(self) -> list[NDArray[np.float32]] | None:
        """float32 (L, n_i): attention each token received, NaN where dropped before; None if not asked."""
        return self._by_layer("scores")

    @lazy
    def stage_seconds(self) -> dict[str, float] | None:
        """Wall time by stage of the forward pass, in seconds, on the calling thread; None if not asked."""
        seconds = self._arrays.get("stages")
        return None if seconds is None else stages.by_name(seconds)

    def padded(self, fill: float = 0.0) -> NDArray[np.float32]:
        """``last_hidden_state`` as one float32 (sequences, longest n_i, H), ``fill`` behind shorter ones."""
        flat = self._arrays["last_hidden"]
        out = np.full((len(self), int(self.lengths.max()), flat.shape[1]), fill, np.float32)
        for row, state in zip(out, self.last_hidden_state, strict=True):
            row[: len(state)] = state
        return out

    def _by_token(self, flat: NDArray[Any]) -> list[NDArray[Any]]:
        return [flat[a:b] for a, b in zip(self._offsets[:-1], self._offsets[1:], strict=True)]

    def _by_layer(self, name: str) -> list[NDArray[np.float32]] | None:
        flat = self._arrays.get(name)
        return (
            None
            if flat is None
            else [flat[:, a:b] for a, b in zip(self._offsets[:-1], self._offsets[1:], strict=True)]
        )
