"""Whole runs on a quantised trunk: cut off and gone on with, judged again, asked, exported."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_mtp
from keras_mtp import UserError, pipeline, runs
from keras_mtp.layers.lora import projection
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import load_recipe
from tests import tiny, tiny_run
from tests.test_snapshots import CutOff, _require_same

SMALL = {"heads__count": 1, "evaluation__limit": 2, "evaluation__test_limit": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    tiny_run.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A run in int4 with everything that saves memory."""
    recipe = tiny_run.recipe(
        folder,
        **SMALL,
        model__quantize="int4",
        training__accumulation=2,
        training__remat=True,
        training__snapshot_every=2,
    )
    pipeline.run(recipe, folder / "run", progress=False)
    return folder / "run"


def test_a_run_is_judged_again_and_answers_as_it_did(run):
    report = json.loads((run / "report.json").read_text())
    again = runs.evaluate(run)["held_out"]["head_1"]["loss"]
    assert again == pytest.approx(report["held_out"]["head_1"]["loss_after"], abs=1e-5)
    model = keras_mtp.load(run)
    assert projection(model.backbone.transformer_layers[0], "down").quantization_mode == "int4"
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    assert model.generate([row["prompt"] for row in rows], max_new_tokens=4) == [row["after"] for row in rows]


def test_a_run_that_was_cut_off_goes_on_to_the_same_result(run, tmp_path):
    recipe = load_recipe(run / "recipe.toml")
    with pytest.raises(ConnectionError):
        pipeline.run(recipe, tmp_path / "run", progress=False, callbacks=[CutOff(4)])
    pipeline.run(recipe, tmp_path / "run", progress=False)
    _require_same(tmp_path / "run", run)


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="the formats' own tests are where they are written"
)
def test_an_export_holds_the_rounded_values(folder, tmp_path):
    """It is compared with the model, rounded as it was trained, before it says that it is there."""
    changes = {"model__quantize": "int8", "tuning__method": "lora", "heads__count": 0}
    pipeline.run(tiny_run.recipe(folder, **(SMALL | changes)), tmp_path / "run", progress=False)
    runs.export(tmp_path / "run", tmp_path / "llama", format="transformers")
    exported, _ = keras_mtp.load_backbone(str(tmp_path / "llama"))
    model = keras_mtp.load(tmp_path / "run")
    ids = tiny.token_ids()
    ours = MTPCausalLM(exported)(ids)["head_1"]
    ours, theirs = (ops.convert_to_numpy(x) for x in (ours, model(ids)["head_1"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="`--format peft` is an adapter beside the base's own weights"):
        runs.export(tmp_path / "run", tmp_path / "peft", format="peft")


@pytest.mark.any_backend
def test_all_weights_are_not_trained_in_int8(folder):
    with pytest.raises(UserError, match=r"`model.quantize` must be none with `tuning.method=full`"):
        tiny_run.recipe(folder, model__quantize="int8", tuning__method="full")
