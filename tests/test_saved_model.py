"""The SavedModel of a run: what it says is what the model says, without Keras, for batches and lengths of any size."""

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from keras_mtp import (
    LinearHead,
    MTPCausalLM,
    SequentialHead,
    TransformerHead,
    UserError,
    backend,
    pipeline,
    runs,
)
from keras_mtp.cli import cli
from keras_mtp.data.encoding import encode_prompt
from keras_mtp.export import check, saved_model
from keras_mtp.export.in_graph import InGraph
from keras_mtp.generation.generator import Generator
from keras_mtp.models.backbone import base_info
from tests import tiny, tiny_run

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="only TensorFlow writes SavedModels; its process exports"
)
RAGGED = [[5, 6, 7], [8], list(range(40)) + list(range(30)), [9, 9], [3, 1, 4, 1, 5]]
NO_STOP = [tiny.VOCABULARY + 1]


def _ask(generate, prompts, *, longest: int, stop_ids=NO_STOP, width: int = 0):
    """(answers, accepted), by a `generate` of a graph or a signature; padding is -1, which no vocabulary has."""
    tf = backend.tensorflow()
    ids = np.full((len(prompts), max(width, *map(len, prompts))), -1, "int32")
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    said = generate(
        token_ids=tf.constant(ids),
        lengths=tf.constant([len(prompt) for prompt in prompts], "int32"),
        max_new_tokens=tf.constant(longest),
        stop_ids=tf.constant(stop_ids, "int32", shape=(len(stop_ids),)),
    )
    tokens, lengths = said["tokens"].numpy(), said["lengths"].numpy()
    behind = np.arange(tokens.shape[1]) >= lengths[:, None]
    assert (tokens[behind] == -1).all() and (tokens[~behind] >= 0).all()
    return [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)], said["accepted"].numpy()


def _graph(model):
    tf = backend.tensorflow()
    spec = {"token_ids": (None, None), "lengths": (None,), "max_new_tokens": (), "stop_ids": (None,)}
    signature = [tf.TensorSpec(shape, "int32", name) for name, shape in spec.items()]
    return tf.function(InGraph(model).generate, autograph=False, input_signature=signature)


@pytest.fixture(scope="module")
def model() -> MTPCausalLM:
    return MTPCausalLM(
        tiny.backbone(num_layers=2),
        prefix_length=3,
        heads=[TransformerHead(), SequentialHead()],
        draft_vocabulary=range(0, 50, 2),
    )


@pytest.fixture(scope="module")
def graph(model):
    return _graph(model)


@pytest.fixture(scope="module")
def generator(model) -> Generator:
    return Generator(model, stop_ids=NO_STOP, max_new_tokens=40, speculate=True)


@pytest.mark.parametrize("prompts", [RAGGED, RAGGED[:1], RAGGED[2:4]])
def test_tokens_are_those_of_the_model(graph, generator, prompts):
    expected = generator.answer(prompts)
    said, accepted = _ask(graph, prompts, longest=40, width=90)
    assert said == expected.tokens
    assert tuple(accepted) == expected.statistics.histogram
    stop_ids = [said[0][5], said[-1][11]]
    generator.stop_ids = np.array(stop_ids, "int32")
    stopped = generator(prompts)
    generator.stop_ids = np.array(NO_STOP, "int32")
    assert min(map(len, stopped)) < 40
    assert _ask(graph, prompts, longest=40, stop_ids=stop_ids)[0] == stopped


def test_few_new_tokens_no_stop_ids_and_empty_answers(graph):
    assert _ask(graph, RAGGED, longest=0)[0] == [[]] * len(RAGGED)
    whole, _ = _ask(graph, RAGGED, longest=5, stop_ids=[])
    assert [len(row) for row in whole] == [5] * len(RAGGED)
    assert _ask(graph, RAGGED, longest=1)[0] == [row[:1] for row in whole]
    assert _ask(graph, RAGGED[:1], longest=5, stop_ids=whole[0][:1])[0] == [[]]


@pytest.mark.parametrize(
    ("options", "heads"),
    [
        ({}, []),
        ({"prefix_kind": "key_values", "prefix_length": 2}, [LinearHead]),
        ({"lora_rank": 2}, [LinearHead]),
    ],
)
def test_tokens_of_other_models(options, heads):
    model = MTPCausalLM(tiny.backbone(num_layers=2), heads=[head() for head in heads], **options)
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.3, variable.shape))
    expected = model.generate(RAGGED[:3], max_new_tokens=12, stop_ids=NO_STOP, speculate=True)
    assert _ask(_graph(model), RAGGED[:3], longest=12)[0] == expected


def test_the_graph_needs_no_xla(graph):
    """TensorFlow Serving may not have it."""
    functions = graph.get_concrete_function().graph.as_graph_def().library.function
    assert "While" in {node.op.removeprefix("Stateless") for f in functions for node in f.node_def}
    assert not {node.op for f in functions for node in f.node_def if node.op.startswith("Xla")}
    assert not any(f.attr["_XlaMustCompile"].b for f in functions)


