"""What the benchmark makes of its measurements, and one small run of it from end to end."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from tests.tiny_gguf import write_tiny_gguf
from tools.benchmarks import loss, results, train
from tools.benchmarks.results import OURS, PEER, Measured
from tools.benchmarks.worker import Step, System

ROOT = Path(__file__).parent.parent


def _measured(seconds: list[float], *, flops: float = 100.0, first_loss: float = 2.0, **system) -> Measured:
    """A system whose rounds are two steps each, of these mean seconds."""

    def steps(mean: float) -> list[Step]:
        parts = (mean / 2, mean * 3 / 2)
        return [
            Step(seconds=s, loss=first_loss, flops=flops, padding=0.1, peak_bytes=int(1e6 * mean))
            for s in parts
        ]

    full = {"name": OURS, "backend": "jax", "dtype": "float32"} | system
    return Measured(System(**full), steps(9.0), [steps(mean) for mean in seconds])


MEASURED = [
    _measured([3.0, 30.0, 2.9], name=PEER, backend="torch", first_loss=2.5),
    _measured([1.0, 1.1, 9.0]),
    _measured([2.0, 2.0, 2.0], flops=200.0, heads=1),
    _measured([4.4, 4.4, 4.4], flops=400.0, heads=3),
]
PEAKS = {("jax", "float32"): 500.0, ("torch", "float32"): 1000.0, ("jax", "mixed_bfloat16"): 9000.0}


def test_rows_hold_medians_over_rounds_and_the_share_of_the_machines_peak():
    row = results.rows(MEASURED, PEAKS)[1]
    assert row == {
        "system": "keras_mtp",
        "backend": "jax",
        "dtype": "float32",
        "heads": 0,
        "seconds": 1.1,
        "peak_bytes": 9_000_000,
        "share_of_peak": pytest.approx(100.0 / 1.1 / 1000.0),
    }


def test_ratio_is_the_peers_seconds_over_ours_without_heads():
    assert results.ratios(MEASURED) == {"jax/float32": pytest.approx(3.0 / 1.1)}
    assert results.ratios(MEASURED[1:]) == {}
    assert results.first_loss_differences(MEASURED) == {"jax/float32": -0.5}


def test_head_cost_is_added_time_over_added_flops():
    assert results.head_costs(MEASURED) == {"jax/float32": pytest.approx((4.4 / 2.0 - 1) / (400 / 200 - 1))}
    assert results.head_costs(MEASURED[:3]) == {}


def test_compared_systems_are_alive_together():
    options = argparse.Namespace(
        backends=["jax", "tensorflow"], dtypes=["float32"], heads=[0, 1, 2, 4], quick=False
    )
    assert [[(s.name, s.backend, s.heads) for s in group] for group in train.groups(options)] == [
        [(PEER, "torch", 0), ("peft_lora", "torch", 0), (OURS, "jax", 0), (OURS, "tensorflow", 0)],
        [(OURS, "jax", 1), (OURS, "jax", 4), (OURS, "jax", 2), ("keras_hub_lora", "jax", 0)],
        [(OURS, "tensorflow", 1), (OURS, "tensorflow", 4)],
        [(OURS, "tensorflow", 2), ("keras_hub_lora", "tensorflow", 0)],
    ]


def test_loss_lines_compare_with_the_naive_loss_and_with_one_head():
    def case(method, heads):
        return loss.Case(method=method, backend="jax", dtype="float32", heads=heads, rows=1, tokens=10)

    gradients = 4 * 10 * 576
    found = {
        case("lean", 1): loss.Found(seconds=1.0, peak_bytes=1000 + gradients),
        case("naive", 1): loss.Found(seconds=2.0, peak_bytes=10**6),
        case("lean", 4): loss.Found(seconds=4.0, peak_bytes=1050 + 4 * gradients),
    }
    assert list(loss.lines(found)) == [
        "jax float32, 1 x 10, heads 1: 2.00x as fast as the naive loss",
        "jax float32, 1 x 10, heads 4: 1.05x the memory of one head, beyond the gradients",
    ]


@pytest.mark.slow
def test_a_small_run(tmp_path):
    """Ours and PEFT on a tiny Llama: both begin from the same loss, or they do not train the same thing."""
    model, numbers = tmp_path / "tiny.gguf", tmp_path / "numbers.json"
    write_tiny_gguf(model)
    name = keras.config.backend()
    command = [sys.executable, "tools/benchmark.py", "train", "--quick", "--model", model, "--json", numbers]
    command += ["--backends", name, "--rounds", "1", "--batches", "1", "--max-tokens", "2000"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(numbers.read_text())
    assert [(row["system"], row["backend"]) for row in found["rows"]] == [(PEER, "torch"), (OURS, name)]
    assert found["failed"] == []
    assert found["ratios"].keys() == {f"{name}/float32"}
    assert abs(found["first_loss_differences"][f"{name}/float32"]) < 1e-4
    assert all(0 < row["share_of_peak"] < 1 and row["peak_bytes"] > 0 for row in found["rows"])
