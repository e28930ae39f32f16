"""The one architecture: what makes one Llama's graph different from another's, and how a backbone is built.

Every source of models (GGUF, Hugging Face, keras-hub) ends here: its sizes go to `build`, its weights into what that builds
(filling.py), under the names that llama.cpp gives them. Nothing about a model is guessed, because a wrong guess (a rotary scaling left out,
another epsilon) still gives fluent text, only a worse model.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

if TYPE_CHECKING:
    import keras_hub


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3.1's scaling of the rotary frequencies: fast ones are kept, slow ones divided, those between blended.

    Args:
        factor: what the slow frequencies are divided by.
        low: a frequency is slow if it turns less than `low` times in `length` positions.
        high: it is fast if it turns more than `high` times.
        length: the context, in tokens, that the model had before it was scaled.

    Reference: transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    length: int = 8192

    @classmethod
    def linear(cls, factor: float) -> "RopeScaling":
        """Every frequency divided by `factor`: in a context of one token all of them are slow.

        keras-hub's own argument for this, `rope_position_scaling_factor`, is never applied
        (`llama_rotary_embedding.py`, `_get_inverse_freq`).
        """
        return cls(factor=factor, length=1)

    def divisors(self, wavelength: float, head_dim: int) -> np.ndarray:
        """What each of the `head_dim / 2` frequencies is divided by."""
        frequencies = wavelength ** (-np.arange(0, head_dim, 2) / head_dim)
        turns = self.length * frequencies / (2 * math.pi)
        smooth = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return 1 / ((1 - smooth) / self.factor + smooth)


@dataclass(frozen=True, kw_only=True)
class LlamaSizes:
    """What makes one Llama's graph different from another's.

    Args:
        rope_wavelength: the base of the rotary frequencies, `rope_theta` elsewhere.
        rope_scaling: None where the frequencies are as they were trained at first.
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
    rope_scaling: RopeScaling | None
    tied: bool

    @property
    def head_dim(self) -> int:
        """Units per attention head."""
        return self.hidden_dim // self.num_query_heads

    def problem(self) -> str | None:
        """Why no Llama can have these sizes, in words; None if one can."""
        counts = (self.vocabulary_size, self.num_layers, self.num_query_heads, self.num_key_value_heads)
        if min(*counts, self.hidden_dim, self.intermediate_dim) < 1:
            return "every size must be at least 1"
        if self.hidden_dim % (2 * self.num_query_heads) or self.num_query_heads % self.num_key_value_heads:
            return (
                f"{self.hidden_dim} hidden units, {self.num_query_heads} heads and {self.num_key_value_heads} "
                "key-value heads do not divide evenly"
            )
        scaling = self.rope_scaling or RopeScaling(factor=1.0)
        reals = (self.layer_norm_epsilon, self.rope_wavelength, scaling.factor, scaling.low, scaling.length)
        if not all(math.isfinite(real) and real > 0 for real in reals):
            return "the epsilon and the rotary settings must be numbers above 0"
        if not scaling.low < scaling.high < math.inf:
            return "the rotary scaling's high frequency factor must be above the low one"
        return None


def weight_shapes(sizes: LlamaSizes) -> dict[str, tuple[int, ...]]:
    """The shape of every weight, (out, in) for a matrix, by llama.cpp's name for it."""
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


def check_tensors(
    found: Mapping[str, tuple[int, ...]],
    sizes: LlamaSizes,
    refuse: Callable[[str], NoReturn],
    rename: Callable[[str], str] = str,
) -> None:
    """Refuses a model whose tensors are not exactly those of its sizes.

    Args:
        found: the shape of every tensor that is there.
        refuse: raises the source's own error for a reason.
        rename: turns llama.cpp's name for a weight into the source's.
    """
    if sizes.num_layers > len(found):  # also keeps a damaged count from filling the memory with names
        refuse(f"{len(found)} tensors are too few for {sizes.num_layers} layers")
    expected = {rename(name): shape for name, shape in weight_shapes(sizes).items()}
    if missing := _without(expected, found):
        refuse(f"{len(missing)} tensors are missing, the first is {missing[0]:.80}")
    if surplus := _without(found, expected):
        refuse(f"{len(surplus)} tensors are no part of a plain Llama, the first is {surplus[0]:.80}")
    for name, shape in expected.items():
        if found[name] != shape:
            refuse(f"tensor {name} must have shape {shape}, but has {found[name]}")


def build(sizes: LlamaSizes, dtype: Any) -> "keras_hub.models.Llama3Backbone":
    """The backbone as keras-hub begins it. Epsilon and the rotary settings are given in full: the defaults are not Llama 3's."""
    import keras_hub

    scaling = sizes.rope_scaling
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
        rope_frequency_adjustment_factor=scaling and scaling.factor,
        rope_low_freq_factor=scaling and scaling.low,
        rope_high_freq_factor=scaling and scaling.high,
        rope_pretraining_sequence_length=scaling and scaling.length,
        tie_word_embeddings=sizes.tied,
        dtype=dtype,
    )


def sizes_of(backbone: "keras_hub.models.Llama3Backbone") -> LlamaSizes:
    """The sizes that `build` made a backbone of."""
    factor = backbone.rope_frequency_adjustment_factor
    return LlamaSizes(
        vocabulary_size=backbone.vocabulary_size,
        num_layers=backbone.num_layers,
        num_query_heads=backbone.num_query_heads,
        num_key_value_heads=backbone.num_key_value_heads,
        hidden_dim=backbone.hidden_dim,
        intermediate_dim=backbone.intermediate_dim,
        layer_norm_epsilon=backbone.layer_norm_epsilon,
        rope_wavelength=backbone.rope_max_wavelength,
        rope_scaling=factor
        and RopeScaling(
            factor=factor,
            low=backbone.rope_low_freq_factor,
            high=backbone.rope_high_freq_factor,
            length=backbone.rope_pretraining_sequence_length,
        ),
        tied=backbone.token_embedding.tie_weights,
    )


def _without(names: Iterable[str], others: Mapping[str, Any]) -> list[str]:
    return [name for name in names if name not in others]


def named_variables(backbone: "keras_hub.models.Llama3Backbone") -> Iterable[tuple[str, Any]]:
    """llama.cpp's names for the variables of keras-hub's backbone."""
    return ((name, getattr(layer, attribute)) for name, layer, attribute in named_weights(backbone))


def named_weights(backbone: "keras_hub.models.Llama3Backbone") -> Iterable[tuple[str, Any, str]]:
    """llama.cpp's name for every weight, the layer that holds it, and as which attribute."""
    embedding = backbone.token_embedding
    yield "token_embd.weight", embedding, "embeddings"
    if not embedding.tie_weights:
        yield "output.weight", embedding, "reverse_embeddings"
    for index, layer in enumerate(backbone.transformer_layers):
        attention = layer._self_attention_layer
        block = {
            "attn_norm": (layer._self_attention_layernorm, "scale"),
            "attn_q": (attention._query_dense, "kernel"),
            "attn_k": (attention._key_dense, "kernel"),
            "attn_v": (attention._value_dense, "kernel"),
            "attn_output": (attention._output_dense, "kernel"),
            "ffn_norm": (layer._feedforward_layernorm, "scale"),
            "ffn_gate": (layer._feedforward_gate_dense, "kernel"),
            "ffn_up": (layer._feedforward_intermediate_dense, "kernel"),
            "ffn_down": (layer._feedforward_output_dense, "kernel"),
        }
        yield from ((f"blk.{index}.{name}.weight", *place) for name, place in block.items())
    yield "output_norm.weight", backbone.layer_norm, "scale"
