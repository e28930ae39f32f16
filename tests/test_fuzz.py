"""The fuzzer, short, on every reader; and that it sees what it looks for. The long form is `tools/fuzz.py --count 1000000`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.fuzzing import mutations
from tools.fuzzing.readers import READERS

pytestmark = [
    pytest.mark.any_backend,
    pytest.mark.skipif(sys.platform != "linux", reason="counts on fork and on limits of memory"),
]
ROOT = Path(__file__).parent.parent
# A reader with a mistake of each kind, which damage of its file uncovers.
PLANTED = """
import os, sys, time
from tools import fuzz
from tools.fuzzing import campaign, readers
from keras_mtp.errors import UserError

def read(folder):
    content = (folder / "x").read_bytes()
    if len(content) == 80 and content.startswith(b"good"):
        return
    if len(content) > 80:
        raise KeyError("a mistake")
    if len(content) < 20:
        os._exit(7)
    if len(content) < 40:
        begin = time.process_time()
        while time.process_time() < begin + 0.2:
            pass
    raise UserError("no")

campaign.HANG_SECONDS = 0.1
campaign.READERS["planted"] = readers.Reader(
    file="x", kind="bytes", prepare=lambda folder: (folder / "x").write_bytes(b"good" * 20), read=read
)
counts = campaign.run(["planted"], 120, seed=0)
print(campaign.table(counts))
"""


def _python(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_damaged_files_are_read_or_refused(tmp_path):
    """A thousand files, and then a few more, by going on where the first ones ended."""
    counts = tmp_path / "counts.json"
    for inputs in (40, 50):
        done = _python("tools/fuzz.py", "--count", str(inputs * len(READERS)), "--json", str(counts))
        assert done.returncode == 0, done.stdout + done.stderr
        readers = json.loads(counts.read_text())["readers"]
        assert {count["inputs"] for count in readers.values()} == {inputs} and set(readers) == set(READERS)
    for name, count in readers.items():
        assert count["refused"] + count["clean"] == count["inputs"], name
        assert count["refused"] > 2, f"{name}: its files are hardly damaged"


def test_a_crash_a_hang_and_a_death_are_seen():
    done = _python("-c", PLANTED)
    assert done.returncode == 0, done.stderr
    for seen in (
        "x KeyError: 'a mistake' (first: --reader planted --only ",
        "x the process died, exit code 7",
        "x 0.2 s",
    ):
        assert seen in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("| planted"))
    inputs, clean, refused, crashes, hangs = (int(cell) for cell in row.split("|")[2:-1])
    assert inputs == 120 == clean + refused + crashes and min(clean, refused, crashes, hangs) > 0


@pytest.mark.parametrize("make", [mutations.other_json, mutations.other_text])
def test_the_same_seed_damages_alike(make):
    text = '{"a": [1, 2, {"b": null}], "c": "text"}'
    made = [[make(np.random.default_rng([seed, 1]), text) for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 25
