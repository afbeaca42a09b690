"""ELECTRA's discriminator: BERT with other heads, and in its small size with narrower embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qla_runtime.errors import UnsupportedError
from qla_runtime.families import bert
from qla_runtime.families.family import Family
from qla_runtime.families.tokenizers import WORD_PIECE


def _refuse(config: Mapping[str, Any]) -> None:
    # The projection follows the embeddings' LayerNorm, so it cannot be multiplied into the tables.
    if config["embedding_size"] != config["hidden_size"]:
        raise UnsupportedError(
            f"config.json: embedding_size is {config['embedding_size']!r} and hidden_size is "
            f"{config['hidden_size']!r}; the engine has no projection between embeddings and layers. Convert a "
            "checkpoint in which the two are equal, such as one of ELECTRA-base"
        )


ELECTRA = Family(
    model_type="electra",
    title="ELECTRA",
    class_prefix="Electra",
    tensor_prefix="electra.",
    defaults={
        **bert.DEFAULTS,
        "embedding_size": 128,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    tokenizer=WORD_PIECE,
    encoder=bert.ENCODER,
    heads={
        "span-qa": {"head": "qa_outputs"},
        "token-classification": {"head": "classifier"},
        "embedding": {},
    },
    other_heads={"sequence-classification": "a dense layer with GELU, where the engine has tanh"},
    pretraining=r"(generator|discriminator)_predictions\..+|generator_lm_head\..+",
    refuse=_refuse,
)
