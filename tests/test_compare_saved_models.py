"""The comparison of a SavedModel's tokens with the model's own: on a tiny run, and what is made of differences."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.partings import first_difference
from tools.saved_models.answering import Answered
from tools.saved_models.comparing import Row, compared

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.any_backend  # every system has a process of its own


@pytest.mark.slow
def test_a_client_without_keras_gets_the_models_tokens(tmp_path):
    work, numbers = tmp_path / "work", tmp_path / "numbers.json"
    told = ("--quick", "--work", work, "--json", numbers)
    command = [sys.executable, "tools/compare_saved_models.py", *told]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(numbers.read_text())
    pairs = [(row["a"], row["b"], row["batches"]) for row in rows]
    assert pairs == [
        ("saved_model", "tensorflow", [1, 1]),
        ("saved_model", "tensorflow", [8, 8]),
        ("saved_model", "saved_model", [1, 8]),
    ]
    assert all(row["holds"] and not row["partings"] for row in rows), rows
    assert all(row["prompts"] == 5 and row["tokens"] >= 5 for row in rows), rows
    (kept,) = work.glob("*/saved_model-by-1.jsonl")
    prompts = [json.loads(line)["piece"][0][0] for line in kept.read_text().splitlines()]
    assert len({len(prompt) for prompt in prompts}) > 1  # batches are ragged


def logits(ids: list[int]) -> np.ndarray:
    """Of 6 tokens; the end is 0."""
    return np.array([1.0, 2.0, 5.0, 4.9995, 0.0, -1.0]) + len(ids)


def _compared(ours: list[int], others: list[int], prompts: tuple[list[int], list[int]] = ([1], [1])):
    a, b = (
        Answered(prompts=[[1, 2], prompt], answers=[[3, 4], answer])
        for prompt, answer in zip(prompts, (ours, others), strict=True)
    )
    return compared(a, b, new_tokens=3, stop_ids=[0, 4], logits=logits)


def test_tokens_are_counted_until_answers_part():
    assert _compared([2, 2, 2], [2, 2, 2]) == (3 + 3, 0, [])  # the first answer has a stop token
    tokens, otherwise, (parting,) = _compared([2, 2, 2], [2, 3, 2])
    assert (tokens, otherwise) == (3 + 2, 0)
    assert (parting.question, parting.place, parting.said) == (1, 1, (2, 3))
    assert parting.margin == pytest.approx(0.0005)
    assert _compared([2], [2], ([1], [5]))[:2] == (3, 1)


def test_a_margin_is_that_of_the_less_likely_of_both_to_the_likeliest():
    def margin(ours, others):
        return _compared(ours, others)[2][0].margin

    assert margin([2, 3], [2]) == pytest.approx(5.0 - 1.0)  # against the likelier of the stop tokens
    assert margin([3], [1]) == pytest.approx(5.0 - 2.0)  # neither is the likeliest
    assert first_difference([1, 2], [1, 2]) is None and first_difference([], [1]) == 0


@pytest.mark.parametrize(
    ("others", "allowed", "prompt", "holds"),
    [
        ([2], 0.0, [1], True),
        ([3], 1e-3, [1], True),
        ([3], 1e-4, [1], False),
        ([3], 0.0, [1], False),
        ([2], 1e-3, [5], False),
    ],
)
def test_what_is_allowed(others, allowed, prompt, holds):
    tokens, otherwise, partings = _compared([2], others, ([1], prompt))
    row = Row(
        run="run",
        trained_on="jax",
        a="saved_model",
        b="torch",
        batches=(8, 8),
        prompts=2,
        tokens=tokens,
        encoded_otherwise=otherwise,
        partings=partings,
        allowed=allowed,
    )
    assert row.holds == holds
    assert str(row).endswith("  yes" if holds else "  NO")
