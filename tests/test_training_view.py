"""The view that training uses against the public model, with and without what all rows share."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.data.batches import shared_tokens
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

SHARED = 4


def _model(prefix_length=3, **kwargs) -> MTPCausalLM:
    model = MTPCausalLM(
        tiny.backbone(num_layers=2),
        prefix_length=prefix_length,
        heads=[TransformerHead(), LinearHead()],
        **kwargs,
    )
    rng = np.random.default_rng(3)
    model.heads[1].dense.kernel.assign(rng.normal(0, 0.1, (32, 32)))
    return model


def _ids(rows=3, tokens=11) -> np.ndarray:
    ids = tiny.token_ids(rows, tokens)
    ids[:, :SHARED] = ids[0, :SHARED]
    return ids


@pytest.mark.parametrize("prefix_length", [0, 3])
@pytest.mark.parametrize("shared", [0, 1, SHARED])
def test_states_lead_to_the_models_own_logits(prefix_length, shared):
    model, ids = _model(prefix_length), _ids()
    states = model.training_view(shared_tokens=shared)(ids)
    logits = model(ids)
    assert list(states) == list(logits) == ["head_1", "head_2", "head_3"]
    for name, state in states.items():
        assert tuple(state.shape) == (3, 11, 32)
        ours = ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True))
        np.testing.assert_allclose(ours, ops.convert_to_numpy(logits[name]), atol=3e-5)


@pytest.mark.parametrize("options", [{}, {"only_heads": True}, {"detach": True}])
@pytest.mark.parametrize(
    "change",
    [{"shared_tokens": SHARED}, {"remat": True}, {"fused": True}, {"fused": True, "remat": True}],
    ids=["shared", "remat", "fused", "fused and remat"],
)
def test_neither_sharing_nor_remat_nor_fusing_changes_a_gradient(change, options):
    """One SGD step with everything in training, trunk included: the same weights either way."""
    steps = []
    for changed in ({}, change):
        model = _model(freeze_backbone=False)
        view = model.training_view(**changed, **options)
        names = [name for name in model.head_names if not (options.get("only_heads") and name == "head_1")]
        losses = {
            name: LinearCrossEntropy(model.backbone.token_embedding, trained=name == "head_1")
            for name in names
        }
        view.compile(keras.optimizers.SGD(0.05), loss=losses)
        ids = _ids()
        weights = np.full(ids.shape, 1 / ids.size, "float32")  # labels on the shared tokens too
        view.fit(
            ids,
            dict.fromkeys(names, np.roll(ids, -1, 1)),
            sample_weight=dict.fromkeys(names, weights),
            batch_size=3,
            shuffle=False,
            verbose=0,
        )
        steps.append({v.path.split("/", 1)[1]: tiny.arrays([v])[0] for v in model.variables})
    for (name, plain), shared_step in zip(steps[0].items(), steps[1].values(), strict=True):
        np.testing.assert_allclose(plain, shared_step, atol=2e-6, err_msg=name)


def test_only_heads_leaves_the_trunk_alone():
    model = _model(freeze_backbone=False)
    before = tiny.arrays(model.backbone.variables) + tiny.arrays(model.prefix_embedding.variables)
    view = model.training_view(only_heads=True)
    unembedding = model.backbone.token_embedding
    view.compile("sgd", loss={name: LinearCrossEntropy(unembedding) for name in ("head_2", "head_3")})
    view.fit(_ids(), {"head_2": _ids(), "head_3": _ids()}, verbose=0)
    after = tiny.arrays(model.backbone.variables) + tiny.arrays(model.prefix_embedding.variables)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_shared_tokens_are_those_that_all_examples_begin_with():
    examples = tiny.encoded(5)
    assert shared_tokens(examples) == 0
    for example in examples:
        example.ids[:3] = (7, 8, 9)
        example.ids[3] = int(example.id[-1])
    assert shared_tokens(examples) == 3
    assert shared_tokens(examples[:1] * 2) == len(examples[0].ids) - 1, "one token stays a row's own"
