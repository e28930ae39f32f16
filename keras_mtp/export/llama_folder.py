"""A keras-hub Llama in Hugging Face's files: the way back of `models/hugging_face.py`.

keras-hub's own `export_to_transformers` is not used: it makes up the length of the context, says of every rotary scaling that
it is Llama 3's, and holds all weights in memory twice.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import ml_dtypes  # noqa: F401  teaches NumPy the bfloat16 that weights may have
import numpy as np
from keras import ops
from safetensors.numpy import save_file

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.models.hugging_face import CONFIG, hugging_face_name
from keras_mtp.models.llama import LlamaSizes, RopeScaling, named_variables, sizes_of, weight_shapes
from keras_mtp.models.safetensors_folder import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9


def write_llama(
    backbone: keras.Model,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    context_length: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights, LoRA merged into them, as they are stored in the backbone.

    Args:
        backbone: a keras-hub Llama. folder: that is there.
        tokenizer: whose special tokens the config names. context_length: longest text that the model was made for, in tokens.
        shard_bytes: where the weights are more than this, they go into several files of at most so many bytes each.
    """
    sizes, dtype = sizes_of(backbone), backbone.token_embedding.variable_dtype
    config = _config(sizes, dtype) | _tokens(tokenizer)
    if context_length is not None:
        config["max_position_embeddings"] = context_length
    _write_json(folder / CONFIG, config)
    _write_weights(_arrays(backbone, sizes, dtype), folder, shard_bytes)


def _config(sizes: LlamaSizes, dtype: str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as every release of transformers reads them, not the newest alone."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": sizes.vocabulary_size,
        "hidden_size": sizes.hidden_dim,
        "intermediate_size": sizes.intermediate_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_query_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": sizes.layer_norm_epsilon,
        "rope_theta": sizes.rope_wavelength,
        "tie_word_embeddings": sizes.tied,
        "torch_dtype": dtype,
    }
    if sizes.rope_scaling is not None:
        config["rope_scaling"] = _rope_scaling(sizes.rope_scaling)
    return config


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    if scaling == RopeScaling.linear(scaling.factor):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.length,
    }


def _tokens(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    ends = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": tokenizer.pad_id,
    }


def _arrays(backbone: keras.Model, sizes: LlamaSizes, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight by transformers' name, (out, in) for a matrix, one at a time."""
    shapes = weight_shapes(sizes)
    for name, variable in named_variables(backbone):
        value = ops.cast(ops.cast(variable, dtype), "float32")  # LoRA is merged in float32
        array = ops.convert_to_numpy(value).astype(dtype)
        if name != "token_embd.weight":
            array = array.reshape(shapes[name][::-1]).T
        yield hugging_face_name(name), np.ascontiguousarray(array)


def _write_weights(arrays: Iterable[tuple[str, np.ndarray]], folder: Path, shard_bytes: int) -> None:
    """One file, or several and an index; one of them in memory at a time."""
    written: list[list[str]] = []
    total = 0
    for shard in _shards(arrays, shard_bytes):
        save_tensors(shard, folder / _shard_name(len(written)), folder / CONFIG)
        written.append(list(shard))
        total += sum(array.nbytes for array in shard.values())
    if len(written) == 1:
        (folder / _shard_name(0)).rename(folder / SINGLE)
        return
    where: dict[str, str] = {}
    for place, names in enumerate(written):
        file = f"model-{place + 1:05d}-of-{len(written):05d}.safetensors"
        (folder / _shard_name(place)).rename(folder / file)
        where |= dict.fromkeys(names, file)
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def save_tensors(tensors: dict[str, np.ndarray], path: Path, config: Path) -> None:
    """Writes a safetensors file as transformers wants it, readable for whoever may read `config`: not for its owner alone."""
    save_file(tensors, path, metadata={"format": "pt"})
    shutil.copymode(config, path)


def _shards(arrays: Iterable[tuple[str, np.ndarray]], shard_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """Groups of at most so many bytes; a tensor that is larger is a group of its own."""
    shard: dict[str, np.ndarray] = {}
    for name, array in arrays:
        if shard and sum(x.nbytes for x in shard.values()) + array.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = array
    yield shard


def _shard_name(place: int) -> str:
    """Until it is known how many there are."""
    return f"shard-{place}.safetensors"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
