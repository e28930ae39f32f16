"""A recipe from start to finish: read this file first. Every noun in `run` is the name of a file.

text -> tokens -> model -> judge -> train -> keep -> judge -> report
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_mtp import checkpoint, memory, report
from keras_mtp.data.batches import require_a_batch
from keras_mtp.data.chat_template import read_template
from keras_mtp.data.encoding import encode_all, encode_prompt
from keras_mtp.data.splits import split_held_out
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeldOutEvaluation, TaskEvaluation, write_answers
from keras_mtp.generation.generator import Generator
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.backbone import base_info
from keras_mtp.models.from_recipe import model_from_recipe
from keras_mtp.models.licence import write_licence
from keras_mtp.progress import ProgressBar, console
from keras_mtp.recipe import Recipe, from_toml, to_toml, updated
from keras_mtp.report import Report
from keras_mtp.tasks import load_task
from keras_mtp.training import train

RECIPE, METRICS, CHECKPOINT, ANSWERS = "recipe.toml", "metrics.csv", "checkpoint", "answers.jsonl"


def run(
    recipe: Recipe,
    folder: Path,
    *,
    progress: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Report:
    """Trains and judges a model as a recipe says, and leaves everything in the run's folder.

    Args:
        recipe: what to do.
        folder: an empty folder, or one to be made.
        progress: whether to say on standard error what goes on.
        callbacks: further Keras callbacks for both stages, TensorBoard for one; see `keras_mtp.training.train`.

    Returns:
        The report, also written to `report.json`, `report.md` and `curves.png`.

    Raises:
        UserError: the folder holds a run already; or whatever is wrong with the recipe's model or data.
    """
    _refuse_used(folder)
    # The run keeps the template's text: its file may be another one tomorrow.
    recipe = updated(recipe, {"data.template": read_template(recipe.data.template)})
    clock, screen = memory.Clock(), console(progress)
    task = load_task(recipe.task, recipe.data.source)
    base = base_info(recipe.model.name)
    screen.print(
        f"{base.name} on {task.title}, {keras.config.backend()}, seed {recipe.training.seed}: {folder}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(to_toml(recipe), encoding="utf-8")
    write_licence(folder, base)

    model, tokenizer = model_from_recipe(recipe)
    encoded = encode_all(task.examples("train"), tokenizer, recipe.data.max_tokens, recipe.data.too_long)
    training, held_out = split_held_out(encoded.examples, recipe.evaluation.limit)
    require_a_batch(training, recipe.training.batch_size)
    judge_held_out, judge_task = _judges(model, tokenizer, task, held_out, recipe)

    screen.print(f"before: {len(held_out)} held-out examples, {len(judge_task.examples)} test items")
    before = judge_held_out(), judge_task()
    log = MetricsLog(folder / METRICS, model.head_names)
    bar = ProgressBar(log, recipe, screen)
    try:
        trained = train(model, training, recipe, log, judge_held_out, [bar, *callbacks])
    finally:
        bar.stop()
        log.close()
    checkpoint.save(folder / CHECKPOINT, model, trained.optimizer.variables, base=base, steps=trained.steps)
    screen.print("after: the same once more")
    after = judge_held_out(), judge_task()

    write_answers(folder / ANSWERS, judge_task.examples, before[1], after[1])
    result = report.from_run(
        recipe=recipe,
        backend=keras.config.backend(),
        base=base,
        task=task,
        before=before,
        after=after,
        trained=trained,
        skipped_examples=len(encoded.skipped),
        truncated_examples=len(encoded.truncated),
        rows=log.rows,
        clock=clock,
        folder=folder,
    )
    report.write(result, folder)
    report.plot(log.rows, result, folder)
    return result


def evaluate(folder: Path, *, data: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """Judges a finished run again, on whatever backend Keras runs.

    Args:
        folder: the run's folder.
        data: another data source than the run's; limit: another number of examples.

    Returns:
        `{"held_out": {"head_1": {"loss", "top1"}, ..., "n"}, "task": {"metric", "value", "n"}, "data", "backend"}`.
    """
    changes = {"data.source": data, "evaluation.limit": limit}
    recipe = updated(
        _read_recipe(folder), {key: value for key, value in changes.items() if value is not None}
    )
    task = load_task(recipe.task, recipe.data.source)
    model, tokenizer = _restored(recipe, folder)
    encoded = encode_all(task.examples("train"), tokenizer, recipe.data.max_tokens, recipe.data.too_long)
    _, held_out = split_held_out(encoded.examples, recipe.evaluation.limit)
    judge_held_out, judge_task = _judges(model, tokenizer, task, held_out, recipe)
    heads, answers = judge_held_out(), judge_task()
    scores: dict[str, Any] = {name: {"loss": head.loss, "top1": head.top1} for name, head in heads.items()}
    return {
        "held_out": {**scores, "n": len(held_out)},
        "task": {"metric": answers.metric, "value": answers.value, "n": answers.n},
        "data": task.title,
        "backend": keras.config.backend(),
    }


def generate(folder: Path, prompt: str, *, max_new_tokens: int = 256) -> str:
    """What a finished run's model answers to a prompt, greedily."""
    model, tokenizer = _restored(_read_recipe(folder), folder)
    generator = Generator(model, stop_ids=tokenizer.eos_ids, max_new_tokens=max_new_tokens)
    return tokenizer.decode(generator([encode_prompt(prompt, tokenizer)])[0])


def _refuse_used(folder: Path) -> None:
    """A new recipe beside an old checkpoint would be a run that never was."""
    for name in (CHECKPOINT, report.JSON):
        if (folder / name).exists():
            raise UserError(
                f"The run's folder must be a new one. Received: {folder}, which holds `{name}` already."
            )


def _read_recipe(folder: Path) -> Recipe:
    path = folder / RECIPE
    return from_toml(path.read_text(encoding="utf-8"), str(path))


def _restored(recipe: Recipe, folder: Path):
    checkpoint.read_manifest(folder / CHECKPOINT)  # before minutes are spent on loading the base
    model, tokenizer = model_from_recipe(recipe)
    checkpoint.restore(folder / CHECKPOINT, model, base=base_info(recipe.model.name))
    return model, tokenizer


def _judges(model, tokenizer, task, held_out, recipe: Recipe) -> tuple[HeldOutEvaluation, TaskEvaluation]:
    evaluation = recipe.evaluation
    test = task.examples("test")[: evaluation.limit]
    return (
        HeldOutEvaluation(model, held_out, evaluation.batch_size),
        TaskEvaluation(
            model,
            task,
            tokenizer,
            test,
            batch_size=evaluation.batch_size,
            max_new_tokens=evaluation.max_new_tokens,
        ),
    )
