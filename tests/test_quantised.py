"""Matrices in int8 and int4: the numbers and gradients of the same matrices in float32, with none of them kept."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp import backend
from keras_mtp.backend import temporaries
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy, score_rows
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.quantised import Quantised, embedded
from keras_mtp.rounding import BLOCK, MODES, quantise, restored
from keras_mtp.unembedding import unembedding_kernel
from tests import tiny
from tests.autodiff import value_and_gradients
from tests.quantised_twins import loaded, twins

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.mark.parametrize(
    ("mode", "tied", "lora_rank", "remat"), [("int8", True, 2, False), ("int4", False, 0, True)]
)
def test_training_follows_the_gradients_of_the_float_twin(mode, tied, lora_rank, remat):
    models = [
        MTPCausalLM(b, prefix_length=3, heads=[TransformerHead(), SequentialHead()], lora_rank=lora_rank)
        for b in twins(mode, tied=tied)
    ]
    for model in models:  # LoRA's B is zero at first, and then A has no gradient
        rng = np.random.default_rng(0)
        for variable in model.lora.named_variables().values() if lora_rank else ():
            variable.assign(rng.normal(0, 0.1, variable.shape))
    ours, theirs = (tiny.gradients(model, tiny.token_ids(), remat=remat) for model in models)
    assert len(ours) == len(theirs) > 1 + 9 + 9 and all(np.abs(g).max() > 0 for g in ours.values())
    for (name, our), their in zip(ours.items(), theirs.values(), strict=True):
        np.testing.assert_allclose(our, their, err_msg=name, **CLOSE)


@pytest.mark.parametrize("mode", MODES)
def test_keras_own_call_and_decoding_compute_what_training_does(mode):
    """Keras rounds activations as well unless it is kept from it; decoding with drafts says the same tokens."""
    ours, theirs = (MTPCausalLM(b, prefix_length=3, heads=[TransformerHead()]) for b in twins(mode))
    ids = tiny.token_ids()
    for name, logits in tiny.forward(ours)(ids).items():
        np.testing.assert_allclose(logits, tiny.forward(theirs)(ids)[name], rtol=2e-4, atol=2e-4)
    wish = {"max_new_tokens": 6, "stop_ids": [tiny.VOCABULARY - 1]}
    expected = theirs.generate([5, 6, 7], **wish)
    assert ours.generate([5, 6, 7], **wish) == ours.generate([5, 6, 7], speculate=True, **wish) == expected


def test_activations_that_keras_would_round_are_kept():
    """A backbone that a user quantised in Keras' default way."""
    backbone = tiny.backbone()
    backbone.token_embedding.quantize("int8")
    assert backbone.token_embedding.inputs_quantizer is not None
    MTPCausalLM(backbone)
    assert backbone.token_embedding.inputs_quantizer is None


def _embeddings(mode: str, tied: bool) -> tuple:
    """`(quantised by Keras, in float32 with the same values)`: int4 too, though a model is not loaded so."""
    ours, theirs = (tiny.backbone(tied=tied).token_embedding for _ in range(2))
    configs = {
        "int8": keras.quantizers.Int8QuantizationConfig(activation_quantizer=None),
        "int4": keras.quantizers.Int4QuantizationConfig(block_size=BLOCK),
    }
    ours.quantize(config=configs[mode])
    table, *unembedding = tiny.arrays(theirs.weights)
    rounded = [restored(quantise(table, mode)), *(restored(quantise(w.T, mode)).T for w in unembedding)]
    theirs.set_weights(rounded)
    return ours, theirs


def _logits(layer, hidden):
    hidden = ops.convert_to_tensor(hidden)
    kernel = unembedding_kernel(layer, "float32", after=hidden)
    return backend.matmul(hidden, kernel, transpose_b=layer.tie_weights)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_the_lean_loss_reads_a_quantised_unembedding(mode, tied):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 5, 32)).astype("float32")
    targets, weights = tiny.token_ids(2, 5), rng.random((2, 5)).astype("float32")
    found = []
    for layer in _embeddings(mode, tied):
        loss = LinearCrossEntropy(layer, trained=True, chunk_rows=4)  # never trained where it is quantised
        value, (gradient,) = value_and_gradients(lambda h, loss=loss: loss(targets, h, weights), [])(hidden)
        nats, _ = score_rows(targets, hidden, weights, layer)
        logits = layer(hidden, reverse=True) if layer.quantization_mode is None else _logits(layer, hidden)
        tokens = embedded(layer, ops.convert_to_tensor(targets))
        found.append([value, gradient, *map(ops.convert_to_numpy, (nats, logits, tokens))])
    assert np.abs(found[0][1]).max() > 0
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


