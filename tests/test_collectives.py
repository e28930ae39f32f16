"""What devices say to each other in a step: read off a program, and no more than it has to be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.tiny_gguf import write_tiny_gguf
from tools.collectives import collectives, totals

ROOT = Path(__file__).parent.parent

PROGRAM = """\
HloModule jit_step

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%inner (p: f32[8]) -> f32[8] {
  ROOT %ar = f32[8]{0} all-reduce(%p), channel_id=3, to_apply=%sum
}

%turn (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %called = f32[8]{0} call(%x), to_apply=%inner
  %ag = bf16[4,8]{1,0} all-gather(%y), channel_id=4, dimensions={0}
}

ENTRY %main (p: f32[2,3]) -> f32[2,3] {
  %both = (f32[2,3]{1,0}, f32[]) all-reduce(%p, %q), channel_id=1, to_apply=%sum
  %started = (f32[2]{0}, f32[4]{0}) all-gather-start(%p), channel_id=2, dimensions={0}
  %loop = (s32[], f32[8]) while(%init), condition=%more, body=%turn
}
"""


@pytest.mark.any_backend
def test_a_program_is_read():
    assert totals(collectives(PROGRAM)) == [
        {"kind": "all-gather", "in_loop": False, "count": 1, "bytes": 16},
        {"kind": "all-gather", "in_loop": True, "count": 1, "bytes": 64},
        {"kind": "all-reduce", "in_loop": False, "count": 1, "bytes": 28},
        {"kind": "all-reduce", "in_loop": True, "count": 1, "bytes": 32},
    ]


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX's")
def test_a_step_says_no_more_than_it_must(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf", num_layers=2)

    def step(*options):
        command = [
            sys.executable,
            "tools/collectives.py",
            *options,
            "--json",
            "--tokens",
            "64",
            "--layers",
            "1",
        ]
        changes = [f"model.name={tmp_path / 'tiny.gguf'}", "prefix.length=4", "heads.count=1"]
        command += [part for change in changes for part in ("--set", change)]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return {(row["kind"], row["in_loop"]): row for row in json.loads(done.stdout)}

    (shared,) = step("--data", "2").items()
    assert shared[0] == ("all-reduce", False)  # neither rows nor logits, and nothing in the loop of the loss
    hidden_dim = 32
    assert shared[1]["bytes"] <= 4 * (4 * hidden_dim + 8)  # the prefix's gradient, and some sums
    split = step("--model", "2", "--set", "heads.count=0")
    assert set(split) == {("all-reduce", False), ("all-reduce", True)}
    # Two products of the block, forward and backward; besides them the embedding's rows, and a sum.
    assert 4 <= split["all-reduce", False]["count"] <= 6


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
