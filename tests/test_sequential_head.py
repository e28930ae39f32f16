"""What a sequential head sees, and that everything around a head works with one."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.data.targets import pad
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.mtp_head import MTPHead, next_embeddings
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

AT = 3  # the position looked at


def trained_a_little(head, seed=5):
    """Gives the projection, which starts at zero, something to say."""
    rng = np.random.default_rng(seed)
    head.projection.kernel.assign(rng.normal(0, 0.3, head.projection.kernel.shape))


def _model(*heads, prefix_length=3, **kwargs) -> MTPCausalLM:
    model = MTPCausalLM(tiny.backbone(num_layers=2), prefix_length=prefix_length, heads=heads, **kwargs)
    for head in heads:
        if isinstance(head, SequentialHead):
            trained_a_little(head)
    return model


def _changed(ids, place) -> np.ndarray:
    ids = ids.copy()
    ids[:, place] = (ids[:, place] + 7) % tiny.VOCABULARY
    return ids


@pytest.mark.parametrize("training_view", [False, True])
@pytest.mark.parametrize("k", [2, 4])
def test_it_sees_the_token_before_its_target_and_nothing_later(k, training_view):
    model, ids, name = _model(*(SequentialHead() for _ in range(3))), tiny.token_ids(2, 10), f"head_{k}"
    forward = tiny.forward(model.training_view() if training_view else model)
    rows = (ids, _changed(ids, AT + k), _changed(ids, AT + k - 1))
    before, target, seen = (forward(ids)[name] for ids in rows)
    np.testing.assert_allclose(target[:, : AT + 1], before[:, : AT + 1], atol=1e-6)
    assert np.abs(seen[:, AT] - before[:, AT]).max(-1).min() > 1e-3
    np.testing.assert_allclose(seen[:, :AT], before[:, :AT], atol=1e-6)


def test_the_token_it_sees_is_embedded_and_not_moved_by_the_trunk():
    """The head by hand, from the backbone's table and blocks."""
    model, ids = _model(LinearHead(), SequentialHead()), tiny.token_ids(2, 8)
    head, backbone = model.heads[1], model.backbone

    def trunk(ids):
        x = model.prefix_embedding(backbone.token_embedding(ids))
        for block in backbone.transformer_layers[:-1]:
            x = block(x)
        return x

    def rest(fed):
        state = backbone.layer_norm(head.decoder(fed)[:, 3:])
        return backbone.token_embedding(state, reverse=True)

    x = tiny.forward(trunk, model.variables)(ids)
    table = tiny.arrays([backbone.token_embedding.embeddings])[0]
    tokens = np.concatenate([ids[:, 2:], np.zeros((2, 2), int)], axis=1)
    seen = np.concatenate([np.zeros((2, 3, 32)), table[tokens]], axis=1)
    both = np.concatenate([_rms_normed(x), _rms_normed(seen)], axis=-1)
    fed = x + both @ tiny.arrays([head.projection.kernel])[0]
    expected = tiny.forward(rest, model.variables)(fed.astype("float32"))
    np.testing.assert_allclose(tiny.forward(model)(ids)["head_3"], expected, atol=3e-5)


