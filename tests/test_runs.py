"""What a finished run is good for, on one tiny run."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import keras_mtp
from keras_mtp import UserError, pipeline, runs
from keras_mtp.cli import cli
from keras_mtp.data.encoding import encode_example
from keras_mtp.data.splits import split_held_out
from keras_mtp.evaluation import TaskEvaluation
from keras_mtp.tasks import load_task
from tests import tiny, tiny_run


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple:
    """One run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(folder)
    return recipe, folder / "run", pipeline.run(recipe, folder / "run", progress=False)


@pytest.fixture(scope="module")
def model(done) -> keras_mtp.MTPCausalLM:
    """What came out of that run; what it has compiled to answer one test, it answers the next with."""
    return keras_mtp.load(str(done[1]))


@pytest.fixture(scope="module")
def again(done) -> dict:
    """That run, judged again."""
    return runs.evaluate(done[1])


def test_evaluate_gives_the_reports_numbers(done, again):
    *_, result = done
    for name, head in result.held_out.items():
        assert again["held_out"][name]["loss"] == pytest.approx(head.loss_after, abs=1e-5)
    assert again["task"] == {"metric": "exact_match", "value": result.task.value, "n": 3}


def test_evaluate_with_a_limit_and_other_data(done):
    again = runs.evaluate(done[1], data="builtin", limit=1)
    assert again["held_out"]["n"] == again["task"]["n"] == 1
    assert again["data"] == "generated word problems (not GSM8K)"


def test_an_unfinished_run_is_refused(done, tmp_path):
    (tmp_path / "recipe.toml").write_text((done[1] / "recipe.toml").read_text())
    with pytest.raises(UserError, match="No finished checkpoint"):
        runs.generate(tmp_path, "hello")


def test_load_gives_the_model_that_was_judged(done, model):
    _, run, _ = done
    assert model.head_names == ("head_1", "head_2", "head_3")
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    said = model.generate([row["prompt"] for row in rows], max_new_tokens=4)
    assert said == [row["after"] for row in rows]


def test_generate_puts_the_template_around_the_prompt_unless_raw(done, model):
    _, run, _ = done
    said = runs.generate(run, "1 + 1?", max_new_tokens=6)
    assert isinstance(said, str) and said == model.generate("1 + 1?", max_new_tokens=6)
    raw = runs.generate(run, "1 + 1?", max_new_tokens=6, raw=True)
    assert raw == model.tokenizer.decode(
        model.generate(model.tokenizer.encode("1 + 1?"), max_new_tokens=6, stop_ids=model.tokenizer.eos_ids)
    )


def test_a_base_model_is_judged_as_it_came(done, again):
    recipe, *_ = done
    scores = runs.evaluate_base(recipe)
    assert scores.keys() == again.keys() and set(scores["held_out"]) == {"head_1", "n"}
    backbone, tokenizer = keras_mtp.load_backbone(recipe.model.name)
    task = load_task("gsm8k", recipe.data.source)
    examples = [encode_example(example, tokenizer) for example in task.examples("train")]
    _, held_out = split_held_out(examples, 3)

    def whole_logits(ids):
        ids = keras.ops.convert_to_tensor(ids)
        hidden = backbone({"token_ids": ids, "padding_mask": keras.ops.ones_like(ids)})
        return backbone.token_embedding(hidden, reverse=True)

    forward = tiny.forward(whole_logits, backbone.variables)
    nats = tokens = 0.0
    for item in held_out:
        logits = forward(item.ids[None])[0].astype("float64")
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        answer = np.flatnonzero(item.is_answer)
        nats -= logits[answer - 1, item.ids[answer]].sum()
        tokens += len(answer)
    assert scores["held_out"]["head_1"]["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_answers_do_not_depend_on_the_batch_size(done, model):
    recipe, *_ = done
    task = load_task(recipe.task, recipe.data.source)
    said = [
        TaskEvaluation(
            model, task, model.tokenizer, task.examples("test"), batch_size=size, max_new_tokens=12
        )().completions
        for size in (1, 2, 5)
    ]
    assert said[0] == said[1] == said[2] and len(set(said[0])) > 1


def test_the_command_streams_an_answer_and_tells_what_it_cost(done, model):
    run, ask = str(done[1]), ["1 + 1?", "--backend", keras.config.backend(), "--max-new-tokens", "6"]
    plain = CliRunner().invoke(cli, ["generate", run, *ask, "--stats"])
    assert plain.exit_code == 0, plain.stderr
    assert plain.stdout == model.generate("1 + 1?", max_new_tokens=6) + "\n"
    assert "tokens a pass" in plain.stderr
    ask += ["--speculate", "--stats", "--json", "--temperature", "0.8", "--top-k", "9", "--seed", "3"]
    drawn = json.loads(CliRunner().invoke(cli, ["generate", run, *ask]).stdout)
    sampling = keras_mtp.Sampling(temperature=0.8, top_k=9, seed=3)
    said = runs.generate(Path(run), "1 + 1?", max_new_tokens=6, sampling=sampling, speculate=True)
    assert drawn["completion"] == said
    assert len(drawn["statistics"]["histogram"]) == 3
