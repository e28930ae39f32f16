"""Whole runs by other methods than the plain prefix: judged again, gone on from, asked."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import keras_mtp
from keras_mtp import UserError, pipeline, runs
from tests import tiny_run

SMALL = {"heads__count": 1, "evaluation__limit": 2, "tuning__lora_targets": "query+down"}
METHODS = {"prefix_kv+lora": {"training__learning_rate": 0.01}, "full": {"training__learning_rate": 0.001}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    tiny_run.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def run_of(folder):
    """Makes a run by a method, once: its folder and its report."""
    made = {}

    def run(method):
        if method not in made:
            recipe = tiny_run.recipe(folder, **(SMALL | METHODS[method]), tuning__method=method)
            made[method] = folder / method, pipeline.run(recipe, folder / method, progress=False)
        return made[method]

    return run


def _weights(run) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoint" / "trained.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_it_trained_and_comes_back_with_it(run_of, method):
    run, result = run_of(method)
    tuned = {name: array for name, array in _weights(run).items() if not name.startswith("head_2/")}
    assert {name.split("/")[0] for name in tuned} == (
        {"backbone"} if method == "full" else {"prefix", "lora"}
    )
    size = sum(array.size for array in tuned.values())
    written = json.loads((run / "report.json").read_text())
    assert (written["method"], written["tuned_weights"]) == (method, size)
    assert f"({size:,} weights), by the method {method}" in (run / "report.md").read_text()
    again = runs.evaluate(run)
    for name, head in result.held_out.items():
        assert head.loss_after != head.loss_before
        assert again["held_out"][name]["loss"] == pytest.approx(head.loss_after, abs=1e-5)
    rows = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    model = keras_mtp.load(run)
    assert model.generate([row["prompt"] for row in rows], max_new_tokens=4) == [row["after"] for row in rows]


def test_a_run_that_goes_on_and_learns_nothing_keeps_every_byte(folder, run_of, tmp_path):
    run, _ = run_of("prefix_kv+lora")
    changes = {"start__run": str(run), "tuning__method": "lora+prefix_kv", "training__learning_rate": 0.0}
    pipeline.run(tiny_run.recipe(folder, **(SMALL | changes)), tmp_path / "second", progress=False)
    first, second = _weights(run), _weights(tmp_path / "second")
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name
    assert "tuned weights and heads of the run" in (tmp_path / "second" / "report.md").read_text()


def test_heads_that_are_to_draft_leave_what_a_run_trained(folder, run_of, tmp_path):
    run, _ = run_of("full")
    changes = {
        "start__run": str(run),
        "tuning__method": "full",
        "heads__purpose": "speed",
        "heads__freeze": False,
    }
    pipeline.run(tiny_run.recipe(folder, **(SMALL | changes)), tmp_path / "speed", progress=False)
    first, second = _weights(run), _weights(tmp_path / "speed")
    for name, array in first.items():
        assert (array.tobytes() == second[name].tobytes()) == name.startswith("backbone/"), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"`tuning\.method` must be prefix_kv\+lora, as in the run.*Received: tuning\.method=prefix\."),
        ({"tuning__method": "prefix_kv"}, r"--set tuning\.method=prefix_kv\+lora"),
        ({"tuning__method": "prefix_kv+lora", "tuning__lora_rank": 3}, r"`tuning\.lora_rank` must be 8"),
        (
            {"tuning__method": "prefix_kv+lora", "tuning__lora_targets": "all"},
            r"`tuning\.lora_targets` must be query\+down",
        ),
        ({"tuning__method": "prefix_kv+lora", "prefix__length": 4}, r"`prefix\.length` must be 3"),
    ],
)
def test_another_method_than_the_runs_is_refused_by_name(folder, run_of, tmp_path, changes, message):
    recipe = tiny_run.recipe(folder, **(SMALL | {"start__run": str(run_of("prefix_kv+lora")[0])} | changes))
    with pytest.raises(UserError, match=message):
        pipeline.run(recipe, tmp_path / "second", progress=False)


def test_heads_that_are_to_draft_behind_fresh_lora_are_refused(folder, tmp_path):
    changes = {"tuning__method": "lora", "heads__purpose": "speed", "heads__freeze": False}
    with pytest.raises(UserError, match="what lora trains must come from a run"):
        pipeline.run(tiny_run.recipe(folder, **(SMALL | changes)), tmp_path / "speed", progress=False)
