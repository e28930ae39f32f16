"""The wheel, built and installed outside the checkout, and run from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_mtp.recipe import available_recipes
from keras_mtp.study.arms import available_arms
from tests import tiny_run

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.any_backend]  # what is in a wheel is the same for all


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder that holds the installed package and nothing else; hatchling builds, and nothing is downloaded."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    offline = ["--no-deps", "--no-index", "--disable-pip-version-check", "-q"]
    _pip("wheel", "--no-build-isolation", *offline, "--wheel-dir", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("keras_mtp-*.whl")
    _pip("install", *offline, "--target", str(folder), str(wheel))
    return folder


def _pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _python(installed: Path, cwd: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed), "KERAS_BACKEND": keras.config.backend()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_only_the_package_and_its_recipes_are_in_it(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {
        "keras_mtp",
        "bin",
    }
    recipes = installed / "keras_mtp/recipes"
    assert {path.stem for path in recipes.iterdir()} == {*available_recipes(), "arms"}
    assert {path.stem for path in (recipes / "arms").iterdir()} == set(available_arms())


def test_it_lists_its_recipes_and_runs_one(installed, tmp_path):
    where = _python(installed, tmp_path, "-c", "import keras_mtp; print(keras_mtp.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    listed = json.loads(_python(installed, tmp_path, "-m", "keras_mtp", "recipes", "--json"))
    assert [row["name"] for row in listed] == list(available_recipes())

    tiny_run.write_inputs(tmp_path)
    settings = tiny_run.settings(tmp_path) | {"heads.count": 1, "evaluation.limit": 1, "training.steps": 1}
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["-m", "keras_mtp", "recipe", "gsm8k", "--run", "run", "--quiet", "--json", *changes]
    result = json.loads(_python(installed, tmp_path, *command))
    assert (
        result["steps"] == 1
        and result["data"] == "45 problems in GSM8K's format (not GSM8K, which has 8,792)"
    )
    assert json.loads((tmp_path / "run/report.json").read_text()) == result
