"""The crash test in short: the tool itself, with its processes. What it says at length stands in the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import crashtest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.any_backend
def test_nothing_is_lost(tmp_path):
    command = [sys.executable, "tools/crashtest.py", "--quick"]  # on torch, which is the first to be ready
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "found.json")],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] == found["identical"] == 3
    assert found["write_points"] == found["recovered"] > 60  # three faults at each of some twenty operations
    assert found["flips"] == found["detected"] > 60


@pytest.mark.any_backend
def test_what_is_lost_is_counted():
    parts = {
        "kills": crashtest.counted({"method": "lora", "kills": 5, "in_a_save": 2, "identical": False}),
        "files": crashtest.counted({"kind": "write_point", "held": True}),
    }
    found = crashtest.totals(parts)
    assert (found["kills"], found["identical"], found["in_a_save"]) == (5, 0, 2)
    assert (found["write_points"], found["recovered"], found["flips"]) == (1, 1, 0)
