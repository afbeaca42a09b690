"""RoBERTa, and the two that differ from it by their tokenizer: XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from dataclasses import replace

from qla_runtime.families import bert
from qla_runtime.families.family import Family
from qla_runtime.families.tokenizers import BYTE_LEVEL, CAMEMBERT_PIECES, XLM_ROBERTA_PIECES

ROBERTA = Family(
    model_type="roberta",
    title="RoBERTa",
    class_prefix="Roberta",
    tensor_prefix="roberta.",
    defaults={**bert.DEFAULTS, "vocab_size": 50265, "pad_token_id": 1},
    tokenizer=BYTE_LEVEL,
    encoder=bert.ENCODER,
    heads={
        "span-qa": {"head": "qa_outputs"},
        "token-classification": {"head": "classifier"},
        "sequence-classification": {"pooler": "classifier.dense", "head": "classifier.out_proj"},
        "embedding": {},
    },
    pretraining=r"lm_head\..+",
    positions_after_padding=True,
)

XLM_ROBERTA = replace(
    ROBERTA,
    model_type="xlm-roberta",
    class_prefix="XLMRoberta",
    defaults={**ROBERTA.defaults, "vocab_size": 30522},
    tokenizer=XLM_ROBERTA_PIECES,
)

CAMEMBERT = replace(XLM_ROBERTA, model_type="camembert", class_prefix="Camembert", tokenizer=CAMEMBERT_PIECES)
