"""The same model, weights and batch on JAX, TensorFlow and PyTorch in float32: how far they are apart.

    .venv/bin/python tools/compare_backends.py --quick                       # a tiny model: half a minute
    .venv/bin/python tools/compare_backends.py --data FOLDER --json apart.json

A process per backend, one after another (with --quick at once): logits of both heads on 8 x 192 tokens of GSM8K; the gradient of every trained
tensor of prefix, LoRA and head; and the losses of 100 steps of prefix training from the same start. A logit's difference is
absolute; a gradient's is the norm of the difference over the norm, for the tensor where it is largest. `float64` is a Llama
of its own in double precision (float64_llama.py): it tells which of two is nearer to the truth. It trains no steps.

SmolLM2-135M on GSM8K, two CPU cores, keras 3.15.1, jax 0.10.2, tensorflow 2.21.0, torch 2.13.0, `--steps 0`:

                          logits    gradient of prefix    of LoRA    of head_2
    jax - tensorflow      1.4e-04   5.9e-06               2.9e-05    4.6e-06
    jax - torch           1.6e-04   5.7e-06               2.0e-05    2.9e-06
    tensorflow - torch    1.6e-04   5.2e-06               1.3e-05    2.0e-06

With 100 steps (`--rows 1 --tokens 96 --steps 100`) the losses of a step are at most 8.0e-04 apart (jax - tensorflow), 3.6e-04
(jax - torch) and 4.7e-04 (tensorflow - torch).

On the first two rows the logits, from -31 to 43, are 1.3e-04 (jax), 1.4e-04 (tensorflow) and 8.1e-05 (torch) at most from
float64's, 1.1e-05 to 1.2e-05 in the root mean square: it is float32's rounding, of which no backend has more than another.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from rich.table import Table

from keras_mtp.backend import BACKENDS
from tools.benchmarks.screen import console

REFERENCE = "float64"
GROUPS = ("prefix", "lora", "head_2")
HEAD_WEIGHT = 0.1  # of head_2's loss in the gradient
LORA_B = 0.02  # standard deviation of B, which starts at zero, where A would get no gradient
ROWS_AT_A_TIME = 2  # whose logits exist at once


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="builtin", help="builtin, hub, or a folder with GSM8K's files")
    parser.add_argument("--model", default="smollm2-135m", help="a model's name or path")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=192, help="of every row")
    parser.add_argument("--steps", type=int, default=100, help="of training; 0 for none")
    parser.add_argument("--batch-size", type=int, default=4, help="in training")
    parser.add_argument("--max-tokens", type=int, default=128, help="longest example in training")
    parser.add_argument("--quick", action="store_true", help="a tiny model, few tokens, few steps")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a process's backend and folder
    options = parser.parse_args()
    if options.one:
        compute(*options.one, options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.quick:
            make_quick(options, Path(folder))
        names = (*options.backends, REFERENCE)
        # A real model's would need a lot of memory together.
        with ThreadPoolExecutor(max_workers=len(names) if options.quick else 1) as processes:
            files = processes.map(lambda name: _in_a_process(name, folder, options), names)
            computed = dict(zip(names, files, strict=True))
        rows = [compared(a, b, computed) for a, b in itertools.combinations(computed, 2)]
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def make_quick(options: argparse.Namespace, folder: Path) -> None:
    """The tests' tiny model and data."""
    from tests import tiny_run

    tiny_run.write_inputs(folder)
    options.model, options.data = str(folder / "tiny.gguf"), str(folder)
    options.rows, options.tokens, options.steps, options.batch_size, options.max_tokens = 3, 64, 4, 2, 900


def _in_a_process(name: str, folder: str, options: argparse.Namespace) -> Path:
    """The file with what a backend computed."""
    numbers = ("rows", "tokens", "steps", "batch_size", "max_tokens", "model", "data")
    told = [f"--{key.replace('_', '-')}={getattr(options, key)}" for key in numbers]
    console(stderr=True).print(f"{name} ...")
    done = subprocess.run(
        [sys.executable, __file__, *told, "--one", name, folder], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"Error: {name} failed.\n{done.stderr[-2000:]}")
    return Path(folder) / f"{name}.npz"


def compute(name: str, folder: str, options: argparse.Namespace) -> None:
    """Everything that is compared, by one backend, into a file."""
    from keras_mtp import backend

    backend.select("torch" if name == REFERENCE else name)
    from keras_mtp.models.from_recipe import model_from_recipe

    recipe = _recipe(options)
    model, tokenizer = model_from_recipe(recipe)
    rng = np.random.default_rng(0)
    for variable_name, variable in model.lora.named_variables().items():
        if variable_name.endswith("/b"):
            variable.assign(rng.normal(0, LORA_B, variable.shape))
    batch = _batch(recipe, tokenizer, model.head_names, options)
    if name == REFERENCE:
        from tools.float64_llama import Float64Llama

        reference = Float64Llama(model)
        logits, gradients, losses = reference.logits(batch[0]), reference.gradients(*batch, HEAD_WEIGHT), []
    else:
        logits, gradients = _logits(model, batch[0]), _gradients(model, batch)
        del model
        losses = _losses(recipe, options) if options.steps else []
    np.savez(Path(folder) / f"{name}.npz", logits=logits, losses=losses, **gradients)


