"""Kinds of checkpoints, one file each: how a config, tensor names and a tokenizer become what a package holds.

A new family is a file here that makes a :class:`~qla_runtime.families.family.Family`, and its name in
:data:`FAMILIES`.
"""

from __future__ import annotations

from qla_runtime.families.bert import BERT
from qla_runtime.families.electra import ELECTRA
from qla_runtime.families.family import Family
from qla_runtime.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (BERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, ELECTRA)
}
"""``model_type`` of a Hugging Face config -> its family."""
