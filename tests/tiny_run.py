"""A recipe small enough for tests, with its model and its data as files: everything a run needs, no network."""

import json
from pathlib import Path

from keras_mtp.recipe import Recipe, load_recipe, updated
from tests.tiny_gguf import write_tiny_gguf


def write_inputs(folder: Path) -> None:
    """A folder in GSM8K's format, and the tiny model in it."""
    for split, numbers in (("train", range(40)), ("test", range(40, 45))):
        rows = [{"question": f"{n} + 1?", "answer": f"<<{n}+1={n + 1}>>\n#### {n + 1}"} for n in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_tiny_gguf(folder / "tiny.gguf", num_layers=2)


def settings(folder: Path) -> dict:
    """What makes the recipe gsm8k tiny, by field."""
    return {
        "data.source": str(folder),
        "data.max_tokens": 900,
        "data.buckets": 1,
        "model.name": str(folder / "tiny.gguf"),
        "prefix.length": 3,
        "heads.count": 2,
        "heads.warmup_steps": 2,
        "training.steps": 3,
        "training.batch_size": 2,
        "evaluation.limit": 3,
        "evaluation.every": 2,
        "evaluation.batch_size": 2,
        "evaluation.max_new_tokens": 4,
    }


def recipe(folder: Path, **changes) -> Recipe:
    """The tiny recipe; changes by field, `heads__count=1`."""
    return updated(
        load_recipe("gsm8k"), settings(folder) | {k.replace("__", "."): v for k, v in changes.items()}
    )
