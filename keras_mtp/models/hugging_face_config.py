"""A Hugging Face `config.json` as Llama's sizes, every setting understood or refused by name.

keras-hub's own converter is not used: it leaves the epsilon at 1e-6 and loses the rotary scaling of configs written by
transformers 5 (`utils/transformers/convert_llama3.py`).

Reference: transformers, `models/llama/configuration_llama.py` and `modeling_rope_utils.py`, with their defaults for
what a file leaves out.
"""

from typing import Any

from keras_mtp.models.json_file import Settings
from keras_mtp.models.llama import LlamaSizes, RopeScaling

# Known not to change what a Llama computes: bookkeeping, generation settings that transformers 4 kept here, promises.
_HARMLESS = {
    *(
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "attention_dropout",
    ),
    *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size"),
    *("decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task"),
    *("forced_bos_token_id", "forced_eos_token_id", "id2label", "initializer_range", "is_llama_config"),
    *("label2id", "length_penalty", "max_length", "max_position_embeddings", "max_sequence_length"),
    *("min_length", "name_or_path", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels"),
    *("num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id"),
    *(
        "prefix",
        "pretraining_tp",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
    ),
    *("return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature"),
    *("tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript"),
    *("transformers.js_config", "transformers_version", "typical_p", "unk_token_id", "unsloth_fixed"),
    *("unsloth_version", "use_bfloat16", "use_cache"),
}
# Settings that would change it, by the values that leave a Llama a plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "architectures": (["LlamaForCausalLM"], None),
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_interleaved": (False, None),
    "add_cross_attention": (False, None),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "tie_encoder_decoder": (False, None),
    "chunk_size_feed_forward": (0, None),
    "pruned_heads": ({}, None),
}


def read_sizes(config: Settings) -> LlamaSizes:
    """Reads the sizes from a `config.json`.

    Raises:
        UserError: another kind of model, or a setting that is not supported or out of range.
    """
    config.need("model_type", str)
    for key, values in _PLAIN.items():
        config.expect(key, *values)
    heads = config.whole("num_attention_heads")
    wavelength, scaling = _rope(config)
    sizes = LlamaSizes(
        vocabulary_size=config.whole("vocab_size"),
        num_layers=config.whole("num_hidden_layers"),
        num_query_heads=heads,
        num_key_value_heads=config.whole("num_key_value_heads", heads),
        hidden_dim=config.whole("hidden_size"),
        intermediate_dim=config.whole("intermediate_size"),
        layer_norm_epsilon=config.need("rms_norm_eps", float),
        rope_wavelength=wavelength,
        rope_scaling=scaling,
        tied=config.get("tie_word_embeddings", bool, False),
    )
    if problem := sizes.problem():
        config.refuse(problem)
    if (head_dim := config.whole("head_dim", sizes.head_dim)) != sizes.head_dim:
        config.refuse(f"`head_dim` must be {sizes.head_dim}, the hidden units per head, but is {head_dim}")
    config.refuse_unread(_HARMLESS)
    return sizes


def _rope(config: Settings) -> tuple[float, RopeScaling | None]:
    """transformers 5 writes all of it under `rope_parameters`; before, there were `rope_theta` and `rope_scaling`."""
    new, old = config.get("rope_parameters", dict), config.get("rope_scaling", dict)
    if new and old and new != old:
        config.refuse("`rope_parameters` and `rope_scaling` say different things")
    rope = Settings(new or old or {}, config.place, config.advice)
    outer, inner = config.get("rope_theta", float), rope.get("rope_theta", float)
    if None not in (outer, inner) and outer != inner:
        config.refuse(f"`rope_theta` is {outer} in one place and {inner} in another")
    scaling = _scaling(rope)
    rope.expect("partial_rotary_factor", 1.0, None)
    rope.refuse_unread()
    return next(theta for theta in (inner, outer, 10000.0) if theta is not None), scaling


def _scaling(rope: Settings) -> RopeScaling | None:
    kind, older = rope.get("rope_type", str), rope.get("type", str)
    if None not in (kind, older) and kind != older:
        rope.refuse(f"the rotary scaling has `rope_type` = {kind!r} and `type` = {older!r}")
    kind = kind or older or "default"
    if kind == "linear":
        return RopeScaling.linear(rope.need("factor", float))
    if kind == "llama3":
        return RopeScaling(
            factor=rope.need("factor", float),
            low=rope.need("low_freq_factor", float),
            high=rope.need("high_freq_factor", float),
            length=rope.whole("original_max_position_embeddings"),
        )
    if kind != "default":
        rope.refuse(f"`rope_type` = {kind!r} is not supported; default, linear and llama3 are")
    return None
