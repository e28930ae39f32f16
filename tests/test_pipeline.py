"""A whole recipe on a tiny model: every file of the run folder, and what is made of it later."""

import csv
import json

import keras
import numpy as np
import pytest

from keras_mtp import checkpoint, pipeline, runs
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import base_info
from keras_mtp.models.from_recipe import model_from_recipe
from keras_mtp.recipe import load_recipe, updated
from keras_mtp.report import Report
from keras_mtp.report.page import summary
from tests import tiny
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_run import recipe as _recipe
from tests.tiny_run import write_inputs as _data


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple:
    """One run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("pipeline")
    _data(folder)
    recipe = _recipe(folder)
    return recipe, folder / "run", pipeline.run(recipe, folder / "run", progress=False)


def test_run_folder(done):
    _, run, _ = done
    assert {path.name for path in run.iterdir()} == {
        "base_licence.txt",
        "recipe.toml",
        "metrics.csv",
        "checkpoint",
        "held_out.csv",
        "answers.jsonl",
        "report.json",
        "report.md",
        "curves.png",
    }
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resolved_recipe_is_kept(done):
    recipe, run, _ = done
    assert load_recipe(run / "recipe.toml") == recipe


def test_report_json(done):
    _, run, result = done
    data = json.loads((run / "report.json").read_text())
    assert isinstance(result, Report) and data == result.to_json()
    assert set(data) == {
        *("recipe", "backend", "model", "data", "method", "tuned_weights", "seed", "steps"),
        *("held_out", "task", "tokens_per_second", "peak_bytes", "predicted_peak_bytes"),
    }
    assert data["backend"] == keras.config.backend() and data["model"] == "tiny"
    assert data["data"] == "45 problems in GSM8K's format (not GSM8K, which has 8,792)"
    assert set(data["held_out"]) == {"head_1", "head_2", "head_3", "n"} and data["held_out"]["n"] == 3
    assert data["task"]["metric"] == "exact_match" and data["task"]["n"] == 3
    assert data["tokens_per_second"] > 0 and data["peak_bytes"] >= 0


def test_report_names_the_licences(done):
    text = (done[1] / "report.md").read_text()
    assert "cc0-1.0" in text and "MIT" in text


def test_metrics_csv_has_a_row_per_step(done):
    with (done[1] / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], int(row["step"])) for row in rows] == [
        *(("warmup", step) for step in (1, 2)),
        *(("joint", step) for step in (0, 1, 2, 3)),
    ]
    assert [row["step"] for row in rows if row["held_out_head_1_loss"]] == ["0", "2", "3"]


def test_every_held_out_items_loss_is_kept(done):
    _, run, result = done
    with (run / "held_out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == result.held_out_n == 3 and len({row["id"] for row in rows}) == 3
    for name, head in result.held_out.items():
        tokens = sum(int(row[f"{name}_tokens"]) for row in rows)
        for column, loss in (("nats_before", head.loss_before), ("nats", head.loss_after)):
            assert sum(float(row[f"{name}_{column}"]) for row in rows) / tokens == pytest.approx(
                loss, abs=1e-5
            )


def test_answers_are_kept(done):
    rows = [json.loads(line) for line in (done[1] / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 3 and rows[0]["prompt"] == "40 + 1?"
    assert {"before", "score_before", "after", "score"} <= set(rows[0])


def test_checkpoint_holds_what_was_trained_and_no_more(done):
    recipe, run, _ = done
    model, _ = model_from_recipe(recipe)
    start = tiny.arrays([model.prefix_embedding.embeddings])[0]
    manifest = checkpoint.restore(run / "checkpoint", model, base=base_info(recipe.model.name))
    assert manifest.steps == 3 and manifest.base == "tiny"
    assert not np.array_equal(tiny.arrays([model.prefix_embedding.embeddings])[0], start)
    names = set(checkpoint.trained_variables(model))
    assert "prefix/embeddings" in names and "head_2/decoder/self_attention/query/kernel" in names
    assert not any(name.startswith("backbone") for name in names)


def test_generated_problems_are_never_called_gsm8k(tmp_path):
    _data(tmp_path)
    recipe = _recipe(tmp_path, data__source="builtin", heads__count=0, evaluation__limit=1)
    result = pipeline.run(recipe, tmp_path / "run", progress=False)
    assert result.data == "generated word problems (not GSM8K)" and not result.is_benchmark
    assert "(not GSM8K)" in (tmp_path / "run" / "report.md").read_text()


CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"


def test_conversations_of_the_users_own(tmp_path):
    _data(tmp_path)
    turns = [("user", "apples and"), ("assistant", "box"), ("user", "how many"), ("assistant", "each")]
    rows = [
        {"messages": [{"role": role, "content": f"{content} {n}"} for role, content in turns]}
        for n in range(40)
    ]
    rows.append({"prompt": "box " * 200, "response": "x"})
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.jinja").write_text(CHAT)
    recipe = _recipe(
        tmp_path,
        task="jsonl",
        data__source=str(tmp_path / "my.jsonl"),
        data__template=str(tmp_path / "mine.jinja"),
        data__max_tokens=90,
        data__too_long="truncate",
        evaluation__limit=2,
    )
    result = pipeline.run(recipe, tmp_path / "run", progress=False)
    assert (result.data, result.task.metric, result.is_benchmark) == (
        "my.jsonl",
        "normalised_exact_match",
        False,
    )
    assert result.truncated_examples + result.skipped_examples > 0
    text = (tmp_path / "run" / "report.md").read_text()
    assert "The data are my.jsonl: the score" in text and "Test split: 4 of the file's 41 examples" in text
    (answer, *_) = map(json.loads, (tmp_path / "run" / "answers.jsonl").read_text().splitlines())
    assert [turn["role"] for turn in answer["history"]] == ["user", "assistant"]
    (tmp_path / "mine.jinja").unlink()  # the run has kept the text
    assert load_recipe(tmp_path / "run" / "recipe.toml").data.template == CHAT
    again = runs.evaluate(tmp_path / "run")
    assert again["held_out"]["head_1"]["loss"] == pytest.approx(
        result.held_out["head_1"].loss_after, abs=1e-5
    )


def test_a_used_folder_is_refused(done):
    recipe, run, _ = done
    with pytest.raises(UserError, match="must be a new one"):
        pipeline.run(recipe, run, progress=False)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_judged(tmp_path):
    _data(tmp_path)
    with pytest.raises(UserError, match=r"for training\.batch_size=64"):
        pipeline.run(_recipe(tmp_path, training__batch_size=64), tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_an_interrupted_run_keeps_its_rows(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    _data(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(_recipe(tmp_path), tmp_path / "run", progress=False, callbacks=[Interrupt()])
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2


def test_examples_that_are_all_too_long(tmp_path):
    _data(tmp_path)
    with pytest.raises(UserError, match=r"must fit `data\.max_tokens`. Received: 0 that do"):
        pipeline.run(_recipe(tmp_path, data__max_tokens=16), tmp_path / "run", progress=False)


def _damage(run, name, change) -> None:
    path = run / "checkpoint" / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("trained.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "missing or damaged"),
        ("trained.safetensors", lambda b: b[: len(b) // 2], "missing or damaged"),
        ("optimizer.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]), "missing or damaged"),
        ("checkpoint.json", lambda b: b[:40], "damaged or not written by keras_mtp"),
        ("checkpoint.json", lambda b: b.replace(b'"format"', b'"farmat"'), "damaged or not written"),
        ("checkpoint.json", lambda b: b.replace(b'"format": 2', b'"format": 9'), "has format 9"),
        (
            "checkpoint.json",
            lambda b: b.replace(b'"steps": 3', b'"steps": 7'),
            r"its SHA-256 is not the one in it",
        ),
    ],
)
def test_a_damaged_checkpoint_is_refused(done, tmp_path, name, change, message):
    import shutil

    shutil.copytree(done[1], tmp_path / "run")
    _damage(tmp_path / "run", name, change)
    with pytest.raises(UserError, match=message):
        checkpoint.read_manifest(tmp_path / "run" / "checkpoint")


def test_another_base_model_is_refused(done, tmp_path):
    recipe, run, _ = done
    write_tiny_gguf(tmp_path / "tiny.gguf", seed=5)
    other = updated(recipe, {"model.name": str(tmp_path / "tiny.gguf")})
    model, _ = model_from_recipe(other)
    with pytest.raises(UserError, match="belongs to another base model"):
        checkpoint.restore(run / "checkpoint", model, base=base_info(other.model.name))


def test_a_checkpoint_of_another_recipe_is_refused(done):
    recipe, run, _ = done
    model, _ = model_from_recipe(updated(recipe, {"heads.count": 1}))
    with pytest.raises(UserError, match="does not fit the run's recipe"):
        checkpoint.restore(run / "checkpoint", model, base=base_info(recipe.model.name))


def test_bfloat16_storage_linear_heads_accumulation_and_the_progress_bar_go_together(tmp_path):
    _data(tmp_path)
    recipe = _recipe(
        tmp_path,
        model__dtype="bfloat16",
        training__dtype="mixed_bfloat16",
        heads__kind="linear",
        heads__freeze=False,
        training__accumulation=2,
        evaluation__limit=1,
    )
    result = pipeline.run(recipe, tmp_path / "run")
    assert result.steps == 3 and result.held_out["head_3"].loss_after > 0


def test_a_sample_of_coqa_is_judged_by_source_and_by_two_measures(tmp_path):
    _data(tmp_path)
    for name, numbers in (("train", range(40)), ("dev", range(40, 44))):
        stories = [
            {
                "id": f"{n}",
                "source": ("cnn", "mctest")[n % 2],
                "story": f"apples {n}",
                "questions": [{"input_text": f"how {i}", "turn_id": i} for i in (1, 2)],
                "answers": [{"input_text": f"box {i}", "turn_id": i} for i in (1, 2)],
            }
            for n in numbers
        ]
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": stories}))
    recipe = _recipe(tmp_path, task="coqa", heads__count=0, evaluation__limit=4)
    result = pipeline.run(recipe, tmp_path / "run", progress=False).to_json()
    assert result["data"] == "a sample of CoQA (44 of 7,699 conversations)"
    assert result["task"]["metric"] == "token_f1" and list(result["task"]["further"]) == ["exact_match"]
    sources = result["held_out_by_source"]
    assert set(sources) <= {"cnn", "mctest"} and sum(source["n"] for source in sources.values()) == 4
    judged = runs.evaluate(tmp_path / "run")
    assert (
        judged["task"]["further"]["exact_match"]["value"] == result["task"]["further"]["exact_match"]["value"]
    )
    for name, source in sources.items():
        again = judged["held_out_by_source"][name]
        assert again["n"] == source["n"]
        assert again["head_1"]["loss"] == pytest.approx(source["head_1"]["loss_after"], rel=1e-5)
    answers = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert {"exact_match", "exact_match_before", "source"} <= set(answers[0]) and len(answers) == 4


def test_measured_gradients_are_in_the_record_and_the_report(tmp_path):
    _data(tmp_path)
    run = tmp_path / "run"
    recipe = _recipe(tmp_path, training__probe_every=2, heads__count=1, evaluation__test_limit=0)
    result = pipeline.run(recipe, run, progress=False)
    with (run / "metrics.csv").open() as file:
        measured = [row for row in csv.DictReader(file) if row["head_2_gradient_cosine"]]
    assert [(row["stage"], row["step"]) for row in measured] == [("joint", "1"), ("joint", "2")]
    norms = [float(row["head_2_gradient_norm"]) for row in measured]
    gradients = json.loads((run / "report.json").read_text())["gradients"]
    assert gradients["n"] == 2 and set(gradients) == {"head_1", "head_2", "n"}
    assert (gradients["head_2"]["norm_first"], gradients["head_2"]["norm_last"]) == tuple(norms)
    assert (
        gradients["head_2"]["norm"] == pytest.approx(np.mean(norms)) and "cosine" not in gradients["head_1"]
    )
    text = (run / "report.md").read_text()
    assert f"| head_1 | {gradients['head_1']['norm_first']:.3g} |" in text
    assert "](gradients.png)" in text and (run / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert f"{gradients['head_2']['cosine']:+.3f}" in summary(result)
