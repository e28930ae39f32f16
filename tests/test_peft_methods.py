"""Prefix tuning and LoRA against Hugging Face PEFT: logits, and the gradient of every trained weight."""

import numpy as np
import pytest

from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.models.backbone import load_backbone
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.models.tuned_weights import tuned_variables
from keras_mtp.tuning import PROJECTIONS
from tests import peft_methods, tiny, tiny_hugging_face
from tests.autodiff import value_and_gradients

IDS = tiny.token_ids(3, 11)
IDS[:, :4] = IDS[0, :4]  # shared by all rows, so that a training view computes them once
# Two key-value heads, each for two query heads; wide embeddings, so that attention is not even.
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def base(tmp_path):
    """transformers' Llama, and the same as a keras-hub backbone."""
    theirs = tiny_hugging_face.reference(**SIZES)
    theirs.model.embed_tokens.weight.data *= 50
    ours, _ = load_backbone(str(tiny_hugging_face.save(theirs, tmp_path / "base")))
    return theirs, ours


def _gradients(model: MTPCausalLM, shared_tokens: int) -> dict[str, np.ndarray]:
    """Of the mean loss of head_1 in a training view, by name."""
    view = model.training_view(shared_tokens=shared_tokens)
    loss = LinearCrossEntropy(model.backbone.token_embedding)
    targets, weights = np.roll(IDS, -1, 1), np.full(IDS.shape, 1 / (IDS[:, 1:].size), "float32")
    weights[:, -1] = 0
    variables = tuned_variables(model)

    def scaled(scale, ids):
        return scale * loss(targets, view(ids)["head_1"], weights)

    _, (_, *found) = value_and_gradients(scaled, list(variables.values()))(np.float32(1), IDS)
    return dict(zip(variables, found, strict=True))


def _assert_same(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    assert np.abs(theirs).max() > 0, name
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max(), err_msg=name)


@pytest.mark.parametrize("shared_tokens", [0, 4])
def test_prefix_tuning_is_pefts(base, shared_tokens):
    theirs, backbone = base
    model = MTPCausalLM(backbone, prefix_length=5, prefix_kind="key_values", prefix_start=[7, 8, 9])
    key_values = tiny.arrays(model.prefix_key_values.key_values)
    logits, expected = peft_methods.prefix_tuning(theirs, key_values, IDS)
    np.testing.assert_allclose(tiny.forward(model)(IDS)["head_1"], logits, atol=1e-4 * np.abs(logits).max())
    found = _gradients(model, shared_tokens)
    for place, gradient in enumerate(expected):
        _assert_same(found[f"prefix/block_{place}"], gradient, f"block {place}")


@pytest.mark.parametrize("targets", [("query", "value"), PROJECTIONS])
def test_lora_is_pefts(base, targets):
    theirs, backbone = base
    model = MTPCausalLM(backbone, lora_rank=3, lora_alpha=5.0, lora_targets=targets)
    rng = np.random.default_rng(2)
    for name, variable in model.lora.named_variables().items():
        if name.endswith("/b"):
            variable.assign(rng.normal(0, 0.1, variable.shape))
    named = {n: tiny.arrays([v])[0] for n, v in model.lora.named_variables().items()}
    plain = tiny_hugging_face.logits(theirs, IDS)
    logits, expected = peft_methods.lora(theirs, named, 5.0, IDS)
    assert np.abs(logits - plain).max() > 0.1 * np.abs(plain).max()
    np.testing.assert_allclose(tiny.forward(model)(IDS)["head_1"], logits, atol=1e-4 * np.abs(logits).max())
    found = _gradients(model, 4)
    assert found.keys() == {f"lora/{name}" for name in expected}
    for name, gradient in expected.items():
        _assert_same(found[f"lora/{name}"], gradient, name)
