"""What a run trained as an adapter of Hugging Face PEFT, to be put on the original Hugging Face model.

    tuning.method    PEFT            adapter_model.safetensors
    prefix           prompt tuning   prompt_embeddings (P, D)
    prefix_kv        prefix tuning   prompt_embeddings (P, blocks * 2 * H * E): keys, rotated, then values
    lora             LoRA            lora_A, lora_B of every adapted matrix

Keras' LoRA gives every attention head of query, key and value an A of its own, and all of them one B. PEFT has one of each,
so it is given all A side by side, and a B that is the shared one in every head's place and zero elsewhere: the same change,
of rank heads * r.

P prefix places, D hidden size, H key-value heads, E head size, r rank.
Reference: PEFT 0.21, `utils/save_and_load.py`, `tuners/lora/config.py`.
"""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mtp.export.llama_folder import save_tensors
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.hub import HUGGING_FACE
from keras_mtp.models.hugging_face import hugging_face_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_STORED = {  # a projection, as models/llama.py names its matrix
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def write_adapter(model: keras.Model, folder: Path, base: BaseInfo) -> str:
    """Writes the two files of an adapter.

    Args:
        model: an `MTPCausalLM` with a prefix, or with keys and values, or with LoRA. folder: that is there. base: under it.

    Returns:
        What PEFT calls it: "prompt tuning", ...
    """
    if model.lora is not None:
        kind, config, tensors = "LoRA", _lora_config(model.lora), _lora_tensors(model.lora)
    elif model.prefix_key_values is not None:
        key_values = [_array(variable) for variable in model.prefix.key_values]
        kind, config = "prefix tuning", _prefix_config(model, key_values)
        tensors = {"prompt_embeddings": key_value_table(key_values)}
    else:
        kind, config = "prompt tuning", _prompt_config(model)
        tensors = {"prompt_embeddings": _array(model.prefix.embeddings)}
    hub, name = base.source.startswith(HUGGING_FACE), base.source.removeprefix(HUGGING_FACE)
    config |= {
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": name.partition("@")[0] if hub else None,
        "revision": base.revision if hub else None,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tensors(tensors, folder / WEIGHTS, folder / CONFIG)
    return kind


def key_value_table(key_values: list[np.ndarray]) -> np.ndarray:
    """Keys and values (2, P, H, E) of every block as PEFT's table, (P, blocks * 2 * H * E)."""
    length = key_values[0].shape[1]
    return np.ascontiguousarray(np.stack(key_values).transpose(2, 0, 1, 3, 4)).reshape(length, -1)


def lora_matrices(a: np.ndarray, b: np.ndarray, target: str) -> tuple[np.ndarray, np.ndarray]:
    """Keras' A and B of a projection as PEFT's `(lora_A (rank, inputs), lora_B (outputs, rank))`."""
    rank = a.shape[-1]
    # The output's heads are among its inputs; those of query, key and value have an A each.
    wide = a.reshape(-1, rank) if target == "output" else a.reshape(a.shape[0], -1)
    heads = wide.shape[1] // rank
    spread = np.kron(np.eye(heads, dtype=b.dtype), b.T)
    # In one piece: of an array that is a view of a turned one, safetensors writes the numbers in the wrong order.
    return np.ascontiguousarray(wide.T), np.ascontiguousarray(spread)


def module_path(place: int, target: str) -> str:
    """transformers' name for a projection of a block: "model.layers.0.self_attn.q_proj"."""
    return hugging_face_name(f"blk.{place}.{_STORED[target]}.weight").removesuffix(".weight")


def lora_pattern(ranks: dict[str, int], rank: int, alpha: float) -> dict[str, Any]:
    """The part of PEFT's `LoraConfig` that says which matrices are changed, and how much.

    Args:
        ranks: PEFT's, by projection. rank, alpha: Keras', whose quotient is the scale of the change.
    """
    modules = {module_path(0, target).rpartition(".")[2]: wide for target, wide in ranks.items()}
    return {
        "target_modules": list(modules),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": modules,
        "alpha_pattern": {module: alpha * wide / rank for module, wide in modules.items()},
    }


def _prompt_config(model: keras.Model) -> dict[str, Any]:
    backbone = model.backbone
    return {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",  # what it starts as, before it is loaded
        "num_virtual_tokens": model.prefix_length,
        "token_dim": backbone.hidden_dim,
        "num_transformer_submodules": 1,
        "num_attention_heads": backbone.num_query_heads,
        "num_layers": backbone.num_layers,
    }


def _prefix_config(model: keras.Model, key_values: list[np.ndarray]) -> dict[str, Any]:
    _, length, heads, size = key_values[0].shape
    return {
        "peft_type": "PREFIX_TUNING",
        "prefix_projection": False,
        "num_virtual_tokens": length,
        "token_dim": heads * size,  # of the key-value heads: PEFT asks for no others
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": len(key_values),
    }


def _lora_config(lora) -> dict[str, Any]:
    first = {target: _matrices(dense, target) for place, target, dense in lora.adapted() if place == 0}
    ranks = {target: wide.shape[0] for target, (wide, _) in first.items()}
    return {"peft_type": "LORA", "bias": "none", **lora_pattern(ranks, lora.rank, lora.alpha)}


def _lora_tensors(lora) -> dict[str, np.ndarray]:
    tensors = {}
    for place, target, dense in lora.adapted():
        for name, matrix in zip(("lora_A", "lora_B"), _matrices(dense, target), strict=True):
            tensors[f"base_model.model.{module_path(place, target)}.{name}.weight"] = matrix
    return tensors


def _matrices(dense, target: str) -> tuple[np.ndarray, np.ndarray]:
    return lora_matrices(_array(dense.lora_kernel_a), _array(dense.lora_kernel_b), target)


def _array(variable) -> np.ndarray:
    return ops.convert_to_numpy(variable.value)