def test_heads_start_from_the_values_of_the_trunk_and_learn():
    ours, theirs = (MTPCausalLM(b, heads=[TransformerHead()]) for b in twins("int4"))
    for our, their in zip(ours.heads[0].weights, theirs.heads[0].weights, strict=True):
        assert our.dtype == "float32" and our.trainable
        np.testing.assert_allclose(*tiny.arrays([our, their]), rtol=1e-6)
    before = tiny.arrays(ours.weights)
    tiny.make_one_step(ours, tiny.token_ids())
    trained = {id(v) for v in ours.trainable_variables}
    for old, variable in zip(before, ours.weights, strict=True):
        assert np.array_equal(old, *tiny.arrays([variable])) == (id(variable) not in trained), variable.path


@pytest.mark.parametrize(("mode", "lora_rank"), [("int8", 0), ("int4", 2)])
def test_a_keras_file_keeps_everything(tmp_path, mode, lora_rank):
    model = MTPCausalLM(twins(mode)[0], prefix_length=2, lora_rank=lora_rank)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.1, variable.shape))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert {v.dtype for v in again.backbone.weights} == {"int8", "float32"}
    ids = tiny.token_ids()
    np.testing.assert_allclose(
        tiny.forward(again)(ids)["head_1"], tiny.forward(model)(ids)["head_1"], rtol=1e-5, atol=1e-5
    )
    assert len(again.trainable_variables) == len(model.trainable_variables)


def test_a_quantised_trunk_is_not_trained():
    with pytest.raises(ValueError, match="`freeze_backbone=False` needs a backbone that is not quantised"):
        MTPCausalLM(twins("int8")[0], freeze_backbone=False)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_computed_with_float32_scales(mode):
    plain = tiny.backbone()
    exact = tiny.forward(MTPCausalLM(loaded(plain, rounding=mode)))(tiny.token_ids())["head_1"]
    heads = [TransformerHead()]
    model = MTPCausalLM(loaded(plain, dtype="bfloat16", quantize=mode), prefix_length=2, heads=heads)
    tiny.make_one_step(model, tiny.token_ids(), remat=True)
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    short = MTPCausalLM(loaded(plain, dtype="bfloat16", quantize=mode))
    found = tiny.forward(short)(tiny.token_ids())["head_1"].astype("float32")
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_a_large_unembedding_is_made_in_slabs(monkeypatch, mode, tied):
    stored = Quantised.of_unembedding(_embeddings(mode, tied)[0])
    at_once = ops.convert_to_numpy(stored.kernel("float32"))
    monkeypatch.setattr(temporaries, "LARGE_MATRIX", 1)
    monkeypatch.setattr(temporaries, "SLAB", 7 * at_once.size // tiny.VOCABULARY)
    np.testing.assert_array_equal(ops.convert_to_numpy(stored.kernel("float32")), at_once)


SIZE, DEPTH = 256, 8


@pytest.mark.skipif(
    keras.config.backend() == "tensorflow", reason="says nothing of what a graph will hold at a time"
)
def test_no_kernel_is_kept_for_the_backward_pass():
    """A chain of 8 products: in floating point its kernels would take 8 times what one takes."""
    dense = [keras.layers.Dense(SIZE, use_bias=False) for _ in range(DEPTH)]
    for layer in dense:
        layer.build((None, SIZE))
        layer.quantize("int8")

    def chain(x):
        for layer in dense:
            x = ops.tanh(Quantised.of_dense(layer, 1).product(x))
        return ops.sum(x)

    kept = {"jax": _kept_by_jax, "torch": _kept_by_torch}[keras.config.backend()](chain, dense)
    assert kept < 3 * 4 * SIZE**2


def _kept_by_jax(function, layers) -> int:
    """Bytes that the compiled gradient needs besides its arguments and results."""
    import jax

    variables = [v for layer in layers for v in layer.variables]

    def stateless(x, values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(x)

    x = np.ones((4, SIZE), "float32")
    compiled = jax.jit(jax.grad(stateless)).lower(x, [v.value for v in variables]).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def _kept_by_torch(function, layers) -> int:
    """Bytes of floating-point tensors that wait for the backward pass."""
    torch = backend.torch()
    kept: dict[int, int] = {}

    def note(tensor):
        if tensor.is_floating_point():
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = torch.ones(4, SIZE, requires_grad=True, device=layers[0]._kernel.value.device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        function(x)
    return sum(kept.values())
