"""What fits into a memory, found without Keras and without a model."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from keras_mtp import cli, plan
from keras_mtp.errors import UserError
from keras_mtp.flops import Sizes
from keras_mtp.models.shapes import shape
from keras_mtp.plan import page, quantities
from keras_mtp.plan.model import PlannedModel, planned_model
from keras_mtp.plan.texts import Texts, texts
from keras_mtp.recipe import apply_overrides, load_recipe, updated
from tests import tiny_run

pytestmark = pytest.mark.any_backend

ROOT = Path(__file__).parent.parent
RECIPE = updated(load_recipe("gsm8k"), {"training.batch_size": 16, "heads.count": 0})
MODEL = PlannedModel(
    name="llama3.2_1b", sizes=Sizes.of(shape("llama3.2_1b")), tied=True, tokenizer=None, tokenizer_name=""
)
TEXTS = Texts(
    examples=1000, tokens=256, mean_tokens=200.0, labelled=100.0, prompt_tokens=100, origin="told", shared=10
)


def made(memory_bytes: float, recipe=RECIPE, fixed=(), **options) -> plan.Plan:
    return plan.make(recipe, MODEL, TEXTS, memory_bytes=memory_bytes, backend="torch", fixed=fixed, **options)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    tiny_run.write_inputs(folder)
    return folder


def run(*arguments: str):
    return CliRunner().invoke(cli.cli, ["plan", *arguments], prog_name="keras-mtp")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("24GB", 24e9), ("24g", 24e9), ("22.5 gib", 22.5 * 2**30), ("800MB", 8e8), ("1TiB", 2**40)],
)
def test_amounts_of_memory(text, amount):
    assert quantities.bytes_of(text) == amount


@pytest.mark.parametrize("text", ["abc", "", "-3GB", "0GB", "24", "GB", "nanGB", "24GBs", "1e3GB", "24 G B"])
def test_what_is_no_amount_is_refused(text):
    with pytest.raises(UserError, match=r"`--memory` must be an amount above 0, such as 24GB"):
        quantities.bytes_of(text)


def test_speeds_and_how_amounts_are_shown():
    assert quantities.flops_per_second("300TFLOPS") == 3e14
    assert quantities.flops_per_second("400 gflop/s") == 4e11
    with pytest.raises(UserError, match="--speed"):
        quantities.flops_per_second("fast")
    assert quantities.scaled(2.13e13, "FLOP") == "21.3 TFLOP"
    assert [quantities.duration(s) for s in (7200, 90, 0.5)] == ["2.0 h", "90 s", "0.5 s"]


def test_with_room_enough_the_recipe_stays_as_it_is():
    found = made(1e12)
    assert [option.precision for option in found.options] == ["float32", "bfloat16", "int8", "int4"]
    assert found.chosen is found.options[0]
    assert found.chosen.recipe == RECIPE and not found.chosen.changes
    workloads = [option.prediction.workload for option in found.options]
    stored = [workload.trunk_bytes for workload in workloads]
    assert stored == sorted(stored, reverse=True) and len(set(stored)) == 4
    assert [workload.quantize for workload in workloads] == ["none", "none", "int8", "int4"]
    assert all(option.longest_tokens > TEXTS.tokens for option in found.options)


def test_what_fits_is_within_the_memory_and_changed_as_little_as_it_must_be():
    whole = made(1e12).options[1].prediction.peak_bytes
    assert made(whole, fixed=["evaluation.batch_size"]).options[1].changes == {
        "training.dtype": "mixed_bfloat16"
    }
    option = made(whole - 1, fixed=["evaluation.batch_size"]).options[1]
    assert option.fits and option.prediction.peak_bytes < whole
    assert option.changes == {"training.dtype": "mixed_bfloat16", "training.accumulation": 2}
    frugal = made(5e9).options[1]
    assert frugal.fits and frugal.prediction.peak_bytes <= 5e9
    nothing = made(1e9)
    assert nothing.chosen is None and not any(option.longest_tokens for option in nothing.options)


def test_the_longest_row_is_the_longest():
    memory_bytes = 6e9
    option = made(memory_bytes).options[1]
    for tokens, fits in ((option.longest_tokens, True), (option.longest_tokens + plan.STEP, False)):
        longer = dataclasses.replace(TEXTS, tokens=tokens)
        least = updated(
            option.recipe,
            {"training.accumulation": 16, "training.remat": True, "evaluation.batch_size": 1},
        )
        again = plan.make(
            least, MODEL, longer, memory_bytes=memory_bytes, backend="torch", fixed=["training.dtype"]
        )
        assert again.options[0].fits is fits


def test_what_the_user_set_stays_so():
    fixed = apply_overrides(RECIPE, ["training.dtype=mixed_bfloat16", "training.remat=false"])
    found = made(6e9, fixed, fixed=["training.dtype", "training.remat"])
    assert [option.precision for option in found.options] == ["bfloat16", "int8", "int4"]
    assert not any(option.recipe.training.remat for option in found.options)
    full = updated(RECIPE, {"tuning.method": "full"})
    assert [option.precision for option in made(1e12, full).options] == ["float32", "bfloat16"]
    both = apply_overrides(RECIPE, ["training.dtype=float32", "model.quantize=int8"])
    found = made(1e12, both, fixed=["training.dtype", "model.quantize"])
    assert [option.recipe for option in found.options] == [both]


def test_work_does_not_depend_on_micro_batches_but_remat_adds_to_it():
    work = plan.work(RECIPE, MODEL, TEXTS)
    halved = plan.work(updated(RECIPE, {"training.accumulation": 2}), MODEL, TEXTS)
    assert work < halved < 1.02 * work  # what all rows share is computed once in each
    assert 1.2 * work < plan.work(updated(RECIPE, {"training.remat": True}), MODEL, TEXTS) < 1.5 * work
    found = made(1e12, speed=1e12)
    assert found.options[0].epoch_flops == work * (1000 // 16)
    told = page.to_json(found, None)["options"][0]
    assert told["seconds_per_epoch"] == pytest.approx(work * 62 / 1e12)


def test_devices_share_a_batch_and_the_weights():
    one, two = (
        made(1e12, updated(RECIPE, {"distribution.data": n, "distribution.model": n}), speed=1e12).options[0]
        for n in (1, 2)
    )
    alone, shared = one.prediction.parts, two.prediction.parts
    assert shared["weights"] == alone["weights"] / 2
    assert 0.5 < shared["activations"] / alone["activations"] < 0.52  # what all rows share, each device has
    assert (one.devices, two.devices) == (1, 4) and two.epoch_flops == one.epoch_flops
    full = {"tuning.method": "full", "distribution.model": 2}
    assert made(1e12, updated(RECIPE, full)).options[0].prediction.parts["optimizer"] == pytest.approx(
        made(1e12, updated(RECIPE, {"tuning.method": "full"})).options[0].prediction.parts["optimizer"] / 2
    )


def test_an_accelerator_has_larger_chunks_of_logits():
    parts = [made(1e12, accelerator=on).options[0].prediction.parts["logits"] for on in (True, False)]
    assert parts[0] == pytest.approx(8 * parts[1])


def test_data_that_are_here_are_read(inputs):
    recipe = tiny_run.recipe(inputs)
    model = planned_model(recipe.model.name)
    found = texts(recipe, model.tokenizer, None, None)
    assert 30 < found.examples < 40 and "read" in found.origin
    assert 0 < found.labelled < found.mean_tokens <= found.tokens and found.shared > 0
    longer = texts(recipe, model.tokenizer, None, 4 * found.tokens)
    assert longer.tokens == longer.mean_tokens == 4 * found.tokens and longer.examples == found.examples
    assert longer.labelled / longer.tokens == pytest.approx(found.labelled / found.mean_tokens)


def test_data_that_would_be_downloaded_are_assumed():
    found = texts(RECIPE, None, None, None)
    assert found.examples == 150 * 16 and found.tokens == 192 and "assumed" in found.origin
    assert texts(RECIPE, None, 7000, 500).examples == 7000
    assert texts(RECIPE, None, 7000, 500).tokens == 504  # rows are padded to a multiple of 8


def test_a_model_that_is_here_has_its_own_sizes(inputs):
    model = planned_model(str(inputs / "tiny.gguf"))
    assert model.sizes.num_layers == 2 and model.tokenizer is not None
    assert planned_model("random:llama3.2_3b").sizes.hidden_dim == 3072


@pytest.mark.parametrize("name", ["nothing", "hf://org/name", "", "a\x00b"])
def test_a_model_that_is_not_here_is_refused_and_not_downloaded(name):
    with pytest.raises(UserError, match=r"`--model` must be smollm2-135m, .*llama3.2_3b.* downloaded"):
        planned_model(name)


def test_the_command_prints_a_table_and_what_to_run(inputs, tmp_path):
    file = tmp_path / "plan.json"
    result = run(
        *("gsm8k", "--model", str(inputs / "tiny.gguf"), "--data", str(inputs), "--memory", "8GB"),
        *("--speed", "1TFLOPS", "--backend", "jax", "--set", "training.batch_size=4", "--json", str(file)),
    )
    assert result.exit_code == 0, result.output
    assert "float32" in result.stdout and "int4" in result.stdout and "an epoch" in result.stdout
    command = result.stdout.splitlines()[-1]
    assert command.startswith("keras-mtp recipe gsm8k --backend jax --model ")
    assert "--set training.batch_size=4" in command
    told = json.loads(file.read_text())
    assert told["command"] == command and told["memory_bytes"] == 8e9 and len(told["options"]) == 4
    first = told["options"][0]
    assert first["peak_bytes"] == pytest.approx(sum(first["parts_bytes"].values()), abs=20)


def test_nothing_that_fits_is_exit_code_1():
    result = run("gsm8k", "--model", "llama3.2_3b", "--memory", "1GB")
    assert result.exit_code == 1 and result.stdout.splitlines()[-1].startswith("Nothing fits. Try ")


def test_a_gpus_plan_says_how_far_predictions_were_off():
    wish = ("gsm8k", "--model", "llama3.2_1b", "--memory", "24GB")
    assert "to take up to 30% more" in run(*wish).stdout
    assert run(*wish).stdout == run(*wish, "--on", "gpu").stdout != run(*wish, "--on", "cpu").stdout
    assert "30%" not in run(*wish, "--on", "cpu").stdout


@pytest.mark.parametrize(("method", "noted"), [("full", True), ("lora", False)])
def test_a_learning_rate_of_another_method_is_noted(method, noted):
    told = run(
        "gsm8k", "--model", "llama3.2_1b", "--memory", "80GB", "--set", f"tuning.method={method}"
    ).stdout
    assert ("learning_rate=0.004 is far from" in told) == noted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gsm8k", "--json"], "See `keras-mtp plan --help`"),
        (["gsm8k", "--memory", "abc"], "--memory"),
        (["gsm8k", "--memory", "-3GB"], "--memory"),
        (["gsm8k"], "--memory"),
        (["gsm8k", "--memory", "8GB", "--speed", "very"], "--speed"),
        (["gsm8k", "--memory", "8GB", "--model", "llama9"], "llama3.2_1b"),
        (["nothing", "--memory", "8GB"], "No recipe named"),
        (["gsm8k", "--memory", "8GB", "--set", "training.batch=3"], "training.batch_size"),
        (["gsm8k", "--memory", "8GB", "--examples", "0"], "--examples"),
        (["gsm8k", "--memory", "8GB", "--backend", "mxnet"], "mxnet"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1


def test_a_plan_imports_no_keras():
    code = (
        "import sys; from keras_mtp.cli import cli\n"
        "cli(['plan', 'gsm8k', '--model', 'llama3.2_3b', '--memory', '24GB'], standalone_mode=False)\n"
        "sys.exit(str({'keras', 'jax', 'torch', 'tensorflow'} & {*sys.modules} or ''))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode in (0, 1) and not result.stderr.strip(), result.stderr
    assert "keras-mtp recipe gsm8k" in result.stdout
