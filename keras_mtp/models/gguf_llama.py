"""What a GGUF file must hold to be a plain Llama: its sizes, its tensors, nothing else.

Everything the file says is either understood or refused by name.

Reference: llama.cpp, `src/models/llama.cpp` (keys and tensors) and `conversion/llama.py` (`permute`, and how
`rope_freqs` is made).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.models import filling, llama
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from keras_mtp.models.licence import Licence
from keras_mtp.models.llama import LlamaSizes, RopeScaling

if TYPE_CHECKING:
    import keras_hub

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
    "rope.scaling.factor",
    "rope.scaling.type",
    "vocab_size",
}


class GGUFLlama:
    """A GGUF file as a source of a model.

    Args:
        path: the file.

    Raises:
        UserError: the file is damaged, or is not a plain Llama in every respect.
    """

    def __init__(self, path: Path) -> None:
        self.files: tuple[Path, ...] = (path,)
        self._file = GGUFFile(path)
        self.sizes = read_sizes(self._file)

    @property
    def licence(self) -> Licence:
        """As the file's metadata state it."""
        return Licence.named(self._file.get("general.license", str))

    @property
    def context_length(self) -> int | None:
        """As the file's metadata state it."""
        return self._file.get("llama.context_length", int)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the file."""
        return read_tokenizer(self._file)

    def fill(self, backbone: "keras_hub.models.Llama3Backbone", rounding: str = "none") -> None:
        """Gives a backbone without values its weights."""
        filling.fill(backbone, partial(read_weight, self._file, self.sizes), self._file.refuse, rounding)


def read_sizes(file: GGUFFile) -> LlamaSizes:
    """Reads the sizes and checks that the file is a plain Llama in every respect.

    Raises:
        UserError: another architecture, a setting that is not supported, or tensors that do not fit the sizes.
    """
    if (parts := file.get("split.count", int, 1)) > 1:
        file.refuse(f"it is one part of {parts}; join them with `llama-gguf-split --merge`")
    file.expect("general.architecture", "llama")
    _check_keys(file)
    heads = _whole(file, "attention.head_count")
    wavelength = _real(file, "rope.freq_base", 10000.0)
    sizes = LlamaSizes(
        vocabulary_size=len(file.need("tokenizer.ggml.tokens", list)),
        num_layers=_whole(file, "block_count"),
        num_query_heads=heads,
        num_key_value_heads=_whole(file, "attention.head_count_kv", heads),
        hidden_dim=_whole(file, "embedding_length"),
        intermediate_dim=_whole(file, "feed_forward_length"),
        layer_norm_epsilon=_real(file, "attention.layer_norm_rms_epsilon"),
        rope_wavelength=wavelength,
        rope_scaling=_linear_scaling(file),
        tied="output.weight" not in file.shapes,
    )
    if problem := sizes.problem():
        file.refuse(problem)
    if (stated := _whole(file, "vocab_size", sizes.vocabulary_size)) != sizes.vocabulary_size:
        file.refuse(
            f"`llama.vocab_size` is {stated}, but `tokenizer.ggml.tokens` has {sizes.vocabulary_size}"
        )
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if _whole(file, key, sizes.head_dim) != sizes.head_dim:
            file.refuse(f"`llama.{key}` must be {sizes.head_dim}, the hidden units per head")
    found = {name: shape for name, shape in file.shapes.items() if name != "rope_freqs.weight"}
    llama.check_tensors(found, sizes, file.refuse)
    return _with_llama_3_scaling(file, sizes)


def read_weight(
    file: GGUFFile, sizes: LlamaSizes, name: str, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """One weight, or the rows of some whole heads, as float32 (out, in), in Hugging Face's order of rows.

    llama.cpp stores the rows of query and key so that the two partners of a rotation are neighbours; Hugging Face
    and keras-hub have them half a head apart.
    """
    if len(file.shapes[name]) == 1:
        return file.read(name)[start:stop]
    weight = file.read(name, start, stop)
    if ".attn_q." in name or ".attn_k." in name:
        # (heads, half, 2, D) -> (heads, 2, half, D)
        pairs = weight.reshape(-1, sizes.head_dim // 2, 2, weight.shape[-1])
        return pairs.swapaxes(1, 2).reshape(weight.shape)
    return weight


def _check_keys(file: GGUFFile) -> None:
    for key, value in file.metadata.items():
        if key.startswith("llama.") and key.removeprefix("llama.") not in _KNOWN_KEYS:
            file.refuse(
                f"`{key:.80}` = {value!r:.40} is not supported"
            )  # experts, sliding windows, further scalings


def _whole(file: GGUFFile, key: str, default: int | None = None) -> int:
    key = f"llama.{key}"
    value = file.need(key, int) if default is None else file.get(key, int, default)
    if value < 1:
        file.refuse(f"`{key}` must be at least 1, but is {value}")
    return value


def _real(file: GGUFFile, key: str, default: float | None = None) -> float:
    """The file holds a float32: 9.999999747e-06 stands for 1e-05."""
    key = f"llama.{key}"
    value = file.need(key, float) if default is None else file.get(key, float, default)
    with np.errstate(over="ignore"):  # infinite then, which no Llama can have
        return float(str(np.float32(value)))


def _linear_scaling(file: GGUFFile) -> RopeScaling | None:
    kind = file.get("llama.rope.scaling.type", str, "none")
    if kind == "linear":
        return RopeScaling.linear(_real(file, "rope.scaling.factor"))
    if kind != "none":
        file.refuse(f"`llama.rope.scaling.type` = {kind!r} is not supported")
    if (factor := file.get("llama.rope.scaling.factor", float, 1.0)) != 1.0:
        file.refuse(f"`llama.rope.scaling.factor` = {factor} stands there without its type")
    return None


def _with_llama_3_scaling(file: GGUFFile, sizes: LlamaSizes) -> LlamaSizes:
    """Llama 3.1 and later: the file has each frequency's divisor, keras-hub wants the formula's arguments."""
    if "rope_freqs.weight" not in file.shapes:
        return sizes
    if sizes.rope_scaling is not None:
        file.refuse("`rope_freqs.weight` and `llama.rope.scaling.type` are two scalings at once")
    if file.shapes["rope_freqs.weight"] != (sizes.head_dim // 2,):
        file.refuse("`rope_freqs.weight` must hold one divisor for every rotary frequency")
    divisors = file.read("rope_freqs.weight")
    factor = float(divisors.max())
    if not np.isfinite(divisors).all() or factor < 1:
        file.refuse("`rope_freqs.weight` must hold one divisor for every rotary frequency")
    scaling = RopeScaling(factor=factor)
    if not np.allclose(divisors, scaling.divisors(sizes.rope_wavelength, sizes.head_dim), rtol=1e-4):
        file.refuse("`rope_freqs.weight` is not Llama 3.1's scaling (low 1, high 4, length 8192)")
    return dataclasses.replace(sizes, rope_scaling=scaling)