def _rms_normed(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def test_it_starts_as_a_transformer_head():
    model = MTPCausalLM(
        tiny.backbone(num_layers=2), prefix_length=3, heads=[TransformerHead(), SequentialHead()]
    )
    logits = model(tiny.token_ids())
    np.testing.assert_array_equal(*(ops.convert_to_numpy(logits[name]) for name in ("head_2", "head_3")))


def test_padding_reaches_no_position_with_a_target():
    items = tiny.encoded(1, shortest=9, longest=9)
    model = _model(SequentialHead(), SequentialHead())
    short, long = (pad(items, width)[0] for width in (9, 14))
    forward = tiny.forward(model)
    alone, padded = forward(short), forward(long)
    for name in model.head_names:
        np.testing.assert_allclose(alone[name], padded[name][:, :9], atol=1e-5)
    scores = [HeldOutEvaluation(model, items * count, 4)()["head_3"] for count in (1, 3)]
    np.testing.assert_allclose(scores[1].nats, np.repeat(scores[0].nats, 3), rtol=1e-5)


def test_a_row_shorter_than_the_look_ahead():
    forward = tiny.forward(_model(SequentialHead(), SequentialHead()))
    for ids in (np.array([[5]]), np.array([[5, 6]])):
        assert forward(ids)["head_3"].shape == (1, ids.shape[1], tiny.VOCABULARY)


@pytest.mark.parametrize("prefix_length", [0, 3])
@pytest.mark.parametrize("shared", [0, 1, 4])
def test_states_lead_to_the_models_own_logits(prefix_length, shared):
    """Rows that begin with the same `shared` tokens: those whose next tokens are a row's own are not shared."""
    model = _model(SequentialHead(), TransformerHead(), SequentialHead(), prefix_length=prefix_length)
    ids = tiny.token_ids(3, 11)
    ids[:, :shared] = ids[0, :shared]
    view = model.training_view(shared_tokens=shared)
    assert view.shared_tokens == max(shared - 3, 0)
    _assert_same_logits(model, view, ids)


def _assert_same_logits(model, view, ids) -> None:
    unembedded = tiny.forward(lambda ids: _unembedded(model, view(ids)), model.variables)
    ours, logits = unembedded(ids), tiny.forward(model)(ids)
    assert ours.keys() == logits.keys()
    for name, own in ours.items():
        np.testing.assert_allclose(own, logits[name], atol=3e-5)


def _unembedded(model, states: dict) -> dict:
    return {name: model.backbone.token_embedding(state, reverse=True) for name, state in states.items()}


@pytest.mark.parametrize("option", [None, "only_heads", "detach"])
@pytest.mark.parametrize("change", [{"shared_tokens": 4}, {"remat": True}], ids=["shared", "remat"])
def test_neither_sharing_nor_remat_changes_a_gradient(change, option):
    plain, changed = _plain_gradients(option), _gradients(option, **change)
    assert plain.keys() == changed.keys()
    for name, value in plain.items():
        np.testing.assert_allclose(value, changed[name], atol=1e-5, err_msg=name)


def _gradients(option: str | None, **change) -> dict[str, np.ndarray]:
    """With everything in training, trunk included."""
    model = _model(SequentialHead(), SequentialHead(), freeze_backbone=False)
    return tiny.gradients(model, _ids(), **change, **({option: True} if option else {}))


_plain_gradients = functools.cache(_gradients)  # what every change is compared with


def _ids() -> np.ndarray:
    """Rows that begin with the same four tokens."""
    ids = tiny.token_ids(3, 11)
    ids[:, :4] = ids[0, :4]
    return ids


@pytest.mark.parametrize("training_view", [False, True])
def test_it_never_trains_the_embeddings_it_sees(training_view):
    """The trunk is trained, but the state it is fed does not come from there: the table stays as it is."""
    model = _model(SequentialHead(), freeze_backbone=False)
    table = model.backbone.token_embedding.embeddings
    before, head = tiny.arrays([table])[0], tiny.arrays([model.heads[0].projection.kernel])[0]
    if training_view:
        tiny.make_one_step(model, _ids(), only_heads=True)
    else:
        states = keras.Input((None, 32))
        tokens = keras.Input((None,), dtype="int32")
        seen = next_embeddings(model.backbone.token_embedding, tokens, 0)
        alone = keras.Model([states, tokens], model.heads[0](states, seen))
        alone.compile(keras.optimizers.SGD(0.05), "mse")
        x = np.random.default_rng(1).normal(size=(2, 5, 32)).astype("float32")
        alone.train_on_batch([x, tiny.token_ids(2, 5)], np.zeros_like(x))
    np.testing.assert_array_equal(tiny.arrays([table])[0], before)
    assert not np.array_equal(tiny.arrays([model.heads[0].projection.kernel])[0], head)


class OwnHead(MTPHead):
    """As users wrote heads before `reads_tokens` was there."""

    def adopt(self, backbone):
        self.build((None, None, backbone.hidden_dim))

    def call(self, hidden_states):
        return 2.0 * hidden_states

    def advance(self, hidden_states, apply_block):
        return self(hidden_states)


class OwnReader(OwnHead):
    """The least that a head of one's own needs to see the tokens."""

    reads_tokens = True

    def call(self, hidden_states, next_embeddings):
        return hidden_states + next_embeddings

    advance = MTPHead.advance


def test_heads_of_ones_own_work_with_and_without_the_tokens():
    model, ids = _model(OwnHead(), OwnReader(), SequentialHead()), tiny.token_ids(2, 7)
    _assert_same_logits(model, model.training_view(), ids)


def test_sizes_come_from_a_backbone():
    with pytest.raises(ValueError, match="A `SequentialHead` takes its sizes from a backbone"):
        SequentialHead().build((None, None, 32))
