"""Studies: the statistics against simulated truth, the files, and a small study from start to finish."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from keras_mtp import study
from keras_mtp.errors import UserError
from keras_mtp.recipe import load_recipe, to_toml, updated
from keras_mtp.study import budget, page, results, runs
from keras_mtp.study.arms import available_arms, load_arms
from keras_mtp.study.statistics import holm, interval, mcnemar
from tests.tiny_run import recipe as tiny_recipe
from tests.tiny_run import write_inputs

pytestmark = pytest.mark.any_backend  # the runs are processes of their own, on torch

ARMS = """
pairs = [["linear", "none"]]
[grid]
training.learning_rate = [1e-3, 5e-2]
[arms.none]
heads.count = 0
[arms.linear]
heads.kind = "linear"
seeds = 2
"""


def _simulated(seeds: int, items: int, rng, effect: float) -> np.ndarray:
    """Differences with a part of each seed's own, of each item's own, and of each pair's own."""
    parts = rng.normal(0, 0.3, (seeds, 1)), rng.normal(0, 1, (1, items)), rng.normal(0, 0.5, (seeds, items))
    return effect + sum(parts)


@pytest.mark.parametrize("seeds", [3, 5])
def test_nineteen_of_twenty_intervals_hold_the_truth(seeds):
    rng = np.random.default_rng(1)
    tokens = np.full(60, 2.0)
    found = [interval(_simulated(seeds, 60, rng, effect=0.4), tokens) for _ in range(100)]
    holds = np.mean([low <= 0.2 <= high for _, low, high, _ in found])
    assert 0.92 <= holds <= 1.0
    false_alarms = np.mean(
        [interval(_simulated(seeds, 60, rng, effect=0.0), tokens)[3] < 0.05 for _ in range(100)]
    )
    assert false_alarms <= 0.08


def test_an_interval_is_not_endlessly_wide():
    rng = np.random.default_rng(2)
    nats = _simulated(5, 400, rng, effect=0.0)
    value, low, high, _ = interval(nats, np.ones(400))
    error = np.sqrt(0.3**2 / 5 + 1 / 400 + 0.25 / 2000)  # from how the differences were made
    assert abs(value) < 4 * error and 1.5 * error < (high - low) / 2 < 6 * error


def test_arms_that_are_equal_do_not_differ_and_a_difference_is_per_token():
    assert interval(np.zeros((3, 5)), np.ones(5)) == (0.0, 0.0, 0.0, 1.0)
    # One seed says nothing about others: no p, which would also count among the comparisons that Holm adjusts for.
    assert np.isnan(interval(np.ones((1, 5)), np.ones(5))[3])
    tokens = np.array([1.0, 3.0, 4.0])
    assert interval(np.tile([-1.0, 2.0, 3.0], (2, 1)), tokens)[0] == pytest.approx(4 / 8)


def test_mcnemar_counts_the_items_that_one_side_alone_got_right():
    ours = np.array([[1, 1, 1, 1, 1, 1, 0, 0]])
    others = np.array([[0, 0, 0, 0, 0, 1, 0, 1]])
    right, wrong, p = mcnemar(ours, others)
    assert (right, wrong) == (5, 1)
    assert p == pytest.approx(2 * (1 + 6) / 2**6)  # both tails of six fair coins
    assert mcnemar(others, others) == (0, 0, 1.0)
    # The same items with three seeds more are no further witnesses.
    assert mcnemar(np.repeat(ours, 4, 0), np.repeat(others, 4, 0)) == (right, wrong, p)


def test_mcnemar_raises_no_alarm_for_items_that_every_seed_answers():
    rng, alarms = np.random.default_rng(5), []
    for _ in range(200):
        easy = rng.normal(
            0, 1, (2, 1, 64)
        )  # each arm finds some items easier, of its own accord, with every seed
        scores = (rng.normal(0, 0.5, (2, 5, 64)) < easy).astype(float)
        alarms.append(mcnemar(*scores)[2] < 0.05)
    assert np.mean(alarms) <= 0.08


def test_holm_adjusts_for_the_number_of_comparisons():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan")])[0] == 0.5 and np.isnan(holm([0.5, float("nan")])[1])


