"""The three backends on one tiny model, each in a process of its own, and beside a Llama in double precision."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mtp.backend import BACKENDS

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.any_backend
def test_backends_agree_with_one_another_and_with_double_precision(tmp_path):
    numbers = tmp_path / "apart.json"
    command = [sys.executable, "tools/compare_backends.py", "--quick", "--json", numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(numbers.read_text())
    pairs = list(itertools.combinations((*BACKENDS, "float64"), 2))
    assert [(row["a"], row["b"]) for row in rows] == pairs
    for row in rows:
        assert 0 < row["logits"] < 5e-6, row
        assert all(0 < row[f"{group}_gradient"] < 2e-5 for group in ("prefix", "lora", "head_2")), row
        if row["b"] != "float64":
            assert row["steps"] == 4 and 0 <= row["losses"] < 1e-4, row
