import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mtp
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny


def _numpy(outputs) -> dict[str, np.ndarray]:
    return {name: keras.ops.convert_to_numpy(value) for name, value in outputs.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_without_prefix_head_1_is_the_backbone(tied):
    backbone = tiny.backbone(tied=tied)
    ids = tiny.token_ids()
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    expected = keras.ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
    actual = _numpy(MTPCausalLM(backbone)(ids))["head_1"]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_outputs_one_per_head():
    model = MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[TransformerHead(), LinearHead()])
    logits = _numpy(model(tiny.token_ids()))
    assert model.head_names == tuple(logits) == ("head_1", "head_2", "head_3")
    assert {v.shape for v in logits.values()} == {(2, 9, tiny.VOCABULARY)}


@pytest.mark.parametrize("head", [TransformerHead(), LinearHead()])
def test_a_fresh_head_says_what_the_backbone_says(head):
    """A copy of the last block on the last block's input, or the identity on its output, is the backbone itself."""
    logits = _numpy(MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[head])(tiny.token_ids()))
    np.testing.assert_allclose(logits["head_2"], logits["head_1"], atol=1e-5)


def test_hidden_states_are_the_same_layers():
    model = MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[TransformerHead(start="random")])
    view = MTPCausalLM(model.backbone, heads=model.heads, outputs="hidden_states")
    assert view(tiny.token_ids())["head_2"].shape == (2, 9, 32)
    states = model.training_view()(tiny.token_ids())
    logits = model(tiny.token_ids())
    for name, state in states.items():
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(model.backbone.token_embedding(state, reverse=True)),
            keras.ops.convert_to_numpy(logits[name]),
            atol=1e-5,
        )


def test_right_padding_reaches_no_real_position():
    model = MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[TransformerHead()])
    ids = tiny.token_ids()
    padded = np.pad(ids, ((0, 0), (0, 5)))
    for name, value in _numpy(model(ids)).items():
        np.testing.assert_allclose(_numpy(model(padded))[name][:, :9], value, atol=1e-5)


def test_only_prefix_and_heads_train_unless_asked():
    frozen = MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[TransformerHead()])
    assert frozen.prefix_embedding.embeddings in frozen.trainable_variables
    assert not set(map(id, frozen.trainable_variables)) & set(map(id, frozen.backbone.variables))
    assert {v.dtype for v in frozen.trainable_variables} == {"float32"}
    unfrozen = MTPCausalLM(tiny.backbone(), freeze_backbone=False)
    assert len(unfrozen.trainable_variables) == len(unfrozen.backbone.variables)
    again = MTPCausalLM(frozen.backbone, freeze_backbone=False)  # one that was frozen before
    assert len(again.trainable_variables) == len(again.backbone.variables)


@pytest.mark.parametrize("tied", [True, False])
def test_far_heads_never_train_norm_or_unembedding(tied):
    model = MTPCausalLM(tiny.backbone(tied=tied), heads=[TransformerHead()], freeze_backbone=False)
    shared = [model.backbone.layer_norm.scale]
    if not tied:
        shared.append(model.backbone.token_embedding.reverse_embeddings)
    first = model.backbone.transformer_layers[0].trainable_variables[0]
    before, moved = tiny.arrays(shared), tiny.arrays([first])[0]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.SGD(1.0),
        loss={"head_1": loss, "head_2": loss},
        loss_weights={"head_1": 0.0, "head_2": 1.0},
    )
    ids = tiny.token_ids()
    model.train_on_batch(ids, {"head_1": ids, "head_2": ids})
    for value, old in zip(tiny.arrays(shared), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert not np.array_equal(tiny.arrays([first])[0], moved)


@pytest.mark.parametrize(
    ("start", "rows"), [("vocabulary", None), ("random", None), ([3, 1, 2], [3, 1, 2, 3])]
)
def test_prefix_start(start, rows):
    backbone = tiny.backbone()
    prefix = tiny.arrays(
        [MTPCausalLM(backbone, prefix_length=4, prefix_start=start).prefix_embedding.embeddings]
    )[0]
    again = tiny.arrays(
        [MTPCausalLM(backbone, prefix_length=4, prefix_start=start).prefix_embedding.embeddings]
    )[0]
    np.testing.assert_array_equal(prefix, again)
    table = tiny.arrays([backbone.token_embedding.embeddings])[0]
    if rows is not None:
        np.testing.assert_array_equal(prefix, table[rows])
    elif start == "vocabulary":
        assert all((table == row).all(1).any() for row in prefix)
        assert len(np.unique(prefix, axis=0)) == 4
    else:
        assert not any((table == row).all(1).any() for row in prefix)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix_length": -1}, "`prefix_length` must be at least 0. Received: prefix_length=-1"),
        ({"outputs": "probabilities"}, "`outputs` must be one of"),
        ({"heads": [keras.layers.Dense(3)]}, "`heads` must be a list of `MTPHead` layers"),
        ({"heads": [LinearHead()] * 2}, "`heads` must be different layers. Received the same one twice"),
        (
            {"prefix_length": 2, "prefix_start": "zeros"},
            '`start` must be "vocabulary", "random" or token ids',
        ),
        ({"prefix_length": 2, "prefix_start": []}, "at least one token id"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        MTPCausalLM(tiny.backbone(), **arguments)


def test_a_backbone_that_is_no_llama_is_refused():
    with pytest.raises(ValueError, match="must be a keras-hub Llama backbone"):
        MTPCausalLM(keras.Sequential([keras.layers.Dense(3)]))


def test_upstream_config_still_forgets_tied_embeddings():
    """Once keras-hub writes `tie_word_embeddings` itself, `MTPCausalLM.get_config` needs no repair."""
    assert "tie_word_embeddings" not in tiny.backbone(tied=True).get_config()


def test_upstream_block_config_still_raises():
    """Once a block's `get_config` works, `BLOCK_ARGUMENTS` in transformer_head.py can go."""
    with pytest.raises(AttributeError, match="rope_scaling_factor"):
        tiny.backbone().transformer_layers[0].get_config()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a trained model and what it says of `tiny.token_ids()`."""
    folder = tmp_path_factory.mktemp("saved")
    model = MTPCausalLM(
        tiny.backbone(), prefix_length=4, heads=[TransformerHead(start="random"), LinearHead()]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile("adam", loss=dict.fromkeys(model.head_names, loss))
    ids = tiny.token_ids()
    model.train_on_batch(ids, dict.fromkeys(model.head_names, ids))
    model.save(folder / "x.keras")
    np.savez(folder / "expected.npz", **_numpy(model(ids)))
    return folder


@pytest.mark.parametrize(
    "first", ["import keras; import keras_mtp", "import keras_mtp; keras_mtp.MTPCausalLM; import keras"]
)
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_keras_file_loads_in_a_fresh_process_on_every_backend(backend, first, saved):
    if (backend == keras.config.backend()) != first.startswith("import keras;"):
        pytest.skip("each order of imports is tried on its own backends, to save time")
    script = f"""
{first}
import numpy as np
expected = np.load("expected.npz")
outputs = keras.models.load_model("x.keras")(np.array({tiny.token_ids().tolist()}, "int32"))
for name, value in outputs.items():
    np.testing.assert_allclose(keras.ops.convert_to_numpy(value), expected[name], atol=2e-5)
print(keras.config.backend(), sorted(outputs))
"""
    root = os.path.dirname(os.path.dirname(keras_mtp.__file__))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=saved,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith(f"{backend} ['head_1', 'head_2', 'head_3']")
