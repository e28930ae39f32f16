import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from keras_mtp import cli
from keras_mtp.cli.group import Commands
from keras_mtp.cli.output import only_result_on_stdout, print_json
from keras_mtp.errors import Diverged, Interrupted, UserError
from keras_mtp.recipe import documented_fields

ROOT = Path(__file__).parent.parent
COMMANDS = ("recipe", "recipes", "plan", "study", "evaluate", "generate", "export")


def run(*arguments: str):
    return CliRunner().invoke(cli.cli, arguments, prog_name="keras-mtp")


def test_help_imports_no_keras():
    command = [sys.executable, "-X", "importtime", "-m", "keras_mtp", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(re.findall(r"\|\s+([\w.]+)$", result.stderr, flags=re.MULTILINE))
    assert "keras_mtp.cli" in imported
    assert not imported & {
        "keras",
        "keras_hub",
        "jax",
        "tensorflow",
        "torch",
        "numpy",
        "matplotlib",
        "lm_eval",
    }
    assert "keras-mtp recipe gsm8k" in result.stdout


def test_a_study_needs_no_keras_but_in_its_runs():
    """It may be given --backend, which takes effect only while Keras is not there yet."""
    code = "import sys; from keras_mtp import study; from keras_mtp.study import page; sys.exit('keras' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_speaks_json(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_version():
    assert run("--version").stdout == "keras-mtp, version 0.1.0\n"


def test_recipes_lists_what_can_be_run():
    assert "gsm8k\n" in run("recipes").stdout
    listed = json.loads(run("recipes", "--json").stdout)
    assert listed[0].keys() == {"name", "task", "description"}


def test_fields_lists_every_field_with_its_default():
    fields = json.loads(run("recipes", "--fields", "--json").stdout)
    assert [field["key"] for field in fields] == [key for key, _ in documented_fields()]
    text = run("recipes", "--fields").stdout
    assert 'heads.kind = "transformer"   (transformer | sequential | linear)' in text


@pytest.mark.parametrize(
    ("arguments", "recipe", "task"),
    [
        (["gsm8k"], "gsm8k", "gsm8k"),
        (["gsm8k", "--task", "jsonl"], "gsm8k", "jsonl"),
        (["--task", "jsonl"], "jsonl", "jsonl"),
        (["jsonl"], "jsonl", "jsonl"),
    ],
)
def test_a_task_can_stand_for_its_recipe_or_beside_another(arguments, recipe, task, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(cli.recipe, "folder_name", lambda recipe, backend: chosen.append(recipe) or 1 / 0)
    run("recipe", *arguments, "--data", "my.jsonl")
    assert [(r.name, r.task, r.data.source) for r in chosen] == [(recipe, task, "my.jsonl")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe", "gsm8"], "Did you mean `gsm8k`?"),
        (
            ["recipe", "gsm8k", "--set", "heads.cuont=1"],
            "Unknown key `heads.cuont`. Did you mean `heads.count`?",
        ),
        (["recipe", "gsm8k", "--set", "heads.count=x"], "`heads.count` must be a whole number."),
        (["recipe", "gsm8k", "--backend", "pytorch"], "'pytorch' is not one of"),
        (["evaluate", "no-such-run"], "`RUN` must be the folder of a run"),
        (["generate", "no-such-run", "hello"], "`RUN` must be the folder of a run"),
        (["evaluate", "no-such-run", "--limit", "0"], "--limit"),
        (["nonsense"], "No such command"),
    ],
)
def test_mistakes_end_with_2_and_without_traceback(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_mistake_in_a_fresh_process_is_one_line():
    command = [sys.executable, "-m", "keras_mtp", "recipe", "gsm8"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"Error: No recipe named 'gsm8'[^\n]*\n", result.stderr)


def test_finished_run_is_not_overwritten(tmp_path):
    (tmp_path / "report.json").write_text("{}")
    result = run("recipe", "gsm8k", "--run", str(tmp_path))
    assert result.exit_code == 2
    assert "which holds `report.json` already" in result.stderr
    assert (tmp_path / "report.json").read_text() == "{}"


def test_a_file_error_is_one_line(monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device", "runs/a/metrics.csv")

    monkeypatch.setattr(cli.recipe, "load_recipe", no_space)
    result = run("recipe", "gsm8k")
    assert result.exit_code == 2
    assert result.stderr == "Error: No space left on device: runs/a/metrics.csv\n"


def test_a_reader_who_has_seen_enough_is_told_nothing(monkeypatch):
    def nobody_reads(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli.recipe, "load_recipe", nobody_reads)
    result = run("recipe", "gsm8k")
    assert result.exit_code == 1 and not result.stderr


def test_a_usage_mistake_is_one_line_too():
    assert (
        run("recipe").stderr
        == "Error: `recipe` needs NAME, PATH or --task. `keras-mtp recipes` lists the names.\n"
    )
    assert run("generate").stderr == "Error: Missing argument 'RUN'. See `keras-mtp generate --help`.\n"
    assert run("--nonsense").stderr == "Error: No such option '--nonsense'. See `keras-mtp --help`.\n"
    assert "Start here:" in run().output


def test_run_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    result = run("recipe", "gsm8k", "--run", str(tmp_path / "file" / "run"))
    assert result.exit_code == 2
    assert "`--run` must be a folder that can be made" in result.stderr


def test_interruption_and_long_messages():
    group = Commands("group")

    @group.command()
    def interrupted():
        raise KeyboardInterrupt

    @group.command()
    def stopped():
        raise Interrupted("Stopped after step 3.", signal.SIGTERM)

    @group.command()
    def diverged():
        raise Diverged(stage="joint", step=7, losses={"head_1": float("nan")}, examples=["a"])

    @group.command()
    def mistaken():
        raise UserError("two\nlines")

    assert CliRunner().invoke(group, ["interrupted"]).exit_code == 130
    result = CliRunner().invoke(group, ["stopped"])
    assert (result.exit_code, result.stderr) == (143, "\nStopped after step 3.\n")
    result = CliRunner().invoke(group, ["diverged"])
    assert result.exit_code == 3 and "Received: head_1 nan, in step 7 of the stage joint" in result.stderr
    assert CliRunner().invoke(group, ["mistaken"]).stderr == "Error: two lines\n"


def test_what_libraries_print_stays_out_of_the_result():
    group = click.Group()

    @group.command()
    def noisy():
        with only_result_on_stdout():
            print("chatter")
        print_json({"a": 1})

    result = CliRunner().invoke(group, ["noisy"])
    assert json.loads(result.stdout) == {"a": 1}
    assert result.stderr == "chatter\n"
