"""What a finished run is good for: load its model, judge it again, ask it, export it. On any backend, whatever trained it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from keras_mtp import checkpoint
from keras_mtp.data.splits import encoded_splits, places_by_source
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.evaluation import HeadScore, Judge
from keras_mtp.export import for_hugging_face, formats, onnx_graph, saved_model
from keras_mtp.export.exported import Exported
from keras_mtp.generation.statistics import Statistics
from keras_mtp.generation.text import Wish
from keras_mtp.models.backbone import base_info, context_length
from keras_mtp.models.from_recipe import base_from_recipe, model_from_recipe
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, load_recipe, updated, with_options
from keras_mtp.run_folder import CHECKPOINT, RECIPE, require_run
from keras_mtp.tasks import load_task


def load(run: str | os.PathLike) -> MTPCausalLM:
    """The model that came out of a run, with its tokenizer.

    Args:
        run: the run's folder. The base model is loaded anew by the name in the run's recipe and must be the same file.

    Returns:
        The `MTPCausalLM` with what the run trained. `model.tokenizer` reads and writes its text.

    Raises:
        UserError: no run there, not finished, damaged, or of another base model.

    Example:

    ```python
    model = keras_mtp.load(run)
    print(model.generate("Tom has 3 apples and buys 4 more. How many has he now?", max_new_tokens=8))
    ```
    """
    model, _ = _restored(load_recipe(require_run(Path(run)) / RECIPE), Path(run))
    return model


def evaluate(run: Path, *, data: str | None = None, limit: int | None = None) -> dict[str, Any]:
    """Judges a finished run again.

    Args:
        run: the run's folder.
        data: another data source than the run's; limit: another number of examples.

    Returns:
        `{"held_out": {"head_1": {"loss", "top1"}, ..., "n"}, "task": {"metric", "value", "n"}, "data", "backend"}`. Where
        the data name sources, `"held_out_by_source"` has the first of these for each; where a task has further measures,
        `"task"` has `"further": {metric: {"value"}}`.
    """
    recipe = load_recipe(require_run(run) / RECIPE)
    recipe = with_options(recipe, {"data.source": data, "evaluation.limit": limit})
    return _judged(*_restored(recipe, run), recipe)


def evaluate_base(recipe: Recipe) -> dict[str, Any]:
    """Judges a recipe's base model by the recipe's data, without a prefix and without heads.

    Returns:
        As `evaluate`, with `head_1` alone.
    """
    return _judged(*base_from_recipe(recipe), recipe)


def generate(run: Path, prompt: str, **wish: Any) -> str:
    """What a finished run's model answers to a prompt; see `MTPCausalLM.generate`, which takes the same."""
    return answer(run, prompt, **wish)[0]


def answer(run: Path, prompt: str, **wish: Any) -> tuple[str, Statistics]:
    """As `generate`, with what it cost."""
    return load(run).answer(prompt, Wish(**wish))


def export(run: Path, folder: Path, format: str = formats.DEFAULT) -> saved_model.Exported | Exported:
    """Writes a finished run's model in one of `keras_mtp.export.formats.FORMATS`, with the run's recipe.

    Args:
        run: the run's folder. folder: to be made; must not exist.

    Raises:
        UserError: as `load`; the format cannot hold what the run trained, or something that it needs is not installed.
    """
    recipe = load_recipe(require_run(run) / RECIPE)
    formats.require(format, recipe)
    if format == "onnx":  # ONNX Runtime computes in nothing shorter on a CPU
        recipe = updated(recipe, {"training.dtype": "float32", "model.dtype": "float32"})
    model, _ = _restored(recipe, run, rounded=True)
    base, files = base_info(recipe.model.name), [run / RECIPE]
    if format == "saved_model":
        longest = context_length(recipe.model.name)
        return saved_model.export(model, folder, base=base, context_length=longest, files=files)
    if format == "onnx":
        return onnx_graph.export(model, folder, base=base, files=files)
    write = {"peft": for_hugging_face.export_adapter, "transformers": for_hugging_face.export_llama}[format]
    return write(model, folder, base=base, name=recipe.model.name, files=files)


def _restored(recipe: Recipe, run: Path, *, rounded: bool = False) -> tuple[MTPCausalLM, Tokenizer]:
    """The run's model; `rounded` as for `model_from_recipe`."""
    base = base_info(recipe.model.name)
    checkpoint.require_base(
        checkpoint.read_manifest(run / CHECKPOINT), base, run
    )  # before the base is loaded
    model, tokenizer = model_from_recipe(recipe, rounded=rounded)
    checkpoint.restore(run / CHECKPOINT, model, base=base)
    return model, tokenizer


def _judged(model: MTPCausalLM, tokenizer: Tokenizer, recipe: Recipe) -> dict[str, Any]:
    task = load_task(recipe.task, recipe.data.source)
    held_out = encoded_splits(task.examples("train"), tokenizer, recipe).held_out
    heads, answers = Judge(model, tokenizer, task, held_out, recipe)()
    result: dict[str, Any] = {
        "held_out": _by_head(heads, len(held_out)),
        "task": {"metric": answers.metric, "value": answers.value, "n": answers.n},
        "data": task.title,
        "backend": keras.config.backend(),
    }
    if answers.further:
        result["task"]["further"] = {name: {"value": value} for name, value in answers.further_values.items()}
    if sources := places_by_source(held_out):
        result["held_out_by_source"] = {
            source: _by_head({name: head.part(places) for name, head in heads.items()}, len(places))
            for source, places in sources.items()
        }
    return result


def _by_head(heads: Mapping[str, HeadScore], n: int) -> dict[str, Any]:
    return {**{name: {"loss": head.loss, "top1": head.top1} for name, head in heads.items()}, "n": n}
