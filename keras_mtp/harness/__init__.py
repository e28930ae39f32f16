"""Tasks of EleutherAI's lm-evaluation-harness, asked of a run's model or of a base model.

    TASK, TASK     lm-eval's own, or YAML files of yours    -> prompts, continuations, filters, metrics: all lm-eval's
    model          language_model.HarnessLM                 -> log-likelihoods (likelihood.py) and answers (generation/)
    results        results.TaskResult                       -> a JSON file for each task, a table

lm-eval is an extra, and imported only when it is asked for: pip install "keras_mtp[harness]".
"""

import difflib
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mtp import runs
from keras_mtp.errors import UserError
from keras_mtp.harness import results
from keras_mtp.harness.results import TaskResult
from keras_mtp.models.backbone import base_info, context_length
from keras_mtp.models.from_recipe import base_from_recipe
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, load_recipe
from keras_mtp.run_folder import HARNESS, RECIPE, require_run

USUAL_LENGTH = 2048  # lm-eval's, for models that do not state how long a text they were made for
SEED, SHOTS_SEED = 0, 1234  # lm-eval's own defaults, so that its prompts are the usual ones
RESAMPLES = 1000  # behind a standard error that no formula gives


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a model.

    Args:
        tasks: names of lm-eval's tasks, groups or tags; patterns such as "mmlu_*"; or paths of YAML files.
        path: a folder with YAML files of further tasks.
        limit: ask at most this many items of each task; all of them by default.
        chat: put the prompts into the model's chat template, few-shot examples as turns.
        max_length: longest text that is read at once, in tokens; what the model was made for by default.
        progress: whether to show progress on standard error.
    """

    tasks: Sequence[str]
    path: Path | None = None
    limit: int | None = None
    chat: bool = False
    max_length: int | None = None
    progress: bool = True


def evaluate_run(run: Path, wish: Wish) -> list[TaskResult]:
    """Judges a finished run's model, and leaves what came of it in the run's folder, `harness/TASK.json`.

    Raises:
        UserError: as `runs.load`; lm-eval is not installed; a task that it does not know or cannot load, or that wants
            what a text model cannot do.
    """
    _require_lm_eval()
    recipe = load_recipe(require_run(run) / RECIPE)
    found = _evaluate(runs.load(run), recipe, wish)
    results.write(found, run / HARNESS)
    return found


def evaluate_base(recipe: Recipe, wish: Wish) -> list[TaskResult]:
    """Judges a recipe's base model as it came; writes nothing."""
    _require_lm_eval()
    model, _ = base_from_recipe(recipe)
    return _evaluate(model, recipe, wish)


def ask(model: Any, wish: Wish, setup: Mapping[str, Any] | None = None) -> list[TaskResult]:
    """Asks tasks of any model behind lm-eval's interface, `lm_eval.api.model.LM`.

    Args:
        setup: what to keep with the results.
    """
    from lm_eval.evaluator import evaluate

    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval would fork, and a fork of JAX's threads may hang
    found = evaluate(
        model,
        _loaded(wish),
        limit=wish.limit,
        bootstrap_iters=RESAMPLES,
        apply_chat_template=wish.chat,
        fewshot_as_multiturn=wish.chat,
    )
    return results.read_results(found, setup or {})


def _evaluate(model: MTPCausalLM, recipe: Recipe, wish: Wish) -> list[TaskResult]:
    import lm_eval

    from keras_mtp.harness.language_model import HarnessLM

    length = wish.max_length or context_length(recipe.model.name) or USUAL_LENGTH
    judged = HarnessLM(
        model,
        name=base_info(recipe.model.name).name,
        max_length=max(length - model.prefix_length, 1),
        batch_size=recipe.evaluation.batch_size,
        progress=wish.progress,
    )
    setup = {
        "model": judged.name,
        "prefix_length": model.prefix_length,
        "backend": keras.config.backend(),
        "chat": wish.chat,
        "limit": wish.limit,
        "max_length": judged.max_length,
        "lm_eval": lm_eval.__version__,
    }
    return ask(judged, wish, setup)


def _loaded(wish: Wish) -> Any:
    """lm-eval's tasks, seeded as its own command does it."""
    random.seed(SEED)
    np.random.seed(SHOTS_SEED)  # noqa: NPY002  (what the tasks' own code draws by)
    manager, names = _found(wish)
    try:
        loaded = manager.load(names)
    except Exception as error:  # of lm-eval, of datasets, of a task's own code
        raise UserError(
            f"lm-eval cannot load {', '.join(wish.tasks)}: {_line(error)} Its data may have to be downloaded first."
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(
                f"`--harness` must name tasks of text alone. Received: {name!r}, which runs code that a model wrote or shows "
                "it pictures or sound. Leave it out."
            )
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(SHOTS_SEED)
    return loaded


def _found(wish: Wish) -> tuple[Any, list[str]]:
    """The manager that knows the tasks, and their names. Reading all of lm-eval's takes seconds."""
    from lm_eval.tasks import TaskManager

    if wish.path is not None and not wish.path.is_dir():
        raise UserError(f"`--harness-path` must be a folder of tasks' YAML files. Received: {wish.path}.")
    for with_all in (False, True):
        manager = TaskManager(include_path=wish.path, include_defaults=with_all)
        names = {name: _names(name, manager) for name in wish.tasks}
        if all(names.values()):
            return manager, [name for group in names.values() for name in group]
    unknown = next(name for name, group in names.items() if not group)
    close = difflib.get_close_matches(unknown, manager.all_tasks, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""
    raise UserError(
        f"`--harness` must name tasks of lm-eval or YAML files. Received: {unknown!r}.{hint} `lm-eval ls tasks` lists them."
    )


def _names(name: str, manager: Any) -> list[str]:
    is_file = name.endswith((".yaml", ".yml")) and Path(name).is_file()
    return [name] if is_file else manager.match_tasks([name])


def _require_lm_eval() -> None:
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        raise UserError(
            f'`--harness` needs lm-eval, which cannot be imported ({_line(error)}). Run: pip install "keras_mtp[harness]"'
        ) from error


def _line(error: Exception) -> str:
    """What an exception says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}."
