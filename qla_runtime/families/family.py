"""What a family says. All of them compute the engine's arithmetic: BERT's encoder, post-norm, with erf-GELU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qla_runtime.families.tokenizers import TokenizerClass

Modules = Mapping[str, tuple[str, ...]]
"""Our module's name -> those of the checkpoint whose rows it stacks; ``{i}`` stands for the layer's number."""


@dataclass(frozen=True)
class Family:
    """One ``model_type`` of Hugging Face."""

    model_type: str
    title: str
    """What a model card calls it."""
    class_prefix: str
    """How the names of transformers' classes begin: ``Bert`` of ``BertForQuestionAnswering``."""
    tensor_prefix: str
    """What stands before the encoder's tensors in a checkpoint with a head."""
    defaults: Mapping[str, Any]
    """What transformers takes where a key of the config is missing; every key that the family knows."""
    tokenizer: TokenizerClass
    """The tokenizer of a checkpoint that names none."""
    encoder: Modules
    """Names of the encoder's modules, without ``tensor_prefix``."""
    heads: Mapping[str, Mapping[str, str]]
    """Task kind -> our module -> the checkpoint's: ``head``, and ``pooler`` where dense + tanh stand before it."""
    other_heads: Mapping[str, str] = field(default_factory=dict)
    """Task kind -> what its head computes, where the engine cannot."""
    pretraining: str = r"(?!)"
    """A pattern for tensors of heads that only pretraining uses."""
    positions_after_padding: bool = False
    """Positions are numbered from ``pad_token_id + 1``: the table's first rows never serve a token."""
    refuse: Callable[[Mapping[str, Any]], None] = lambda config: None
    """Raises UnsupportedError for a config, defaults filled in, that the engine cannot run."""

    @property
    def layer_prefix(self) -> str:
        """What stands before a layer's number: ``encoder.layer.``."""
        return self.encoder["layers.{i}.qkv"][0].partition("{i}")[0]