def _recipe(options: argparse.Namespace):
    """A prefix, LoRA and a head that is trained, on the recipe gsm8k."""
    from keras_mtp.recipe import load_recipe, updated

    return updated(
        load_recipe("gsm8k"),
        {
            "model.name": options.model,
            "data.source": options.data,
            "data.max_tokens": 1024,
            "tuning.method": "prefix+lora",
            "heads.freeze": False,
        },
    )


def _examples(recipe, tokenizer) -> list:
    from keras_mtp.data.encoding import encode_all
    from keras_mtp.tasks import load_task

    task = load_task(recipe.task, recipe.data.source)
    return encode_all(task.examples("train"), tokenizer, recipe.data.max_tokens).examples


def _batch(recipe, tokenizer, names: Sequence[str], options: argparse.Namespace) -> tuple:
    """(ids, targets, weights): the first examples that are long enough, cut; the weights of a head sum to 1."""
    from keras_mtp.data.targets import head_targets

    found = [item for item in _examples(recipe, tokenizer) if len(item.ids) >= options.tokens][: options.rows]
    if len(found) < options.rows:
        sys.exit(f"Error: only {len(found)} examples have {options.tokens} tokens.")
    ids, is_answer = (
        np.stack([getattr(i, what)[: options.tokens] for i in found]) for what in ("ids", "is_answer")
    )
    targets, weights = head_targets(ids, is_answer, names)
    return ids, targets, {name: w / w.sum() for name, w in weights.items()}


def _logits(model, ids: np.ndarray) -> np.ndarray:
    """(K, B, T, V), a few rows at a time."""
    from keras import ops

    from keras_mtp import backend

    run = backend.compiled(lambda ids: model(ids, training=False), model.variables)
    parts = []
    for start in range(0, len(ids), ROWS_AT_A_TIME):
        found = run(ids[start : start + ROWS_AT_A_TIME])
        parts.append(np.stack([ops.convert_to_numpy(found[name]) for name in model.head_names]))
    return np.concatenate(parts, axis=1)


def _gradients(model, batch: tuple) -> dict[str, np.ndarray]:
    """By name, of the loss that is trained: head_1's and a little of head_2's."""
    from keras import ops

    from keras_mtp import backend
    from keras_mtp.checkpoint import trained_variables
    from keras_mtp.training import head_losses

    view = model.training_view()
    losses = head_losses(model.backbone.token_embedding, model.head_names)

    def function(ids, targets, weights):
        states = view(ids)
        of_heads = [losses[name](targets[name], states[name], weights[name]) for name in model.head_names]
        return [of_heads[0] + HEAD_WEIGHT * of_heads[1]]

    variables = trained_variables(model)
    (found,) = backend.gradients(function, list(variables.values()), model.variables)(*batch)
    return {name: ops.convert_to_numpy(g) for name, g in zip(variables, found, strict=True)}


def _losses(recipe, options: argparse.Namespace) -> list[float]:
    """Of every step of training a prefix alone."""
    from keras_mtp.evaluation import HeldOutEvaluation
    from keras_mtp.metrics import MetricsLog
    from keras_mtp.models.from_recipe import model_from_recipe
    from keras_mtp.recipe import updated
    from keras_mtp.training import train

    recipe = updated(
        recipe,
        {
            "tuning.method": "prefix",
            "heads.count": 0,
            "data.max_tokens": options.max_tokens,
            "training.steps": options.steps,
            "training.batch_size": options.batch_size,
            "training.compile": False,
            "evaluation.every": options.steps,
        },
    )
    model, tokenizer = model_from_recipe(recipe)
    examples = _examples(recipe, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder) / "metrics.csv", model.head_names)
        train(model, examples, recipe, log, HeldOutEvaluation(model, examples[:1], 1))
        log.close()
    return [row["head_1_loss"] for row in log.rows if row["step"]]


def compared(a: str, b: str, computed: Mapping[str, Path]) -> dict[str, Any]:
    """How far two are apart; a curve only where both trained."""
    with np.load(computed[a]) as ours, np.load(computed[b]) as others:
        row: dict[str, Any] = {"a": a, "b": b, "logits": _largest(ours["logits"], others["logits"])}
        for group in GROUPS:
            apart = {name: _relative(ours[name], others[name]) for name in _in_group(ours, group)}
            worst = max(apart, key=lambda name: apart[name])
            row |= {f"{group}_gradient": apart[worst], f"{group}_worst": worst}
        if len(ours["losses"]) and len(others["losses"]):
            row["losses"] = _largest(ours["losses"], others["losses"])
            row["steps"] = len(ours["losses"])
    return row


def _in_group(arrays, group: str) -> Iterator[str]:
    return (name for name in arrays.files if name.startswith(group + "/"))


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    return float(max(np.abs(x - y).max() for x, y in zip(a, b, strict=True)))


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The numbers as a table."""
    table = Table("", "logits", *(f"gradient of {group}" for group in GROUPS), "losses")
    for row in rows:
        gradients = (f"{row[f'{group}_gradient']:.1e}" for group in GROUPS)
        losses = f"{row['losses']:.1e} ({row['steps']} steps)" if "losses" in row else ""
        table.add_row(f"{row['a']} - {row['b']}", f"{row['logits']:.1e}", *gradients, losses)
    console().print(table)


if __name__ == "__main__":
    main()