@pytest.mark.parametrize(
    ("lengths", "token", "message"), [([0], 5, "`lengths`"), ([4], 5, "`lengths`"), ([3], 50, "`token_ids`")]
)
def test_a_server_is_told_what_it_cannot_answer(graph, lengths, token, message):
    tf = backend.tensorflow()
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        graph(tf.constant([[1, token, 2]]), tf.constant(lengths), tf.constant(2), tf.constant([1]))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run by every way of training that changes other weights, exported by the command: (run, export, what it said)."""
    folder = tmp_path_factory.mktemp("export")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(folder, tuning__method="prefix_kv+lora", training__learning_rate=0.05)
    pipeline.run(recipe, folder / "run", progress=False)
    result = CliRunner().invoke(
        cli, ["export", str(folder / "run"), str(folder / "made" / "model"), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.stderr
    return folder / "run", folder / "made" / "model", json.loads(result.stdout)


def test_what_an_export_holds_and_says(done):
    run, folder, said = done
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.name for path in folder.iterdir()} >= {
        *("saved_model.pb", "variables", "README.md", "recipe.toml", "base_licence.txt", "tokenizer.json"),
        *("tokenizer_config.json", "generation_config.json", "chat_template.jinja"),
    }
    assert (folder / "recipe.toml").read_text() == (run / "recipe.toml").read_text()
    assert said["folder"] == str(folder) and said["signatures"] == [
        *("serving_default", "heads", "generate", "score", "prefill", "step")
    ]
    checked = said["checked"]
    assert checked["answers"] == 4 and checked["tokens"] > 0 and checked["logits_differ_by"] < 1e-4


def test_signatures_have_free_batch_and_length(done):
    run, folder, _ = done
    model = runs.load(run)
    signatures = backend.tensorflow().saved_model.load(str(folder)).signatures
    for shape in ((1, 2), (3, 70)):
        ids = np.random.default_rng(0).integers(0, model.backbone.vocabulary_size, shape).astype("int32")
        expected = tiny.forward(model)(ids)
        heads = signatures["heads"](token_ids=ids)
        assert heads.keys() == {"head_1", "head_2", "head_3"}
        for name, logits in heads.items():
            np.testing.assert_allclose(logits, expected[name], atol=1e-4)
        logits = signatures["serving_default"](token_ids=ids)["logits"]
        np.testing.assert_allclose(logits, expected["head_1"], atol=1e-4)
        expected = model.generate(ids, max_new_tokens=6, stop_ids=[2], speculate=True)
        assert _ask(signatures["generate"], ids.tolist(), longest=6, stop_ids=[2])[0] == expected


def test_the_pages_client_runs_and_reads_prompts_as_the_run_does(done):
    run, folder, _ = done
    (client,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = client + "\nimport json; print(json.dumps([ids, said['tokens'].numpy()[0].tolist()]))"
    answered = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    ids, tokens = json.loads(answered.stdout.splitlines()[-1])
    model = runs.load(run)
    question = re.search(r'"content": "(.*?)"', client)[1]
    assert ids == encode_prompt(question, model.tokenizer)
    assert tokens == model.generate(ids, max_new_tokens=64, speculate=True)


def test_weights_that_are_not_the_models_are_found_and_nothing_is_left(done, tmp_path, monkeypatch):
    run, _, _ = done
    model, written = runs.load(run), saved_model._write

    def write_then_train(model, folder):
        signatures = written(model, folder)
        model.prefix.key_values[0].assign(model.prefix.key_values[0] + 1.0)
        return signatures

    monkeypatch.setattr(saved_model, "_write", write_then_train)
    base = base_info(runs.load_recipe(run / "recipe.toml").model.name)
    with pytest.raises(UserError, match=r"the logits of `serving_default/logits` are up to .* apart"):
        saved_model.export(model, tmp_path / "a" / "b", base=base)
    assert not list(tmp_path.iterdir())


def test_tokens_that_part_are_refused_but_for_ties(done):
    model, prompt = runs.load(done[0]), [5, 6, 7]
    want = model.generate(prompt, max_new_tokens=4, stop_ids=[2])
    assert len(want) == 4
    for got in ([*want[:2], want[2] + 1, want[3]], want[:3]):  # another token; the end instead of one
        with pytest.raises(
            UserError, match=r"`generate` says .* where the model says .*, and that is no tie"
        ):
            check._is_tie(model, prompt, want, got, 1e-4)
        assert check._is_tie(model, prompt, want, got, 1e4)
    assert check._is_tie(model, prompt, want[:3], want, 1e4)  # here the model ends
    assert not check._is_tie(model, prompt, want, list(want), 0.0)


def test_runs_and_folders_that_are_refused(done, tmp_path):
    run, folder, _ = done

    def refused(*arguments):
        result = CliRunner().invoke(cli, ["export", *map(str, arguments)])
        assert result.exit_code == 2 and "Traceback" not in result.stderr
        return result.stderr

    assert "`DIR` must not exist yet" in refused(run, folder)
    assert "`RUN` must be the folder of a run" in refused(tmp_path, tmp_path / "x")
    (tmp_path / "recipe.toml").write_text((run / "recipe.toml").read_text())
    assert "No finished checkpoint" in refused(tmp_path, tmp_path / "x")
    assert "--format" in refused(run, tmp_path / "x", "--format", "gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
