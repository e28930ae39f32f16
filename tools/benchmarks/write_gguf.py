"""A backbone's weights as a GGUF file of one dtype, so that llama.cpp computes with the very weights that we do.

There is no vocabulary in it: the benchmark gives and takes token ids.

Reference: llama.cpp, `conversion/llama.py`, whose names, keys and permutation these are.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from keras_mtp.models.llama import LlamaSizes, named_variables, weight_shapes

LONGEST_CONTEXT = 1 << 16  # only a promise; llama.cpp warns where it is passed


def write_gguf(path: Path, backbone: Any, sizes: LlamaSizes, dtype: str) -> None:
    """Writes the file.

    Args:
        path: where to. backbone: a keras-hub Llama backbone. sizes: of it.
        dtype: "float32" or "bfloat16", of the matrices; the norms' scales are float32, as llama.cpp wants them.
    """
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, sizes)
    kind = gguf.GGMLQuantizationType.F32 if dtype == "float32" else gguf.GGMLQuantizationType.BF16
    shapes = weight_shapes(sizes)
    for name, variable in named_variables(backbone):
        weight = _permuted(name, _out_in(name, variable, shapes[name]), sizes)
        stored = kind if weight.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(weight, stored), raw_dtype=stored)
    if sizes.rope_scaling is not None:
        divisors = sizes.rope_scaling.divisors(sizes.rope_wavelength, sizes.head_dim)
        writer.add_tensor("rope_freqs.weight", divisors.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, sizes: LlamaSizes) -> None:
    writer.add_block_count(sizes.num_layers)
    writer.add_context_length(LONGEST_CONTEXT)
    writer.add_embedding_length(sizes.hidden_dim)
    writer.add_feed_forward_length(sizes.intermediate_dim)
    writer.add_head_count(sizes.num_query_heads)
    writer.add_head_count_kv(sizes.num_key_value_heads)
    writer.add_layer_norm_rms_eps(sizes.layer_norm_epsilon)
    writer.add_rope_dimension_count(sizes.head_dim)
    writer.add_rope_freq_base(sizes.rope_wavelength)
    writer.add_vocab_size(sizes.vocabulary_size)
    writer.add_tokenizer_model("none")


def _out_in(name: str, variable: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Keras' (in, out) to (out, in); a table and a norm's scale are as they are."""
    from keras import ops

    weight = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
    if len(shape) == 1 or name == "token_embd.weight":
        return weight
    return np.ascontiguousarray(weight.reshape(shape[::-1]).T)


def _permuted(name: str, weight: np.ndarray, sizes: LlamaSizes) -> np.ndarray:
    """The rows of query and key: (heads, 2, half, D) -> (heads, half, 2, D)."""
    heads = {"attn_q": sizes.num_query_heads, "attn_k": sizes.num_key_value_heads}
    count = next((heads[part] for part in heads if f".{part}." in name), None)
    if count is None:
        return weight
    return weight.reshape(count, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