def test_the_arms_that_come_with_the_package_are_recipes_that_can_be_run():
    arms = load_arms("standard", load_recipe("gsm8k"))
    assert set(available_arms()) >= {"standard", "prefix_kv", "lora"}
    assert {"none", "transformer", "detached", "placebo", "linear", "transformer_2"} <= set(arms.arms)
    assert arms.comparisons[0] == ("transformer", "none") and ("transformer", "placebo") in arms.comparisons
    assert len(arms.points) > 1


@pytest.mark.parametrize("method", ["prefix_kv", "lora"])
def test_the_arms_of_a_method_are_all_tuned_by_it(method):
    recipe = load_recipe("gsm8k")
    arms = load_arms(method, recipe)
    recipes = {name: updated(recipe, arm.settings) for name, arm in arms.arms.items()}
    assert list(recipes) == ["none", "transformer", "placebo"] and len(arms.points) == 3
    assert {each.tuning.method for each in recipes.values()} == {method}
    assert [each.heads.count for each in recipes.values()] == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[arms.a]\n", "`arms` must hold at least two arms. Received: 1."),
        ("arms = 3", "`arms` must be a table."),
        ("[arms]\na = 1\nb = 2", "`arms.a` must be a table. Received: 1."),
        ('[arms."a b"]\n[arms.c]', "An arm's name must be letters"),
        ("[arms.a]\n[arms.b]\nheads.cuont = 1", "Did you mean `heads.count`?"),
        ("[arms.a]\n[arms.b]\nheads.count = 'x'", "`heads.count` must be a whole number."),
        ("[arms.a]\n[arms.b]\ntraining.seed = 1", "`arms.b` must not set training.seed"),
        ("[arms.a]\n[arms.b]\nseeds = 0", "`arms.b.seeds` must be a whole number, at least 1. Received: 0."),
        ("baseline = ['a']\n[arms.a]\n[arms.b]", "There is no arm ['a'] to compare with."),
        ("[arms.a]\n[arms.b]\nevaluation.test_limit = 5", "`evaluation.test_limit` must be the same for every arm"),
        ("[grid]\nevaluation.limit = [3]\n[arms.a]\n[arms.b]", "`evaluation.limit` must be the same for every arm"),
        ("baseline = 'c'\n[arms.a]\n[arms.b]", "There is no arm 'c' to compare with. The arms: a, b."),
        ("pairs = [['a']]\n[arms.a]\n[arms.b]", "`pairs` must look like"),
        ("tuning_seeds = true\n[arms.a]\n[arms.b]", "`tuning_seeds` must be a whole number"),
        ("[grid]\nheads.weight = 0.1\n[arms.a]\n[arms.b]", "`grid.heads.weight` must be a list of values"),
        ("[grid]\nheads.weight = ['x']\n[arms.a]\n[arms.b]", "`heads.weight` must be a number."),
        ("[grid]\nheads.weight = [1.0]\n[arms.a]\n[arms.b]\nheads.weight = 0.2", "is in the grid and in the arm b"),
        ("arm = 1", "Unknown key `arm`. An arms file has baseline"),
        ("[arms", "is not valid TOML"),
    ],
)  # fmt: skip
def test_mistakes_in_an_arms_file_are_refused(tmp_path, text, message):
    file = tmp_path / "arms.toml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_arms(file, load_recipe("gsm8k"))
    assert message in str(caught.value) and str(caught.value).startswith(str(file))


