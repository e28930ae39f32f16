import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.generation.attention import CHUNK
from keras_mtp.generation.cached_forward import CachedForward
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny


def _model(prefix_length=4, **backbone) -> MTPCausalLM:
    heads = [TransformerHead(start="random"), LinearHead()]
    return MTPCausalLM(tiny.backbone(**backbone), prefix_length=prefix_length, heads=heads)


def _start(*positions):
    return ops.convert_to_tensor(np.array(positions, "int32"))


def _logits(forward, states) -> list[np.ndarray]:
    return [ops.convert_to_numpy(forward.logits(state)) for state in states]


@pytest.mark.parametrize("prefix_length", [0, 4])
@pytest.mark.parametrize("rope", [{}, {"rope_max_wavelength": 500}])
def test_cached_equals_uncached_for_every_head(prefix_length, rope):
    model = _model(prefix_length, **rope)
    forward = CachedForward(model, heads=True)
    ids = tiny.token_ids(2, 9)
    expected = [ops.convert_to_numpy(v) for v in model(ids).values()]
    cache = forward.read_prefix(forward.empty_cache(2, CHUNK))
    states, cache = forward.step(ids[:, :5], _start(prefix_length, prefix_length), cache)
    for found, whole in zip(_logits(forward, states), expected, strict=True):
        np.testing.assert_allclose(found, whole[:, :5], atol=2e-5)
    # Then rows that stand at different places; the second goes back and reads two tokens again.
    new = np.stack([ids[0, 5:8], ids[1, 3:6]])
    states, _ = forward.step(new, _start(prefix_length + 5, prefix_length + 3), cache)
    for found, whole in zip(_logits(forward, states), expected, strict=True):
        np.testing.assert_allclose(found, np.stack([whole[0, 5:8], whole[1, 3:6]]), atol=2e-5)


def test_attention_over_several_chunks_and_up_to_the_last_slot():
    model = _model(4)
    forward = CachedForward(model)
    ids = tiny.token_ids(1, 2 * CHUNK - 4)
    expected = ops.convert_to_numpy(model(ids)["head_1"])
    cache = forward.read_prefix(forward.empty_cache(1, 2 * CHUNK))
    _, cache = forward.step(ids[:, :-3], _start(4), cache)
    states, _ = forward.step(ids[:, -3:], _start(2 * CHUNK - 3), cache)
    np.testing.assert_allclose(_logits(forward, states)[0], expected[:, -3:], atol=1e-4)


def test_room_that_is_not_filled_changes_no_bit():
    forward = CachedForward(_model(4))
    ids = tiny.token_ids(1, 9)
    found = []
    for slots in (CHUNK, 4 * CHUNK):
        cache = forward.read_prefix(forward.empty_cache(1, slots))
        states, _ = forward.step(ids, _start(4), cache)
        found.append(ops.convert_to_numpy(states[0]))
    np.testing.assert_array_equal(*found)


def test_keras_hub_still_has_the_private_parts_we_use():
    block = tiny.backbone().transformer_layers[0]
    for name in ("_self_attention_layer", "_self_attention_layernorm", "_feedforward_layernorm"):
        assert isinstance(getattr(block, name), keras.layers.Layer)
