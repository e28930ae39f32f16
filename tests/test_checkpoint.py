"""A checkpoint moves between backends; `test_pipeline.py` holds the errors."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_mtp
from keras_mtp import checkpoint
from keras_mtp.checkpoint import contents
from keras_mtp.errors import UserError
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

BASE = BaseInfo(name="tiny", source="tiny", sha256="0" * 64, licence="cc0-1.0", architecture={})

OTHER_PROCESS = """
import sys
import numpy as np
from tests import test_checkpoint
folder = sys.argv[1]
model = test_checkpoint.make(seed=7)
from keras_mtp import checkpoint
from pathlib import Path
checkpoint.restore(Path(folder) / "checkpoint", model, base=test_checkpoint.BASE)
expected = np.load(folder + "/expected.npz")
for name, value in model(test_checkpoint.tiny.token_ids()).items():
    np.testing.assert_allclose(test_checkpoint.keras.ops.convert_to_numpy(value), expected[name], atol=2e-5)
print("equal on", test_checkpoint.keras.config.backend())
"""


def make(seed: int) -> MTPCausalLM:
    heads = [TransformerHead(start="random", seed=seed), LinearHead()]
    return MTPCausalLM(tiny.backbone(), prefix_length=3, prefix_start="random", heads=heads, seed=seed)


def _saved(folder) -> MTPCausalLM:
    model = make(seed=0)
    rng = np.random.default_rng(3)
    for variable in checkpoint.trained_variables(model).values():
        variable.assign(rng.normal(0, 0.1, variable.shape))
    checkpoint.save(folder / "checkpoint", model, [], base=BASE, steps=1)
    return model


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_written_here_read_on_every_backend(backend, tmp_path):
    if backend == keras.config.backend():
        pytest.skip("same backend: test_saved_again_over_an_old_one")
    model = _saved(tmp_path)
    logits = model(tiny.token_ids())
    np.savez(tmp_path / "expected.npz", **{k: keras.ops.convert_to_numpy(v) for k, v in logits.items()})
    root = os.path.dirname(os.path.dirname(keras_mtp.__file__))
    done = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert f"equal on {backend}" in done.stdout, done.stderr[-2000:]


def test_saved_again_over_an_old_one(tmp_path):
    model = _saved(tmp_path)
    model.prefix_embedding.embeddings.assign(2 * model.prefix_embedding.embeddings)
    checkpoint.save(tmp_path / "checkpoint", model, [], base=BASE, steps=2)
    other = make(seed=9)
    assert checkpoint.restore(tmp_path / "checkpoint", other, base=BASE).steps == 2
    for name, variable in checkpoint.trained_variables(other).items():
        np.testing.assert_array_equal(
            tiny.arrays([variable])[0], tiny.arrays([checkpoint.trained_variables(model)[name]])[0]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_the_draft_vocabulary_comes_back_with_the_heads(tmp_path):
    model, other = make(seed=0), make(seed=9)
    model.draft_vocabulary = [3, 5, 8]
    checkpoint.save(tmp_path / "checkpoint", model, [], base=BASE, steps=1)
    checkpoint.restore(tmp_path / "checkpoint", other, base=BASE, heads=1)
    assert other.draft_vocabulary == []  # heads to be trained on are given one of their own
    checkpoint.restore(tmp_path / "checkpoint", other, base=BASE)
    assert other.draft_vocabulary == [3, 5, 8]
    checkpoint.save(tmp_path / "none", make(seed=0), [], base=BASE, steps=1)
    checkpoint.restore(tmp_path / "none", other, base=BASE)
    assert other.draft_vocabulary == []


@pytest.mark.parametrize("ids", [[3, 50], [-1], [[1]], [1.5]])
def test_a_draft_vocabulary_that_holds_no_token_ids_is_refused(ids, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "_draft_vocabulary", lambda model: {contents.DRAFTS: np.array(ids)})
    checkpoint.save(tmp_path / "checkpoint", make(seed=0), [], base=BASE, steps=1)
    with pytest.raises(UserError, match="tensor draft_vocabulary holds no token ids"):
        checkpoint.restore(tmp_path / "checkpoint", make(seed=0), base=BASE)


def test_heads_that_read_another_state_are_refused(tmp_path):
    """Their tensors have the same names and shapes, so nothing else would tell."""

    def model(**attach):
        return MTPCausalLM(tiny.backbone(), heads=[TransformerHead(), LinearHead(**attach)])

    folder = tmp_path / "checkpoint"
    checkpoint.save(folder, model(attach="before_last_block"), [], base=BASE, steps=1)
    with pytest.raises(
        UserError, match=r"`heads\.attach` must be before_last_block, where head_3 .*Received: last_block"
    ):
        checkpoint.restore(folder, model(), base=BASE)
    checkpoint.restore(folder, model(), base=BASE, heads=1)  # that head stays fresh
    checkpoint.restore(folder, model(attach="before_last_block"), base=BASE)
