"""Every key of a Hugging Face ``config.json``: understood, harmless, refused, or named as unknown.

No torch here, and no transformers: a checkpoint that cannot be converted is refused in milliseconds.
``tests/test_config_keys.py`` holds :data:`DEFAULTS` against the config classes of the installed transformers.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from qla_runtime.errors import UnsupportedError

MODEL_TYPES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}
"""Hugging Face ``model_type`` -> the family whose tensor names and position rule it follows."""

_ARCHITECTURES = {"Bert": "bert", "Roberta": "roberta", "XLMRoberta": "xlm-roberta", "Camembert": "camembert"}
"""How ``architectures[0]`` begins -> ``model_type``, for folders from before that key."""

_COMMON = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {**_COMMON, "vocab_size": 30522, "pad_token_id": 0},
    "roberta": {**_COMMON, "vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {**_COMMON, "vocab_size": 30522, "pad_token_id": 1},
    "camembert": {**_COMMON, "vocab_size": 30522, "pad_token_id": 1},
}
"""What transformers takes where a key is missing, by ``model_type``."""

_UNDERSTOOD = {
    *_COMMON,
    *("model_type", "architectures", "vocab_size", "pad_token_id"),
    *("id2label", "label2id", "num_labels", "problem_type"),
    # How a cross-encoder's score is finished.
    *("sentence_transformers", "sbert_ce_default_activation_function"),
}

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
_ABSENT = (None, False, 0, {}, [], "")
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


def infer_model_type(config: dict[str, Any], tensor_names: Collection[str]) -> str | None:
    """``model_type``, from ``architectures`` or the names of the tensors where the config lacks it.

    Args:
        config: the Hugging Face config.
        tensor_names: without wrapper prefixes, with the family's (``bert.embeddings...``).
    """
    if config.get("model_type") is not None:
        return config["model_type"]
    begin = re.match(r"([A-Za-z]+?)(?:Model|For[A-Z]|LMHead)", architecture(config))
    if begin:
        return _ARCHITECTURES.get(begin[1])
    for prefix, model_type in (
        ("bert.", "bert"),
        ("cls.", "bert"),
        ("roberta.", "roberta"),
        ("lm_head.", "roberta"),
    ):
        if any(name.startswith(prefix) for name in tensor_names):
            return model_type
    return None


def architecture(config: dict[str, Any]) -> str:
    """``architectures[0]``, or an empty string."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The config with transformers' defaults where a key is missing or null.

    Raises:
        UnsupportedError: ``model_type`` is not supported, or missing.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise UnsupportedError(
            f"config.json: model_type is {model_type!r}; supported are {', '.join(sorted(MODEL_TYPES))}. "
            "Convert a BERT-type or RoBERTa-type encoder"
        )
    return {**config, **{k: v for k, v in DEFAULTS[model_type].items() if config.get(k) is None}}


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
    """Keys that are neither understood nor known to be harmless, in the config's order."""
    known = _UNDERSTOOD | _HARMLESS | {"adapters"}
    refused = "|".join(pattern for pattern, _, _ in _REFUSED)
    return [key for key in config if key not in known and not re.fullmatch(refused, key)]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
