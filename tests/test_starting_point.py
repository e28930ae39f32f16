"""`--from RUN`, on tiny runs."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_mtp import UserError, pipeline, runs
from keras_mtp.recipe import load_recipe, updated
from tests import tiny_run
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the inputs, and a finished run with one head in `first`."""
    folder = tmp_path_factory.mktemp("starting_point")
    tiny_run.write_inputs(folder)
    pipeline.run(tiny_run.recipe(folder, heads__count=1), folder / "first", progress=False)
    return folder


@pytest.fixture(scope="module")
def second(folder) -> tuple:
    """A run that starts from `first` and learns nothing: its folder and its report."""
    recipe = _from_first(folder, training__learning_rate=0.0, evaluation__limit=3)
    return folder / "second", pipeline.run(recipe, folder / "second", progress=False)


@pytest.fixture(scope="module")
def prefix_alone(folder):
    """A run without heads."""
    recipe = tiny_run.recipe(folder, heads__count=0, evaluation__limit=2)
    pipeline.run(recipe, folder / "prefix", progress=False)
    return folder / "prefix"


def _from_first(folder, **changes):
    settings = {"start__run": str(folder / "first"), "heads__count": 1, "evaluation__limit": 2}
    return tiny_run.recipe(folder, **(settings | changes))


def _weights(run) -> dict:
    return load_file(run / "checkpoint" / "trained.safetensors")


def _rows(run) -> list[dict]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_that_learns_nothing_keeps_every_byte_and_warms_up_no_head(folder, second):
    run, result = second
    before, after = _weights(folder / "first"), _weights(run)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].tobytes() == after[name].tobytes()
    assert {row["stage"] for row in _rows(run)} == {"joint"}
    last = json.loads((folder / "first" / "report.json").read_text())["held_out"]["head_1"]["loss_after"]
    assert result.held_out["head_1"].loss_before == pytest.approx(last, abs=1e-6)


def test_added_heads_start_fresh_and_are_warmed_up_alone(folder, tmp_path):
    recipe = _from_first(folder, heads__count=2, heads__start="last_block")
    pipeline.run(recipe, tmp_path / "second", progress=False)
    first, second = _weights(folder / "first"), _weights(tmp_path / "second")
    added = second.keys() - first.keys()
    assert added and {name.split("/")[0] for name in added} == {"head_3"}
    for name in first:
        kept = np.array_equal(first[name], second[name])
        assert kept == name.startswith("head_2/"), name  # frozen; the prefix was trained on
    warmup = [row for row in _rows(tmp_path / "second") if row["stage"] == "warmup"]
    assert len(warmup) == 2 and all(row["head_3_loss"] for row in warmup)


def test_recipe_and_report_name_what_a_run_started_from(folder, second):
    run, result = second
    digest = hashlib.sha256((folder / "first/checkpoint/trained.safetensors").read_bytes()).hexdigest()
    assert load_recipe(run / "recipe.toml").start.checkpoint == digest
    written = json.loads((run / "report.json").read_text())
    assert (
        written["started_from"] == {"run": "first", "checkpoint": digest} and result.started_from == "first"
    )
    text = (run / "report.md").read_text()
    assert (
        f"prefix and heads of the run first, trained weights {digest[:12]}" in text
        and str(folder / "first") not in text
    )


