"""A run small enough to be killed hundreds of times: its recipe's fields, by tuning method, and what two runs must have alike."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METHODS = {"prefix": 8e-3, "lora": 4e-3, "full": 1e-4}  # learning rates


def settings(method: str) -> dict[str, Any]:
    """The fields of a toy run."""
    return {
        "training.steps": 12,
        "training.snapshot_every": 1,
        "training.keep": "best",
        "training.learning_rate": METHODS[method],
        "training.batch_size": 2,
        "training.compile": False,
        "tuning.method": method,
        "heads.warmup_steps": 2,
        "evaluation.every": 5,
        "evaluation.test_limit": 1,
        "evaluation.limit": 3,
        "evaluation.batch_size": 2,
        "evaluation.max_new_tokens": 4,
        "data.max_tokens": 900,
        "data.buckets": 1,
        "prefix.length": 3,
    }


def real_settings(method: str) -> dict[str, Any]:
    """The fields of a few steps with SmolLM2-135M."""
    return {
        "training.steps": 8,
        "training.snapshot_every": 2,
        "training.learning_rate": METHODS[method],
        "training.batch_size": 2,
        "training.compile": False,
        "tuning.method": method,
        "heads.warmup_steps": 2,
        "evaluation.every": 5,
        "evaluation.limit": 4,
        "evaluation.test_limit": 0,
        "data.max_tokens": 128,
    }


def command(
    data: str | Path, run: Path, backend: str, fields: Mapping[str, Any], model: Path | None = None
) -> list[str]:
    """The command line of a run; the same one begins it and goes on with it."""
    where = ["--backend", backend, "--data", str(data), "--run", str(run), "--quiet"]
    chosen = ["--model", str(model)] if model else []
    assigned = [part for key, value in fields.items() for part in ("--set", f"{key}={_text(value)}")]
    return ["recipe", "gsm8k", *where, *chosen, *assigned]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def result(run: Path) -> dict[str, bytes | list]:
    """What of a finished run may not depend on how often it was killed: every byte but what a clock says."""
    files = (
        "checkpoint/trained.safetensors",
        "checkpoint/optimizer.safetensors",
        "held_out.csv",
        "answers.jsonl",
    )
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            {key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")}
            for row in csv.DictReader(file)
        ]
    return {"losses": rows, **{name: (run / name).read_bytes() for name in files}}
