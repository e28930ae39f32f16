"""GGUF files of every kind, compared by their logits with transformers fed what the package `gguf` reads from them."""

import gguf
import numpy as np
import pytest
import torch
from keras import ops
from transformers import LlamaConfig, LlamaForCausalLM

from keras_mtp.models.backbone import base_info, load_backbone
from tests.tiny_gguf import RANDOM_BLOCKS, write_tiny_gguf

SIZES = {"hidden": 256, "heads": 4, "kv_heads": 2, "inner": 256, "num_layers": 2}
IDS = np.random.default_rng(1).integers(0, 300, (2, 60)).astype("int32")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def _reference(path, *, tied: bool, **config) -> LlamaForCausalLM:
    """transformers' Llama with the file's weights, each read and dequantised by `gguf.GGUFReader` and `gguf.quants`."""
    weights = {}
    for tensor in gguf.GGUFReader(path).tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        weights[_name(tensor.name)] = torch.tensor(_unpermuted(tensor.name, weight), device="cpu")
    settings = LlamaConfig(
        vocab_size=len(weights["model.embed_tokens.weight"]),
        hidden_size=SIZES["hidden"],
        intermediate_size=SIZES["inner"],
        num_hidden_layers=SIZES["num_layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["kv_heads"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        **({"rope_theta": 100000.0} | config),
    )
    model = LlamaForCausalLM(settings)
    if tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


def _name(name: str) -> str:
    *block, part, _weight = name.split(".")
    return "".join(f"model.layers.{index}." for index in block[1:]) + NAMES[part] + ".weight"


def _unpermuted(name: str, weight: np.ndarray) -> np.ndarray:
    """Undoes llama.cpp's order of rows in query and key, one row after the other."""
    if "attn_q" not in name and "attn_k" not in name:
        return weight
    half = SIZES["hidden"] // SIZES["heads"] // 2
    heads = [weight[start : start + 2 * half] for start in range(0, len(weight), 2 * half)]
    return np.concatenate([np.concatenate([head[0::2], head[1::2]]) for head in heads])


def _assert_same_logits(path, model) -> None:
    backbone, _tokenizer = load_backbone(str(path))
    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    logits = ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
    with torch.no_grad():
        expected = model(torch.tensor(IDS, dtype=torch.long, device="cpu")).logits.numpy()
    # Rounding in float32 comes to 1.4e-5 (TensorFlow on an AMD processor); quantisation to far more, see below.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *RANDOM_BLOCKS]
)
def test_a_quantised_llama_computes_what_transformers_does(path, quantization, tied):
    write_tiny_gguf(path, quantization=quantization, tied=tied, **SIZES)
    _assert_same_logits(path, _reference(path, tied=tied))


def test_linear_scaling_is_transformers(path):
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    write_tiny_gguf(path, metadata=keys, **SIZES)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 100000.0}
    _assert_same_logits(path, _reference(path, tied=True, rope_parameters=rope))


def test_quantisation_shows_in_these_logits(path):
    """The reference with the weights before quantisation is another model."""
    weights = write_tiny_gguf(path, quantization="Q4_1", **SIZES)
    model = _reference(path, tied=True)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.tensor(weights["token_embd.weight"], device="cpu"))
    with pytest.raises(AssertionError):
        _assert_same_logits(path, model)


@pytest.mark.parametrize("licence", ["apache-2.0", "llama3.1", None])
def test_the_licence_is_the_files(path, licence):
    write_tiny_gguf(path, metadata={"general.license": licence})
    info = base_info(str(path))
    assert info.licence == (licence or "unknown")
    assert (info.notice or "").startswith("Built with Llama") == (licence == "llama3.1")
