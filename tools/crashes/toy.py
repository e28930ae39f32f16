"""A run small enough to be killed hundreds of times: its recipe's fields, by tuning method, and what two runs must have alike."""

import csv
from pathlib import Path

METHODS = {"prefix": 8e-3, "lora": 4e-3, "full": 1e-4}  # learning rates


def arguments(inputs: Path, run: Path, backend: str, method: str) -> list[str]:
    """The command line of a toy run; the same one begins it and goes on with it."""
    settings = {
        "training.steps": 12,
        "training.snapshot_every": 1,
        "training.keep": "best",
        "training.learning_rate": METHODS[method],
        "tuning.method": method,
        "heads.warmup_steps": 2,
        "heads.count": 1,
        "evaluation.every": 5,
        "evaluation.test_limit": 1,
        "evaluation.limit": 3,
        "evaluation.batch_size": 2,
        "evaluation.max_new_tokens": 4,
        "data.max_tokens": 900,
        "data.buckets": 1,
        "training.batch_size": 2,
        "training.compile": "false",
        "prefix.length": 3,
    }
    return _command(inputs, inputs / "tiny.gguf", run, backend, settings)


def real_arguments(data: str, run: Path, backend: str) -> list[str]:
    """The same with SmolLM2-135M and a few steps on real data."""
    settings = {
        "training.steps": 8,
        "training.snapshot_every": 2,
        "training.batch_size": 2,
        "training.compile": "false",
        "heads.warmup_steps": 2,
        "evaluation.every": 5,
        "evaluation.limit": 4,
        "evaluation.test_limit": 0,
        "data.max_tokens": 128,
    }
    return _command(Path(data), None, run, backend, settings)


def _command(data: Path, model: Path | None, run: Path, backend: str, settings: dict) -> list[str]:
    chosen = ["--model", str(model)] if model else []
    fields = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    where = ["--backend", backend, "--data", str(data), "--run", str(run), "--quiet"]
    return ["recipe", "gsm8k", *where, *chosen, *fields]


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
