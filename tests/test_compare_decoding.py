"""The comparison of exact decoding with and without drafts, on a tiny run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mtp import pipeline
from tests import tiny_run

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(folder, training__compile=False, evaluation__test_limit=0)
    pipeline.run(recipe, folder / "run", progress=False)
    return folder / "run"


def compare(run: Path, *more) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/compare_decoding.py", run, "--data", run.parent, "--backend", "torch"]
    return subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_drafts_change_no_token_of_exact_decoding(run, tmp_path):
    numbers = tmp_path / "numbers.json"
    done = compare(run, "--quick", "--batches", "3", "--json", numbers)
    assert done.returncode == 0, done.stderr
    rows = json.loads(numbers.read_text())
    assert [(row["k"], row["batch"], row["rows"] * row["width"]) for row in rows] == [(2, 3, 8), (3, 3, 16)]
    assert all(row["holds"] and row["prompts"] == 4 and row["tokens"] > 4 for row in rows), rows


def test_more_tokens_a_pass_than_the_heads_can_say(run):
    done = compare(run, "--quick", "--tokens-per-pass", "4")
    assert done.returncode == 1 and done.stderr.rstrip().endswith("K must be from 2 to 3.")
