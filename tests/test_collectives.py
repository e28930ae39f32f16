"""What devices say to each other in a step: read off a program, and no more than it has to be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.tiny_gguf import write_tiny_gguf
from tools.collective_calls import Collective, collectives, totals

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
  %both = (f32[2,3]{1,0}, f32[]) all-reduce(%p, %q), channel_id=1, replica_groups={{0,2},{1,3}}, to_apply=%sum
  %halved = f32[2,3]{1,0} all-reduce(%p), channel_id=5, replica_groups=[2,2]<=[4], to_apply=%sum.clone_promoted
  %apart = f32[2,3]{1,0} all-reduce(%p), channel_id=6, replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%sum
  %alone = f32[2,3]{1,0} all-reduce(%p), channel_id=7, replica_groups={{0},{1},{2},{3}}, to_apply=%sum
  %started = (f32[2]{0}, f32[4]{0}) all-gather-start(%p), channel_id=2, dimensions={0}
  %loop = (s32[], f32[8]) while(%init), condition=%more, body=%turn
}
"""


@pytest.mark.any_backend
def test_a_program_is_read():
    """By axis of a mesh of 2 x 2; what a CPU adds up in float32 for bfloat16 has half the bytes elsewhere."""

    def row(kind, axis, in_loop, count, size):
        return {"kind": kind, "axis": axis, "in_loop": in_loop, "count": count, "bytes": size}

    assert totals(collectives(PROGRAM), 2, 2) == [
        row("all-gather", "all", False, 1, 16),
        row("all-gather", "all", True, 1, 64),
        row("all-reduce", "all", True, 1, 32),
        row("all-reduce", "data", False, 2, 28 + 24),
        row("all-reduce", "model", False, 1, 12),
    ]


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("kind", "devices", "mesh", "axis"),
    [
        ("all-reduce", (0, 1, 2, 3), (4, 1), "data"),
        ("all-reduce", (0, 1, 2, 3), (1, 4), "model"),
        ("all-reduce", (0, 1), (4, 2), "model"),
        ("all-reduce", (0, 2, 4, 6), (4, 2), "data"),
        ("all-reduce", (0, 1, 2, 3), (2, 2), "all"),
        ("all-reduce", (), (2, 2), "all"),
        ("collective-permute", (3, 2), (2, 4), "model"),
        ("collective-permute", (4, 0), (2, 4), "data"),
    ],
)
def test_the_axis_of_a_mesh(kind, devices, mesh, axis):
    assert Collective(kind=kind, bytes=1, in_loop=False, devices=devices).axis(*mesh) == axis


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "jax", reason="JAX's")
def test_a_step_says_no_more_than_it_must(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf", num_layers=2)

    def step(mesh, *changes):
        command = [sys.executable, "tools/collectives.py", "--mesh", mesh, "--json", "--tokens", "64"]
        model = f"model.name={tmp_path / 'tiny.gguf'}"
        command += ["--layers", "1", "--set", model, "prefix.length=4", "heads.count=1", *changes]
        done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (count,) = json.loads(done.stdout)["counts"]
        return {(row["kind"], row["axis"], row["in_loop"]): row for row in count["collectives"]}

    (shared,) = step("2x1").items()
    assert shared[0] == (
        "all-reduce",
        "data",
        False,
    )  # neither rows nor logits, and nothing in the loop of the loss
    hidden_dim = 32
    assert shared[1]["bytes"] <= 4 * (4 * hidden_dim + 8)  # the prefix's gradient, and some sums
    split = step("1x2", "heads.count=0")
    assert set(split) == {("all-reduce", "model", False), ("all-reduce", "model", True)}
    # Two products of the block, forward and backward; besides them the embedding's rows, and a sum.
    assert 4 <= split["all-reduce", "model", False]["count"] <= 6


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}