def test_arms_that_are_nowhere():
    with pytest.raises(UserError, match=r"No arms named 'no-such'.*Available: .*standard"):
        load_arms("no-such", load_recipe("gsm8k"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of two arms, by the command line."""
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    (folder / "arms.toml").write_text(ARMS)
    recipe = tiny_recipe(folder, evaluation__test_limit=2, training__compile=False, heads__count=1)
    arms = load_arms(folder / "arms.toml", recipe)
    outcome = study.run(recipe, arms, folder / "out", seeds=1, backend="torch", jobs=2, progress=False)
    return recipe, arms, folder / "out", outcome


def test_every_run_leaves_one_small_file_and_nothing_else(done):
    _, _, folder, outcome = done
    names = {path.name for path in (folder / "results").iterdir()}
    assert (
        len(names) == 5 and "none.learning_rate_0.001.seed_0.json" in names
    )  # 2 arms x 2 points, and a second seed
    assert not list((folder / "runs").iterdir())
    for name, arm in outcome.arms.items():
        losses = {r.point["training.learning_rate"]: r.loss for r in arm.tuning}
        assert arm.point["training.learning_rate"] == min(losses, key=losses.get)
        assert [r.seed for r in arm.results] == [[0], [0, 1]][name == "linear"]


def test_a_difference_is_that_of_the_items_of_the_same_seed(done):
    *_, outcome = done
    (difference, _) = outcome.differences
    assert (difference.arm, difference.other, difference.seeds) == ("linear", "none", 1)
    ours, others = (outcome.arms[name].results[0] for name in ("linear", "none"))
    assert ours.items == others.items and ours.tokens == others.tokens and len(ours.scores) == 2
    assert difference.value == pytest.approx(ours.loss - others.loss, abs=1e-9)
    assert ours.nats_before == others.nats_before


def test_the_page_says_what_was_found_and_on_what(done):
    _, _, folder, outcome = done
    text = (folder / page.MARKDOWN).read_text()
    assert outcome.sentence in text and outcome.sentence.startswith(
        "Compared with none, on 3 held-out items:"
    )
    assert (
        outcome.at_the_edge == ["none", "linear"] and "may lie beyond: none, linear." in text
    )  # of two values
    assert (
        "tiny on 45 problems in GSM8K's format (not GSM8K, which has 8,792)" in text
        and "answered right more often (McNemar)" in text
    )
    assert json.loads((folder / page.JSON).read_text()) == outcome.to_json()
    for picture in (page.CURVES, page.DIFFERENCES):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_one_seed_settles_nothing(done):
    *_, outcome = done
    assert {d.verdict for d in outcome.differences} == {"one seed"}
    assert "one seed, from which nothing follows, with linear (" in outcome.sentence
    certain = dataclasses.replace(outcome.differences[0], seeds=2, value=-0.01, adjusted=0.01)
    assert certain.verdict == "lower" and dataclasses.replace(certain, value=0.01).verdict == "higher"
    assert dataclasses.replace(certain, adjusted=0.06).verdict == "no difference seen"


def test_a_study_goes_on_where_it_was_cut_off(done):
    recipe, arms, folder, outcome = done
    results = folder / "results"
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    (results / "none.learning_rate_0.05.seed_0.json").unlink()
    again = study.run(recipe, arms, folder, seeds=1, backend="torch", progress=False)
    assert again.to_json() == outcome.to_json()
    after = {path.name: path.read_bytes() for path in results.iterdir()}
    assert after.keys() == before.keys()
    for name, content in after.items():
        first, second = json.loads(content), json.loads(before[name])
        times = {"seconds": 0, "step_seconds": {}}
        assert first | times == second | times


def test_results_of_other_held_out_examples_are_refused(done, tmp_path):
    """Whether the file of results was made with other data, or an arm changes what is held out."""
    recipe, arms, folder, _ = done
    shutil.copytree(folder / "results", tmp_path / "results")
    path = tmp_path / "results" / "linear.learning_rate_0.05.seed_0.json"
    content = path.read_text()
    for changed in ({"items": "0" * 64}, {"tokens": [1, 2, 3]}):  # other examples; the same, in other words
        path.write_text(json.dumps(json.loads(content) | changed))
        with pytest.raises(
            UserError, match=r"must be of the same held-out examples.*linear\.learning_rate_0\.05"
        ):
            study.run(recipe, arms, tmp_path, seeds=1, backend="torch", progress=False)
    path.write_text(content)
    study.run(recipe, arms, tmp_path, seeds=1, backend="torch", progress=False)


def _timed(done, **seconds) -> tuple:
    """Arms' measured results of the study, made to have taken so many (warm-up, joint) seconds a step."""
    recipe, arms, _, outcome = done

    def made(units):
        assert [each.name for each in units] == ["seconds.none.seed_0", "seconds.linear.seed_0"]
        found = {name: outcome.arms[name].results[0] for name in seconds}
        return [
            dataclasses.replace(found[name], step_seconds=dict(zip(("warmup", "joint"), times, strict=True)))
            for name, times in seconds.items()
        ]

    return updated(recipe, {"training.steps": 100, "heads.warmup_steps": 10}), arms, made


def test_arms_get_the_steps_that_fit_into_the_baselines_time(done):
    """The baseline, without heads, has no warm-up, whatever the recipe says of one."""
    recipe, arms, made = _timed(done, none=(0.0, 2.0), linear=(1.0, 2.5))
    plan = budget.as_many_seconds(recipe, arms, made)
    steps = [
        plan.settings(arm, point)["training.steps"] for arm in arms.arms.values() for point in arms.points
    ]
    assert steps == [100, 100, 76, 76]  # (100 x 2 - 10 x 1) / 2.5, and the learning rate takes no time
    assert budget.as_many_steps().settings(arms.arms["linear"], arms.points[0]) == {}


def test_a_warm_up_that_takes_all_the_time_is_refused(done):
    recipe, arms, made = _timed(done, none=(0.0, 2.0), linear=(20.0, 2.5))
    with pytest.raises(UserError, match=r"the arm linear, whose warm-up takes 200\.0 s where .* 200\.0 s"):
        budget.as_many_seconds(recipe, arms, made)
    fixed = dataclasses.replace(arms, grid={"training.steps": [5, 10]})
    with pytest.raises(UserError, match=r"`training\.steps` must not be set by an arm or the grid"):
        budget.as_many_seconds(recipe, fixed, made)


def test_a_study_of_equal_seconds_records_its_steps_and_goes_on_with_them(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "arms.toml").write_text("[arms.none]\nheads.count = 0\n[arms.linear]\nheads.kind = 'linear'")
    changes = {"heads__warmup_steps": 1, "training__steps": 30, "evaluation__test_limit": 0}
    recipe = tiny_recipe(tmp_path, heads__count=2, training__compile=False, **changes)
    arms, folder = load_arms(tmp_path / "arms.toml", recipe), tmp_path / "study"
    options = {"seeds": 1, "backend": "torch", "equal": "seconds", "progress": False}
    outcome = study.run(recipe, arms, folder, **options)
    linear, none = outcome.arms["linear"], outcome.arms["none"]
    assert none.steps == 30 and linear.steps >= 1 and linear.results[0].steps[-1] == linear.steps
    measured = json.loads((folder / "results" / "seconds.linear.seed_0.json").read_text())
    assert set(measured["step_seconds"]) == {"warmup", "joint"} and measured["step_seconds"]["joint"] > 0
    text = (folder / page.MARKDOWN).read_text()
    assert (
        f"| linear | 1 | {linear.steps} |" in text
        and "fit into the baseline's measured training time" in text
    )
    assert outcome.to_json()["equal"] == "seconds"
    (folder / "results" / "linear.seed_0.json").unlink()
    again = study.run(recipe, arms, folder, **options)
    assert again.to_json() == outcome.to_json()


def test_results_of_another_study_are_refused(done):
    recipe, arms, folder, _ = done
    with pytest.raises(UserError, match=r"another recipe or version: training\.steps differs"):
        study.run(
            updated(recipe, {"training.steps": 2}), arms, folder, seeds=1, backend="torch", progress=False
        )


def test_results_of_another_backend_are_refused(done):
    recipe, arms, folder, _ = done
    with pytest.raises(
        UserError,
        match=r"made on one backend. Received: jax, and .*made on torch. Go on with --backend torch",
    ):
        study.run(recipe, arms, folder, seeds=1, backend="jax", progress=False)


def test_answers_may_hold_every_line_separator(tmp_path):
    write_inputs(tmp_path)
    recipe = tiny_recipe(tmp_path, heads__count=0, training__compile=False)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    command = [
        sys.executable,
        "-m",
        "keras_mtp",
        "recipe",
        str(tmp_path / "recipe.toml"),
        "--backend",
        "torch",
    ]
    subprocess.run([*command, "--run", str(tmp_path / "run")], check=True, capture_output=True)
    answers = tmp_path / "run" / "answers.jsonl"
    rows = [
        json.loads(line) | {"after": "a\u2028b\u2029c\u0085d"}
        for line in answers.read_text().split("\n")
        if line
    ]
    answers.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = results.collect(tmp_path / "run", arm="a", point={}, recipe=recipe, versions={})
    assert found.scores == [row["score"] for row in rows] and rows


def test_seeds_that_ended_early_are_drawn_as_far_as_all_came(done, tmp_path):
    *_, outcome = done
    linear = outcome.arms["linear"]
    first, second = linear.results
    short = dataclasses.replace(first, steps=first.steps[:-1], curve=first.curve[:-1])
    arms = outcome.arms | {"linear": dataclasses.replace(linear, results=[short, second])}
    page.write(dataclasses.replace(outcome, arms=arms), tmp_path)
    assert (tmp_path / page.CURVES).exists() and (tmp_path / page.MARKDOWN).exists()


def test_a_result_of_a_version_that_lacked_a_field_had_its_default(done, tmp_path):
    recipe, arms, folder, _ = done
    each = runs.unit(recipe, arms.arms["none"], arms.points[0], 0)
    (tmp_path / "results").mkdir()
    path = tmp_path / "results" / f"{each.name}.json"
    content = json.loads((folder / "results" / path.name).read_text())
    del content["recipe"]["heads"]["schedule"]
    path.write_text(json.dumps(content))
    assert each.name in runs.finished([each], tmp_path, "torch")
    content["recipe"]["heads"]["colour"] = "red"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another recipe or version: Unknown key `heads\.colour`"):
        runs.finished([each], tmp_path, "torch")


def test_measured_gradients_are_kept(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "arms.toml").write_text("[arms.none]\nheads.count = 0\n[arms.linear]\nheads.kind = 'linear'")
    recipe = tiny_recipe(tmp_path, evaluation__test_limit=0, heads__count=1, training__probe_every=3)
    arms = load_arms(tmp_path / "arms.toml", recipe)
    outcome = study.run(recipe, arms, tmp_path / "study", seeds=1, backend="torch", progress=False)
    found = {name: arm.results[0].gradients for name, arm in outcome.arms.items()}
    assert found["linear"]["step"] == [1, 3] and len(found["linear"]["head_2_gradient_cosine"]) == 2
    assert set(found["none"]) == {"step", "head_1_gradient_norm"}
    again = study.run(recipe, arms, tmp_path / "study", seeds=1, backend="torch", progress=False)
    assert again.arms["linear"].results[0].gradients == found["linear"]


def test_a_damaged_result_is_named(done, tmp_path):
    recipe, arms, *_ = done
    each = runs.unit(recipe, arms.arms["none"], arms.points[0], 0)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / f"{each.name}.json").write_text("{")
    with pytest.raises(UserError, match=r"none\.learning_rate_0\.001\.seed_0\.json is damaged"):
        runs.finished([each], tmp_path, "torch")


def test_a_run_that_diverged_never_wins_and_is_said_to(done):
    *_, outcome = done
    nan = float("nan")
    broken = [dataclasses.replace(r, nats=[nan] * len(r.nats)) for r in outcome.arms["linear"].tuning[:1]]
    fine = list(outcome.arms["linear"].tuning[1:])
    points = [r.point for r in broken + fine]
    assert study._best(points, broken + fine) == fine[0].point
    difference = study._difference(broken, outcome.arms["none"].results)
    assert difference.verdict == "diverged"
    again = dataclasses.replace(outcome, differences=[difference])
    assert again.sentence.endswith("no result with linear, which diverged.")
    assert again.to_json()["differences"][0]["difference"] is None


def test_a_run_that_fails_is_named_with_what_it_said(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "arms.toml").write_text(ARMS)
    command = [sys.executable, "-m", "keras_mtp", "study", "gsm8k", "--arms", str(tmp_path / "arms.toml")]
    command += [
        "--data",
        str(tmp_path),
        "--model",
        str(tmp_path / "none.gguf"),
        "--run",
        str(tmp_path / "out"),
    ]
    result = subprocess.run([*command, "--backend", "torch"], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("Error: The run none.learning_rate_0.001.seed_0 ended with exit code 2")
        and "none.gguf" in last
    )