def test_repeating_a_recipe_starts_from_the_same_weights_or_not_at_all(folder, tmp_path):
    recipe = updated(_from_first(folder), {"start.checkpoint": "0" * 64})
    with pytest.raises(UserError, match=r"`start\.checkpoint` must be the hash of the weights"):
        pipeline.run(recipe, tmp_path / "second", progress=False)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix__length": 4}, r"`prefix\.length` must be 3, as in the run .*Received: prefix\.length=4"),
        ({"prefix__length": 2}, r"`prefix\.length` must be 3"),
        ({"heads__count": 0}, r"`heads\.count` must be at least 1"),
        ({"heads__kind": "linear"}, r"`heads\.kind` must be transformer.*--set heads\.kind=transformer"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        pipeline.run(_from_first(folder, **changes), tmp_path / "second", progress=False)
    assert not (tmp_path / "second").exists()


def test_another_base_is_refused(folder, tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf", seed=5)
    recipe = _from_first(folder, model__name=str(tmp_path / "tiny.gguf"))
    with pytest.raises(UserError, match="belongs to another base model: tiny with SHA-256"):
        pipeline.run(recipe, tmp_path / "second", progress=False)


def test_no_run_and_an_unfinished_one_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="`--from` must be the folder of a run"):
        pipeline.run(_from_first(folder, start__run=str(tmp_path)), tmp_path / "second", progress=False)
    shutil.copytree(folder / "first", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoint")
    with pytest.raises(UserError, match="No finished checkpoint"):
        pipeline.run(_from_first(folder, start__run=str(tmp_path / "cut")), tmp_path / "x", progress=False)


SPEED = {
    "heads__purpose": "speed",
    "heads__freeze": False,
    "heads__count": 2,
    "heads__kind": "sequential",
    "heads__draft_vocabulary": 20,
}


@pytest.mark.parametrize("changes", [{}, {"data__answers": "model", "data__max_tokens": 110}])
def test_heads_for_speed_are_added_to_a_prefix_that_a_run_trained(changes, folder, prefix_alone, tmp_path):
    recipe = _from_first(folder, start__run=str(prefix_alone), **SPEED, **changes)
    result = pipeline.run(recipe, tmp_path / "speed", progress=False)
    first, second = _weights(prefix_alone), _weights(tmp_path / "speed")
    assert list(first) == ["prefix/embeddings"]
    assert first["prefix/embeddings"].tobytes() == second["prefix/embeddings"].tobytes()
    assert {name.split("/")[0] for name in second} == {"prefix", "head_2", "head_3", "draft_vocabulary"}
    assert 2 < len(second["draft_vocabulary"]) <= recipe.heads.draft_vocabulary
    assert runs.load(tmp_path / "speed").draft_vocabulary == second["draft_vocabulary"].tolist()
    assert "head_3/projection/kernel" in second
    assert {row["stage"] for row in _rows(tmp_path / "speed")} == {"heads"}
    assert result.held_out["head_1"].loss_before == result.held_out["head_1"].loss_after
    assert result.tokens_per_second > 0 and result.heads_alone
    said_so = "the model itself gave" in (tmp_path / "speed" / "report.md").read_text()
    assert said_so == ("data__answers" in changes)
    again = runs.evaluate(tmp_path / "speed")["held_out"]
    assert again["head_3"]["loss"] == pytest.approx(result.held_out["head_3"].loss_after, abs=1e-5)


def test_heads_for_speed_of_another_kind_take_the_place_of_the_runs(folder, tmp_path):
    settings = SPEED | {"heads__count": 1, "training__learning_rate": 0.0, "heads__learning_rate": 0.0}
    pipeline.run(_from_first(folder, **settings), tmp_path / "speed", progress=False)
    assert "**Start:** prefix of the run first" in (tmp_path / "speed/report.md").read_text()
    first, second = _weights(folder / "first"), _weights(tmp_path / "speed")
    assert first["prefix/embeddings"].tobytes() == second["prefix/embeddings"].tobytes()
    assert "head_2/projection/kernel" in second and "head_2/projection/kernel" not in first
    norm = "head_2/decoder/self_attention_layernorm/scale"  # the run trained its own
    assert not np.array_equal(first[norm], second[norm])


def test_heads_for_speed_are_not_put_behind_a_prefix_that_nothing_trains(folder, tmp_path):
    with pytest.raises(UserError, match=r"must come from a run.*prefix\.length=3 and no run.*--from"):
        pipeline.run(_from_first(folder, start__run="", **SPEED), tmp_path / "speed", progress=False)
    assert not (tmp_path / "speed").exists()
