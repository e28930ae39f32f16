"""What a GGUF file must hold to be a plain Llama: its sizes, its tensors, nothing else.

Everything the file says is either understood or refused by name; nothing is guessed, because a wrong guess (a rotary
scaling left out, a bias dropped) still gives fluent text, only a worse model.

Reference: llama.cpp, `src/models/llama.cpp` (keys and tensors) and `conversion/llama.py` (`permute`, and how
`rope_freqs` is made).
"""

import math
from dataclasses import dataclass

import numpy as np

from keras_mtp.models.gguf import GGUFFile

# Understood here, or known not to change the computation (the longest context is a promise about quality).
_KNOWN_KEYS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "vocab_size",
}
# Llama 3.1's scaling of the rotary frequencies. Later releases differ from it in the factor only.
ROPE_LOW, ROPE_HIGH, ROPE_LENGTH = 1.0, 4.0, 8192


@dataclass(frozen=True, kw_only=True)
class LlamaSizes:
    """What makes one Llama's graph different from another's.

    Args:
        rope_factor: how far Llama 3.1's scaling slows the low rotary frequencies; None without scaling.
        tied: whether the unembedding is the token embedding.
    """

    vocabulary_size: int
    num_layers: int
    num_query_heads: int
    num_key_value_heads: int
    hidden_dim: int
    intermediate_dim: int
    layer_norm_epsilon: float
    rope_wavelength: float
    rope_factor: float | None
    tied: bool

    @property
    def head_dim(self) -> int:
        """Units per attention head."""
        return self.hidden_dim // self.num_query_heads


def read_sizes(file: GGUFFile) -> LlamaSizes:
    """Reads the sizes and checks that the file is a plain Llama in every respect.

    Raises:
        UserError: another architecture, a setting that is not supported, or tensors that do not fit the sizes.
    """
    file.expect("general.architecture", "llama")
    _check_keys(file)
    heads, hidden = _whole(file, "attention.head_count"), _whole(file, "embedding_length")
    groups = _whole(file, "attention.head_count_kv", heads)
    if hidden % (2 * heads) or heads % groups:
        file.refuse(f"{hidden} hidden units, {heads} heads and {groups} key-value heads do not divide evenly")
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if _whole(file, key, hidden // heads) != hidden // heads:
            file.refuse(f"`llama.{key}` must be {hidden // heads}, the hidden units per head")
    wavelength = file.get("llama.rope.freq_base", float, 10000.0)
    sizes = LlamaSizes(
        vocabulary_size=len(file.need("tokenizer.ggml.tokens", list)),
        num_layers=_whole(file, "block_count"),
        num_query_heads=heads,
        num_key_value_heads=groups,
        hidden_dim=hidden,
        intermediate_dim=_whole(file, "feed_forward_length"),
        # The file holds a float32: 9.999999747e-06 stands for 1e-05.
        layer_norm_epsilon=float(str(np.float32(file.need("llama.attention.layer_norm_rms_epsilon", float)))),
        rope_wavelength=wavelength,
        rope_factor=_rope_factor(file, wavelength, hidden // heads),
        tied="output.weight" not in file.shapes,
    )
    _check_tensors(file, sizes)
    return sizes


def read_weight(file: GGUFFile, sizes: LlamaSizes, name: str) -> np.ndarray:
    """One weight as float32 (out, in), in Hugging Face's order of rows.

    llama.cpp stores the rows of query and key so that the two partners of a rotation are neighbours; Hugging Face
    and keras-hub have them half a head apart.
    """
    weight = file.read(name)
    if ".attn_q." in name:
        return _undo_permutation(weight, sizes.num_query_heads)
    if ".attn_k." in name:
        return _undo_permutation(weight, sizes.num_key_value_heads)
    return weight


def rope_divisors(wavelength: float, head_dim: int, factor: float) -> np.ndarray:
    """What Llama 3.1 divides each rotary frequency by: 1 where it is fast, `factor` where slow, a blend between."""
    frequencies = wavelength ** (-np.arange(0, head_dim, 2) / head_dim)
    turns = ROPE_LENGTH * frequencies / (2 * math.pi)
    smooth = np.clip((turns - ROPE_LOW) / (ROPE_HIGH - ROPE_LOW), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _undo_permutation(weight: np.ndarray, heads: int) -> np.ndarray:
    """(heads, half, 2, D) -> (heads, 2, half, D)."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _check_keys(file: GGUFFile) -> None:
    for key, value in file.metadata.items():
        if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN_KEYS:
            file.refuse(f"`{key}` = {value} is not supported")  # experts, sliding windows, further scalings
    scaling = file.get("llama.rope.scaling.type", str, "none")
    if scaling != "none":
        # keras-hub takes `rope_position_scaling_factor`, but its Llama never applies it (`_get_inverse_freq` in
        # llama_rotary_embedding.py), so even "linear" would be dropped in silence.
        file.refuse(f"`llama.rope.scaling.type` = {scaling!r} is not supported")


def _whole(file: GGUFFile, key: str, default: int | None = None) -> int:
    key = f"llama.{key}"
    value = file.need(key, int) if default is None else file.get(key, int, default)
    if value < 1:
        file.refuse(f"`{key}` must be at least 1, but is {value}")
    return value


def _rope_factor(file: GGUFFile, wavelength: float, head_dim: int) -> float | None:
    """Llama 3.1 and later: the file has each frequency's divisor, keras-hub wants the formula's arguments."""
    if "rope_freqs.weight" not in file.shapes:
        return None
    divisors = file.read("rope_freqs.weight")
    factor = float(divisors.max())
    if divisors.shape != (head_dim // 2,) or not np.allclose(
        divisors, rope_divisors(wavelength, head_dim, factor), rtol=1e-4
    ):
        file.refuse("`rope_freqs.weight` is not Llama 3.1's scaling (low 1, high 4, length 8192)")
    return factor


def _check_tensors(file: GGUFFile, sizes: LlamaSizes) -> None:
    if sizes.num_layers > len(file.shapes):  # also keeps a damaged count from filling the memory with names
        file.refuse(f"{len(file.shapes)} tensors are too few for {sizes.num_layers} layers")
    expected = _expected_shapes(sizes)
    found = {name: shape for name, shape in file.shapes.items() if name != "rope_freqs.weight"}
    if missing := [name for name in expected if name not in found]:
        file.refuse(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if surplus := [name for name in found if name not in expected]:
        file.refuse(f"{len(surplus)} tensors are no part of a plain Llama, the first is {surplus[0]}")
    for name, shape in expected.items():
        if found[name] != shape:
            file.refuse(f"tensor {name} must have shape {shape}, but has {found[name]}")


def _expected_shapes(sizes: LlamaSizes) -> dict[str, tuple[int, ...]]:
    hidden, inner = sizes.hidden_dim, sizes.intermediate_dim
    grouped = sizes.num_key_value_heads * sizes.head_dim
    block = {
        "attn_norm": (hidden,),
        "attn_q": (hidden, hidden),
        "attn_k": (grouped, hidden),
        "attn_v": (grouped, hidden),
        "attn_output": (hidden, hidden),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    shapes = {"token_embd.weight": (sizes.vocabulary_size, hidden), "output_norm.weight": (hidden,)}
    if not sizes.tied:
        shapes["output.weight"] = (sizes.vocabulary_size, hidden)
    for layer in range(sizes.num_layers):
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes
