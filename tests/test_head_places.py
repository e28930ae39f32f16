"""Where a head stands and what it starts as: in the functional model, the training view, a recipe."""

import keras
import numpy as np
import pytest

from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.from_recipe import _head
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, updated
from tests import tiny

KINDS = (TransformerHead, SequentialHead, LinearHead)
PLACES = ("before_last_block", "last_block")


def _model(*heads, **kwargs) -> MTPCausalLM:
    return MTPCausalLM(tiny.backbone(num_layers=2), prefix_length=3, heads=heads, **kwargs)


def _drawn(model) -> MTPCausalLM:
    """With weights that all say something."""
    rng = np.random.default_rng(7)
    for head in model.heads:
        head.set_weights([w + rng.normal(0, 0.1, w.shape) for w in head.get_weights()])
    return model


def _trunk(model, ids) -> dict:
    """The states by keras-hub's own blocks."""
    x = model.prefix_embedding(model.backbone.token_embedding(ids))
    first, last = model.backbone.transformer_layers
    x = first(x)
    return {"before_last_block": x, "last_block": last(x)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [TransformerHead, LinearHead])
def test_a_head_reads_the_state_it_is_attached_to(kind, place):
    model, ids = _drawn(_model(kind(attach=place))), tiny.token_ids()

    def by_hand(ids):
        state = model.heads[0](_trunk(model, ids)[place])
        return model.backbone.token_embedding(model.backbone.layer_norm(state[:, 3:]), reverse=True)

    expected = tiny.forward(by_hand, model.variables)(ids)
    np.testing.assert_allclose(tiny.forward(model)(ids)["head_2"], expected, atol=3e-5)


@pytest.mark.parametrize("only_heads", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_training_sees_what_the_model_says(place, only_heads):
    model, ids = _drawn(_model(*(kind(attach=place) for kind in KINDS))), tiny.token_ids(3, 11)
    ids[:, :5] = ids[0, :5]
    states = tiny.forward(model.training_view(shared_tokens=5, only_heads=only_heads))(ids)
    logits = tiny.forward(model)(ids)
    assert list(states) == list(model.head_names[only_heads:])
    for name, state in states.items():
        ours = keras.ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True))
        np.testing.assert_allclose(ours, logits[name], atol=3e-5)


def test_decoding_with_drafts_says_the_same():
    heads = [TransformerHead(attach="last_block"), LinearHead(attach="before_last_block")]
    model, prompts = _drawn(_model(*heads)), [[7, 3, 9, 1], [5, 11]]
    plain, drafted = (
        model.generate(prompts, max_new_tokens=12, stop_ids={49}, speculate=speculate)
        for speculate in (False, True)
    )
    assert plain == drafted and all(plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["default", *PLACES])
def test_place_and_start_come_back_with_the_config(kind, place):
    model = _model(kind(attach=place, start="random", seed=3))
    config = model.heads[0].get_config()
    assert config["attach"] == place and config["start"] == "random"
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(model.heads[0]))
    default = "last_block" if kind is LinearHead else "before_last_block"
    assert again.reads == model.heads[0].reads == (default if place == "default" else place)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_starts_at_zero_says_at_first_what_its_state_says(kind):
    model, ids = _model(kind(start="zero", attach="last_block")), tiny.token_ids()
    logits = tiny.forward(model)(ids)
    np.testing.assert_allclose(logits["head_2"], logits["head_1"], atol=1e-5)
    before = tiny.arrays(model.heads[0].trainable_variables)
    for _ in range(
        3
    ):  # through what is zero nothing behind it learns, and so nothing before it, in the first step
        tiny.make_one_step(model, ids, only_heads=True)
    for variable, old in zip(model.heads[0].trainable_variables, before, strict=True):
        assert not np.array_equal(tiny.arrays([variable])[0], old), variable.path


def test_random_starts_are_seeded_and_differ_from_zero():
    one, same, other = (_model(LinearHead(start="random", seed=seed)).heads[0] for seed in (1, 1, 2))
    (a,), (b,), (c,) = (tiny.arrays(head.variables) for head in (one, same, other))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_name_is_refused(kind):
    with pytest.raises(ValueError, match=r"`attach` must be one of .* Received: attach='first_block'"):
        kind(attach="first_block")
    with pytest.raises(ValueError, match=r"`start` must be .* Received: start='warm'"):
        kind(start="warm")


def test_a_recipe_says_both():
    heads = {
        kind: _head(updated(Recipe(), {"heads.kind": kind}), 2)
        for kind in ("transformer", "sequential", "linear")
    }
    assert [head.reads for head in heads.values()] == ["before_last_block", "before_last_block", "last_block"]
    assert [head.start for head in heads.values()] == ["last_block", "last_block", "zero"]
    changed = updated(
        Recipe(), {"heads.kind": "linear", "heads.start": "random", "heads.attach": "before_last_block"}
    )
    head = _head(changed, 2)
    assert (head.reads, head.start) == ("before_last_block", "random")
