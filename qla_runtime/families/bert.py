"""BERT, and the many checkpoints with its ``model_type``: MiniLM, BGE, E5, GTE, Arctic."""

from __future__ import annotations

from qla_runtime.families.family import Family, Modules
from qla_runtime.families.tokenizers import WORD_PIECE

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "vocab_size": 30522,
    "pad_token_id": 0,
}

ENCODER: Modules = {
    "embeddings.word": ("embeddings.word_embeddings",),
    "embeddings.position": ("embeddings.position_embeddings",),
    "embeddings.token_type": ("embeddings.token_type_embeddings",),
    "embeddings.norm": ("embeddings.LayerNorm",),
    "layers.{i}.qkv": (
        "encoder.layer.{i}.attention.self.query",
        "encoder.layer.{i}.attention.self.key",
        "encoder.layer.{i}.attention.self.value",
    ),
    "layers.{i}.output": ("encoder.layer.{i}.attention.output.dense",),
    "layers.{i}.attention_norm": ("encoder.layer.{i}.attention.output.LayerNorm",),
    "layers.{i}.ffn_in": ("encoder.layer.{i}.intermediate.dense",),
    "layers.{i}.ffn_out": ("encoder.layer.{i}.output.dense",),
    "layers.{i}.ffn_norm": ("encoder.layer.{i}.output.LayerNorm",),
}
"""RoBERTa and ELECTRA have these names too."""

BERT = Family(
    model_type="bert",
    title="BERT",
    class_prefix="Bert",
    tensor_prefix="bert.",
    defaults=DEFAULTS,
    tokenizer=WORD_PIECE,
    encoder=ENCODER,
    heads={
        "span-qa": {"head": "qa_outputs"},
        "token-classification": {"head": "classifier"},
        "sequence-classification": {"pooler": "bert.pooler.dense", "head": "classifier"},
        "embedding": {},
    },
    pretraining=r"cls\.(predictions|seq_relationship)\..+",
)
