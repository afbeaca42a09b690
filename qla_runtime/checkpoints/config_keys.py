"""Every key of a Hugging Face ``config.json``: understood, harmless, refused, or named as unknown.

No torch here, and no transformers: a checkpoint that cannot be converted is refused in milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from qla_runtime.errors import UnsupportedError
from qla_runtime.families import FAMILIES, Family
from qla_runtime.model import formats

_UNDERSTOOD = {
    *("model_type", "architectures", "id2label", "label2id", "num_labels", "problem_type"),
    # How a cross-encoder's score is finished.
    *("sentence_transformers", "sbert_ce_default_activation_function"),
    # How embeddings may be used.
    "matryoshka_dimensions",
    formats.KEY,
}
"""Keys that are read, besides those of the family's defaults."""

# Training, text generation, bookkeeping, and shapes of modules that the engine never runs.
_HARMLESS = set(
    """
    attention_probs_dropout_prob hidden_dropout_prob classifier_dropout classif_dropout_prob
    classifier_dropout_prob initializer_range initializer_factor gradient_checkpointing use_cache
    torch_dtype dtype transformers_version
    _name_or_path name_or_path _commit_hash name language license tokenizer_class bos_token_id eos_token_id
    sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id output_hidden_states
    output_attentions output_past output_scores return_dict use_return_dict return_dict_in_generate
    chunk_size_feed_forward tie_word_embeddings tie_encoder_decoder torchscript use_bfloat16 tf_legacy_loss
    finetuning_task task_specific_params prefix directionality pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type cross_attention_hidden_size max_length min_length
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences forced_bos_token_id forced_eos_token_id remove_invalid_values suppress_tokens
    begin_suppress_tokens exponential_decay_length_penalty model_name _num_labels
    _attn_implementation _attn_implementation_autoset attn_implementation attention_implementation
    summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels summary_type
    summary_use_proj
    """.split()
)

# key (a pattern) -> values that change nothing, and what helps where the value is another one.
_ABSENT: tuple[Any, ...] = (None, False, 0, {}, [], "")
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("hidden_act", ("gelu", "gelu_python"), "The engine has erf-GELU only: fine-tune a checkpoint with it"),
    (
        "position_embedding_type",
        (None, "absolute"),
        "The engine adds absolute positions to the embeddings: choose a checkpoint that has them",
    ),
    ("is_decoder|is_encoder_decoder|add_cross_attention", _ABSENT, "Convert an encoder, not a decoder"),
    ("pruned_heads", _ABSENT, "Save the checkpoint with every head in place"),
    (
        "quantization_config|compression_config",
        (None,),
        "The weights are quantized already: convert the float checkpoint that they were made from",
    ),
    (
        "alibi.*|use_alibi|rope_.*|rotary_.*|use_rotary.*|relative_attention.*",
        _ABSENT,
        "The engine adds absolute positions to the embeddings and knows no others: choose a checkpoint that has "
        "them",
    ),
    (
        "peft_type|lora_.*|use_lora",
        _ABSENT,
        "Merge the adapter first (PEFT: merge_and_unload(), then save_pretrained())",
    ),
    ("use_crf|crf|with_crf|add_crf", _ABSENT, "The engine has no CRF layer: train the model without it"),
    (
        "feed_forward_type|mlp_type",
        (None, "original", "mlp"),
        "The engine has the plain feed-forward layer of BERT: choose a checkpoint that has it",
    ),
    (
        "norm_first|pre_norm|use_pre_norm|prenorm",
        _ABSENT,
        "The engine normalizes after each residual, as BERT does: choose a checkpoint that does",
    ),
)


def infer_model_type(config: Mapping[str, Any], tensor_names: Collection[str]) -> str | None:
    """``model_type``, from ``architectures`` or the names of the tensors where the config lacks it.

    Args:
        config: the Hugging Face config.
        tensor_names: without wrapper prefixes, with the family's (``bert.embeddings...``).
    """
    if config.get("model_type") is not None:
        return config["model_type"]
    begin = re.match(r"([A-Za-z]+?)(?:Model|For[A-Z]|LMHead)", architecture(config))
    if begin:
        return next((name for name, family in FAMILIES.items() if family.class_prefix == begin[1]), None)
    for model_type, family in FAMILIES.items():
        own = f"{re.escape(family.tensor_prefix)}|{family.pretraining}"
        if any(re.match(own, name) for name in tensor_names):
            return model_type
    return None


def architecture(config: Mapping[str, Any]) -> str:
    """``architectures[0]``, or an empty string."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that ``model_type`` names.

    Raises:
        UnsupportedError: ``model_type`` is not supported, or missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        *kinds, last = dict.fromkeys(f"{family.title}-type" for family in FAMILIES.values())
        raise UnsupportedError(
            f"config.json: model_type is {model_type!r}; supported are {', '.join(sorted(FAMILIES))}. "
            f"Convert a {', '.join(kinds)} or {last} encoder"
        )
    return FAMILIES[model_type]


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with transformers' defaults where a key is missing or null.

    Raises:
        UnsupportedError: as :func:`family_of`.
    """
    defaults = family_of(config).defaults
    return {**config, **{key: value for key, value in defaults.items() if config.get(key) is None}}


def refuse_other_arithmetic(config: dict[str, Any]) -> None:
    """Refuses a config with a key that makes the model compute something other than the engine does.

    Raises:
        UnsupportedError: names the key, its value and the remedy.
    """
    for key, value in config.items():
        for pattern, accepted, remedy in _REFUSED:
            if re.fullmatch(pattern, key) and value not in accepted:
                raise UnsupportedError(f"config.json: {key} is {_shown(value)}, which is not supported. {remedy}")
    adapters = config.get("adapters")
    if isinstance(adapters, dict) and adapters.get("adapters", adapters):
        raise UnsupportedError(
            "config.json: adapters names adapter modules, which the engine does not have. Merge or remove them "
            "first"
        )


def unknown_keys(config: dict[str, Any]) -> list[str]:
    """Keys that are neither understood nor known to be harmless, in the config's order.

    Raises:
        UnsupportedError: as :func:`family_of`.
    """
    known = _UNDERSTOOD | _HARMLESS | {"adapters"} | family_of(config).defaults.keys()
    refused = "|".join(pattern for pattern, _, _ in _REFUSED)
    return [key for key in config if key not in known and not re.fullmatch(refused, key)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
