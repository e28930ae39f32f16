"""The ONNX graph of a run: what ONNX Runtime says is what the model says, for batches and lengths of any size."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from keras_mtp import MTPCausalLM, TransformerHead, UserError, pipeline, runs
from keras_mtp.cli import cli
from keras_mtp.data.encoding import encode_prompt
from keras_mtp.export import onnx_graph
from tests import tiny, tiny_run

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="only torch traces ONNX graphs; its process exports"
)


@pytest.mark.parametrize(
    "options",
    [
        {"prefix_length": 3},
        {"prefix_length": 3, "prefix_kind": "key_values"},
        {"prefix_length": 2, "lora_rank": 2, "lora_targets": ["query", "output", "down"]},
    ],
)
def test_batch_and_length_are_free(tmp_path, options):
    model = MTPCausalLM(tiny.backbone(num_layers=2), heads=[TransformerHead()], **options)
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    onnx_graph._write(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (asked,), (said,) = session.get_inputs(), session.get_outputs()
    assert (asked.name, asked.type, asked.shape) == ("token_ids", "tensor(int32)", ["batch", "tokens"])
    assert (said.name, said.type, said.shape) == (
        "logits",
        "tensor(float)",
        ["batch", "tokens", tiny.VOCABULARY],
    )
    for shape in ((1, 1), (3, 40), (1, 17), (5, 2)):
        ids = tiny.token_ids(*shape)
        expected = tiny.forward(model)(ids)["head_1"]
        (found,) = session.run(None, {"token_ids": ids})
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run in bfloat16 by two methods at once, exported by the command: (run, export, what it said)."""
    folder = tmp_path_factory.mktemp("export")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(
        folder,
        tuning__method="prefix+lora",
        training__learning_rate=0.05,
        training__dtype="mixed_bfloat16",
        heads__count=1,
    )
    pipeline.run(recipe, folder / "run", progress=False)
    target = folder / "made" / "graph"
    result = CliRunner().invoke(
        cli,
        ["export", str(folder / "run"), str(target), "--format", "onnx", "--json"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.stderr
    assert "head_2 will not be in it" in result.stderr and "float32" in result.stderr
    return folder / "run", target, json.loads(result.stdout)


def test_what_an_export_holds_and_says(done):
    run, folder, said = done
    assert [path.name for path in folder.parent.iterdir()] == ["graph"]
    assert {path.name for path in folder.iterdir()} >= {
        *(
            "model.onnx",
            "README.md",
            "recipe.toml",
            "base_licence.txt",
            "tokenizer.json",
            "chat_template.jinja",
        ),
    }
    assert (folder / "recipe.toml").read_text() == (run / "recipe.toml").read_text()
    assert said["left_out"] == ["head_2"] and "ONNX Runtime" in said["read_by"]
    assert said["agreement"]["logits_differ_by"] < 1e-4 * said["agreement"]["logits_up_to"]


def test_the_pages_client_answers_as_the_model_does(done):
    run, folder, _ = done
    (client,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = client + "\nimport json; print(json.dumps([ids, said]))"
    answered = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    ids, said = json.loads(answered.stdout.splitlines()[-1])
    question = re.search(r'"content": "(.*?)"', client)[1]
    model = runs.load(run)
    assert ids == encode_prompt(question, model.tokenizer)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    # The run computed in bfloat16; what the graph says in float32 is close to it.
    (logits,) = session.run(None, {"token_ids": np.array([ids], "int32")})
    expected = keras.ops.convert_to_numpy(keras.ops.cast(model(np.array([ids]))["head_1"], "float32"))
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    assert int(logits[0, -1].argmax()) == said[0] and 0 < len(said) <= 64


def test_a_graph_that_says_something_else_is_found_and_nothing_is_left(done, tmp_path, monkeypatch):
    run, _, _ = done
    written = onnx_graph._write

    def train_then_write(model, path):
        model.prefix.embeddings.assign(model.prefix.embeddings + 1.0)
        written(model, path)

    monkeypatch.setattr(onnx_graph, "_write", train_then_write)
    with pytest.raises(UserError, match=r"the logits \(batch\) are up to .* apart"):
        runs.export(run, tmp_path / "a" / "b", "onnx")
    assert not list(tmp_path.iterdir())
