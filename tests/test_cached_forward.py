import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp import backend
from keras_mtp.generation.attention import CHUNK
from keras_mtp.generation.cached_forward import CachedForward
from keras_mtp.generation.drafting import drafted
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny


def _model(prefix_length=4, heads=(), **backbone) -> MTPCausalLM:
    return MTPCausalLM(tiny.backbone(**backbone), prefix_length=prefix_length, heads=heads)


def _heads():
    return [TransformerHead(start="random"), LinearHead(), SequentialHead(), SequentialHead(start="random")]


def _heads_elsewhere():
    """Each kind where it does not stand by default, beside one that does."""
    return [
        TransformerHead(attach="last_block"),
        LinearHead(attach="before_last_block"),
        SequentialHead(attach="last_block"),
        LinearHead(),
    ]


def _start(*positions):
    return ops.convert_to_tensor(np.array(positions, "int32"))


def _logits(forward, states) -> np.ndarray:
    return ops.convert_to_numpy(forward.logits(states))


def _draw(heads) -> None:
    """Weights with which a head is about as sure as one that is trained, and none is zero."""
    rng = np.random.default_rng(7)
    for head in heads:
        head.set_weights([w + rng.normal(0, 0.3, w.shape) for w in head.get_weights()])


@pytest.mark.parametrize("prefix_length", [0, 4])
@pytest.mark.parametrize(
    ("heads", "rope"),
    [(_heads, {}), (_heads, {"rope_max_wavelength": 500}), (_heads_elsewhere, {})],
    ids=["default", "other rope", "attached elsewhere"],
)
def test_cached_equals_uncached_for_every_head(prefix_length, heads, rope):
    model = _model(prefix_length, heads(), **rope)
    _draw(model.heads)
    forward = CachedForward(model, heads=True)
    ids = tiny.token_ids(2, 9)
    expected = tiny.forward(model)(ids).values()
    in_slots = np.zeros((2, CHUNK, 1), "int32")
    in_slots[:, prefix_length : prefix_length + 9, 0] = ids

    def read(token_ids, start, cache):
        weights, width = forward.weights(), token_ids.shape[1]
        states, cache = forward.step(weights, token_ids, start, cache)
        found = [forward.logits(states)]
        for k in forward.far:
            states, cache = forward.head(k, weights, ops.convert_to_tensor(in_slots), start, width, cache)
            found.append(forward.logits(states))
        return found, cache

    read = tiny.program(read, model.variables)
    cache = tiny.program(forward.read_prefix, model.variables)(forward.empty_cache(2, CHUNK))
    found, cache = read(ids[:, :5], _start(prefix_length, prefix_length), cache)
    for of_head, whole in zip(found, expected, strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(of_head), whole[:, :5], atol=2e-5)
    # Then rows that stand at different places; the second goes back and reads two tokens again.
    new = np.stack([ids[0, 5:8], ids[1, 3:6]])
    found, _ = read(new, _start(prefix_length + 5, prefix_length + 3), cache)
    for of_head, whole in zip(found, expected, strict=True):
        again = np.stack([whole[0, 5:8], whole[1, 3:6]])
        np.testing.assert_allclose(ops.convert_to_numpy(of_head), again, atol=2e-5)


@pytest.mark.parametrize("kinds", [(TransformerHead, LinearHead), (SequentialHead,) * 3])
def test_drafts_are_what_the_heads_say_of_the_text_and_the_drafts_before(kinds):
    model = _model(4, [kind() for kind in kinds])
    _draw(model.heads)
    forward = CachedForward(model, heads=True)
    ids = tiny.token_ids(1, 12)

    def read(in_slots, cache):
        weights = forward.weights()
        _, cache = forward.step(weights, ids, _start(4), cache)
        for k in forward.far:
            _, cache = forward.head(k, weights, in_slots, _start(4), 12, cache)
        return cache

    def draft(in_slots, at, cache):
        return drafted(forward, forward.weights(), in_slots, at, cache)[0]

    whole = tiny.forward(model)
    read, draft = (backend.compiled(function, model.variables, xla=True) for function in (read, draft))
    for certain in (2, 5, 12):  # what is read behind that place is to be forgotten
        in_slots = np.full((1, CHUNK, 1), 9, "int32")
        in_slots[0, 4 : 4 + certain - 1, 0] = ids[0, : certain - 1]
        # As while a prompt is read: what comes after it is not known, and something else stands there.
        cache = read(in_slots, forward.read_prefix(forward.empty_cache(1, CHUNK)))
        in_slots[0, 4 + certain - 1] = ids[0, certain - 1]
        found = ops.convert_to_numpy(draft(in_slots, np.array([4 + certain - 1], "int32"), cache))
        text = np.zeros((1, 20), "int32")
        text[0, :certain] = ids[0, :certain]
        for k in forward.far:
            said = whole(text)[f"head_{k}"]
            text[0, certain + k - 2] = said[0, certain - 2].argmax()
        drafts = certain + len(kinds)
        np.testing.assert_array_equal(found[0, 4 : 4 + drafts, 0], text[0, :drafts])


@pytest.mark.parametrize("tied", [True, False])
def test_a_draft_is_the_likeliest_of_the_draft_vocabulary(tied):
    chosen = [3, 4, 17, 30, 49]
    model = MTPCausalLM(tiny.backbone(tied=tied), heads=[LinearHead()], draft_vocabulary=chosen)
    forward = CachedForward(model, heads=True)
    states = np.random.default_rng(0).normal(size=(3, 4, 32)).astype("float32")
    of_chosen = _logits(forward, ops.convert_to_tensor(states))[:, :, chosen]
    expected = np.array(chosen)[of_chosen.argmax(-1)]
    likeliest = backend.compiled(lambda x: forward.likeliest(forward.weights(), x), model.variables)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(ops.convert_to_numpy(likeliest(states)), expected)
    assert set(np.ravel(ops.convert_to_numpy(likeliest(states * np.nan)))) <= set(chosen)


def test_attention_over_several_chunks_and_up_to_the_last_slot():
    model = _model(4)
    forward = CachedForward(model)
    step = tiny.program(lambda *new: forward.step(forward.weights(), *new), model.variables)
    ids = tiny.token_ids(1, 2 * CHUNK - 4)
    expected = tiny.forward(model)(ids)["head_1"]
    cache = forward.read_prefix(forward.empty_cache(1, 2 * CHUNK))
    _, cache = step(ids[:, :-3], _start(4), cache)
    states, _ = step(ids[:, -3:], _start(2 * CHUNK - 3), cache)
    np.testing.assert_allclose(_logits(forward, states), expected[:, -3:], atol=1e-4)


def test_room_that_is_not_filled_changes_no_bit():
    forward = CachedForward(_model(4))
    ids = tiny.token_ids(1, 9)
    found = []
    for slots in (CHUNK, 4 * CHUNK):
        cache = forward.read_prefix(forward.empty_cache(1, slots))
        states, _ = forward.step(forward.weights(), ids, _start(4), cache)
        found.append(ops.convert_to_numpy(states))
    np.testing.assert_array_equal(*found)


def test_keras_hub_still_has_the_private_parts_we_use():
    block = tiny.backbone().transformer_layers[0]
    for name in ("_self_attention_layer", "_self_attention_layernorm", "_feedforward_layernorm"):
        assert isinstance(getattr(block, name), keras.layers.Layer)
