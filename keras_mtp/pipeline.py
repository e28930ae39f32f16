"""A recipe from start to finish: read this file first. Every noun in `_run` is the name of a file.

text -> tokens -> model -> judge -> train -> keep -> judge -> report
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import keras
from rich.console import Console

from keras_mtp import backend, checkpoint, disk, distribution, memory, memory_check, report, run_folder
from keras_mtp.data.batches import require_a_batch
from keras_mtp.data.chat_template import read_template
from keras_mtp.data.draft_vocabulary import most_frequent
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.splits import encoded_splits
from keras_mtp.divergence import written_down
from keras_mtp.evaluation import Judge
from keras_mtp.generation.own_answers import own_answers
from keras_mtp.metrics import MetricsLog, probe_columns
from keras_mtp.models.backbone import base_info
from keras_mtp.models.from_recipe import model_from_recipe
from keras_mtp.models.licence import write_licence
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.progress import ProgressBar, console
from keras_mtp.recipe import Recipe, to_toml, updated
from keras_mtp.report import Report
from keras_mtp.run_folder import CHECKPOINT, METRICS, RECIPE
from keras_mtp.snapshots import Snapshots
from keras_mtp.starting_point import starting_point
from keras_mtp.tasks import load_task
from keras_mtp.training import train


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
        folder: an empty folder, one to be made, or that of a run of the same recipe that was cut off and is to go on.
        progress: whether to say on standard error what goes on.
        callbacks: further Keras callbacks for both stages, TensorBoard for one; see `keras_mtp.training.train`.

    Returns:
        The report, also written to `report.json`, `report.md` and `curves.png`.

    Raises:
        UserError: the folder holds a finished run, or one of another recipe, or another process is at work there; or whatever
            is wrong with the recipe's model or data.
        Diverged: a training loss was no finite number; the batch is in `diverged.json`.
        Interrupted: SIGINT or SIGTERM came while it trained. What it needs to go on was kept.
    """
    with distribution.begun(recipe.distribution.data, recipe.distribution.model) as group:
        shared = Path(group.from_chief(str(folder).encode()).decode())  # a default name has the time in it
        with distribution.own_folder(shared, run_folder.claimed) as own:
            # The run keeps the template's text: its file may be another one tomorrow.
            recipe = updated(recipe, {"data.template": read_template(recipe.data.template)})
            return _run(recipe, shared, own, console(progress and group.is_chief), callbacks)


def _run(recipe: Recipe, shared: Path, folder: Path, screen: Console, callbacks: Sequence) -> Report:
    """Goes on from what is in the folder that all processes share, and writes into this one's own."""
    clock = memory.Clock()
    base = base_info(recipe.model.name)
    start = starting_point(recipe, base)
    recipe = start.recorded_in(recipe)
    snapshots = Snapshots(shared, recipe, base, clock, screen.print)
    task = load_task(recipe.task, recipe.data.source)
    about = f"{base.name} on {task.title}, {keras.config.backend()} on {backend.device_name()}"
    screen.print(f"{about}, seed {recipe.training.seed}: {folder}")
    if recipe.rate_note:
        screen.print(recipe.rate_note)
    disk.write_text(folder / RECIPE, to_toml(recipe))
    write_licence(folder, base)

    memory_check.before_loading(recipe, base, clock)
    model, tokenizer = model_from_recipe(recipe)
    start.restore(model, base)
    backend.return_freed_memory()
    splits = encoded_splits(task.examples("train"), tokenizer, recipe)
    examples = _to_learn(splits.training, model, recipe, screen, snapshots)
    judge = Judge(model, tokenizer, task, splits.held_out, recipe)
    predicted = memory_check.before_training(recipe, base, clock, examples, judge)

    screen.print(snapshots.going_on or f"before: {judge}")
    before = snapshots.before = snapshots.before or judge(snapshots.journal("before"))
    probed = probe_columns(model.head_names) if recipe.training.probe_every else ()
    log = MetricsLog(folder / METRICS, model.head_names, probed, snapshots.record)
    bar = ProgressBar(log, recipe, screen)
    callbacks = [bar, *callbacks]
    with written_down(folder), closing(log), closing(bar), snapshots:
        trained = train(model, examples, recipe, log, judge.held_out, callbacks, start.heads, snapshots)
    backend.return_freed_memory()
    kept, state = trained.kept_step, trained.optimizer.variables
    checkpoint.save(folder / CHECKPOINT, model, state, base=base, steps=kept)

    screen.print(f"after (weights of step {kept}): {judge}")
    after = judge(snapshots.journal("after"))
    judge.write(folder, before, after)
    result = report.from_run(
        recipe=recipe,
        backend=keras.config.backend(),
        base=base,
        start=start,
        task=task,
        splits=splits,
        before=before,
        after=after,
        trained=trained,
        continued=snapshots.continued,
        rows=log.rows,
        clock=clock,
        predicted=predicted,
        folder=folder,
    )
    report.plot(log.rows, result, folder)
    report.write(result, folder)
    snapshots.remove()
    return result


def _to_learn(
    examples: Sequence[Encoded], model: MTPCausalLM, recipe: Recipe, screen: Console, snapshots: Snapshots
) -> Sequence[Encoded]:
    """What is trained on: the examples, or what the model itself answers to them. Tells a drafting model its vocabulary."""
    require_a_batch(examples, recipe.training.batch_size)
    if recipe.data.answers == "model":
        count = min(recipe.training.steps * recipe.training.batch_size, len(examples))
        screen.print(f"the model itself answers {count} training examples")
        examples = own_answers(
            model,
            examples,
            count=count,
            seed=recipe.training.seed,
            max_tokens=recipe.data.max_tokens,
            batch_size=recipe.evaluation.batch_size,
            journal=snapshots.journal("own"),
        )
    if recipe.heads.purpose == "speed":
        model.draft_vocabulary = most_frequent(examples, recipe.heads.draft_vocabulary)
    return examples
