"""Writes a Llama small enough for tests as a GGUF file: real format, real byte-level BPE, random weights.

No Keras here. Weights are drawn by NumPy in Hugging Face's layout and permuted as llama.cpp's converter does it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

WORDS = (
    "the",
    "and",
    "has",
    "how",
    "many",
    "are",
    "left",
    "each",
    "box",
    "apples",
    "costs",
    "dollars",
    "sells",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    tied: bool = True,
    num_layers: int = 3,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    inner: int = 64,
    vocabulary: Sequence[str] = WORDS,
    quantization: str = "F32",
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> dict[str, np.ndarray]:
    """Writes the file.

    Args:
        path: where to.
        seed: of the weights.
        tied: whether the unembedding is the token embedding.
        num_layers: ... `inner`: sizes. Quantised, `hidden` and `inner` must be multiples of 32.
        vocabulary: words that become one token each, with the space before them; all bytes are tokens as well.
        quantization: how matrices are stored: "F32", "Q8_0", ...; vectors are float32 always. What the package
            `gguf` cannot quantise ("Q4_K", ...) becomes random blocks: then the weights returned are not those.
        metadata: keys to add or replace; those whose value is None are left out.
        tensors: tensors to add or replace, as they stand in the file; None leaves one out.

    Returns:
        The weights by their name in the file, in Hugging Face's layout, before quantisation.
    """
    tokens, merges = _vocabulary(vocabulary)
    keys = _metadata(tokens, merges, num_layers, hidden, heads, kv_heads, inner) | dict(metadata or {})
    weights = _weights(seed, len(tokens), num_layers, hidden, hidden // heads * kv_heads, inner)
    if tied:
        del weights["output.weight"]
    stored = {name: _permute(name, weight, heads, kv_heads) for name, weight in weights.items()}
    stored |= dict(tensors or {})
    writer = gguf.GGUFWriter(path, keys.pop("general.architecture"))
    for key, value in keys.items():
        _add_key(writer, key, value)
    for name, weight in stored.items():
        if weight is not None:
            kind = gguf.GGMLQuantizationType[quantization if weight.ndim > 1 else "F32"]
            writer.add_tensor(name, _stored(weight, kind, seed), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _vocabulary(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Every byte is a token; every word grows from its first letter, the space before it included."""
    pieces = [["Ġ", *word] for word in words]
    pairs = ["Ġ Ġ"]
    for letters in pieces:
        pairs += [f"{''.join(letters[:i])} {letters[i]}" for i in range(1, len(letters))]
    merges = list(dict.fromkeys(pairs))
    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in merges)], merges


def _metadata(tokens, merges, num_layers, hidden, heads, kv_heads, inner) -> dict[str, Any]:
    """The keys that SmolLM2's file has."""
    return {
        "general.architecture": "llama",
        "general.name": "tiny",
        "general.license": "cc0-1.0",
        "llama.block_count": num_layers,
        "llama.context_length": 256,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": inner,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.rope.freq_base": 100000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(tokens),
        "llama.rope.dimension_count": hidden // heads,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def _weights(seed, tokens, num_layers, hidden, grouped, inner) -> dict[str, np.ndarray]:
    """Small embeddings, so that the norms' epsilon shows in the logits."""
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (tokens, hidden)}
    for layer in range(num_layers):
        for name, shape in {
            "attn_norm": (hidden,),
            "attn_q": (hidden, hidden),
            "attn_k": (grouped, hidden),
            "attn_v": (grouped, hidden),
            "attn_output": (hidden, hidden),
            "ffn_norm": (hidden,),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }.items():
            shapes[f"blk.{layer}.{name}.weight"] = shape
    shapes |= {"output_norm.weight": (hidden,), "output.weight": (tokens, hidden)}
    scale = 0.2 * (32 / hidden) ** 0.5  # as much in a product, whatever the width
    draws = {name: rng.normal(0, scale, shape) + (len(shape) == 1) for name, shape in shapes.items()}
    draws["token_embd.weight"] *= 0.05
    draws["output.weight"] *= 0.05
    return {name: draw.astype("float32") for name, draw in draws.items()}


def _permute(name: str, weight: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """llama.cpp, conversion/llama.py, `LlamaModel.permute`."""
    if "attn_q" not in name and "attn_k" not in name:
        return weight
    count = heads if "attn_q" in name else kv_heads
    halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


# Where the float16 scales of a block are, in bytes, and what makes its weights about 0.05; all other bytes may be any.
_SCALES = {
    "Q2_K": {80: 5e-3, 82: 7.5e-3},
    "Q3_K": {108: 1e-3},
    "Q4_K": {0: 2e-4, 2: 1.5e-3},
    "Q5_K": {0: 1e-4, 2: 1.5e-3},
    "Q6_K": {208: 3e-5},
    "IQ4_NL": {0: 5e-4},
    "IQ4_XS": {0: 3e-5},
    "IQ2_XXS": {0: 5e-4},
    "IQ3_S": {0: 5e-4},
    "TQ2_0": {64: 0.05},
}
RANDOM_BLOCKS = tuple(_SCALES)


def _stored(weight: np.ndarray, kind: gguf.GGMLQuantizationType, seed: int) -> np.ndarray:
    """The bytes of a tensor."""
    if kind.name not in _SCALES:
        return gguf.quants.quantize(weight, kind)
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng([seed, weight.size]).integers(
        0, 256, (weight.size // block_weights, block_bytes), dtype="uint8"
    )
    for place, scale in _SCALES[kind.name].items():
        blocks[:, place : place + 2] = np.array([scale], "<f2").view("uint8")
    return blocks.reshape(weight.shape[0], -1)


def _add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING", list: "ARRAY"}
    writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
