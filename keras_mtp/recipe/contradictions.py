"""What no single field can tell: values that contradict each other, over all tables of a recipe."""

from typing import TYPE_CHECKING

from keras_mtp import tuning
from keras_mtp.errors import UserError

if TYPE_CHECKING:
    from keras_mtp.recipe.recipe import Recipe


def refuse_contradictions(recipe: "Recipe") -> None:
    """Raises a `UserError` for the first two values of a recipe that do not go together."""
    _check_batch(recipe)
    _check_weights(recipe)
    _check_method(recipe)
    if recipe.heads_alone:
        _check_heads_alone(recipe)
    _check_what_heads_learn(recipe)
    _check_something_is_trained(recipe)


def _check_batch(recipe: "Recipe") -> None:
    training, devices = recipe.training, recipe.distribution.data
    if training.batch_size % training.accumulation:
        raise UserError(
            "`training.accumulation` must divide `training.batch_size`. Received: "
            f"accumulation={training.accumulation}, batch_size={training.batch_size}."
        )
    if training.batch_size // training.accumulation % devices:
        raise UserError(
            "`distribution.data` must divide the examples of a micro-batch, training.batch_size / training.accumulation. Received: "
            f"distribution.data={devices}, batch_size={training.batch_size}, accumulation={training.accumulation}."
        )


def _check_weights(recipe: "Recipe") -> None:
    """Where the weights come from, how they are stored, what a prefix starts as."""
    if recipe.start.checkpoint and not recipe.start.run:
        raise UserError(
            "`start.checkpoint` must come with `start.run`, the run that it belongs to. Received: start.run=''."
        )
    if recipe.model.dtype == "bfloat16" and recipe.training.dtype == "float32":
        raise UserError(
            "`model.dtype=bfloat16` needs `training.dtype=mixed_bfloat16`: weights stored in bfloat16 are computed "
            "with in bfloat16. Received: training.dtype=float32."
        )
    if recipe.prefix_length and recipe.prefix.start == "text" and not recipe.prefix.text.strip():
        raise UserError("`prefix.text` must not be empty with `prefix.start=text`. Received: an empty text.")


def _check_method(recipe: "Recipe") -> None:
    method, methods = recipe.tuning.method, recipe.tuning.methods
    if not recipe.prefix.length and {*tuning.PREFIXES} & {*methods} and methods != ("prefix",):
        raise UserError(
            f"`prefix.length` must be at least 1 with `tuning.method={method}`. Received: prefix.length=0. Set it, or "
            "choose a method without a prefix."
        )
    if "full" in methods and recipe.model.dtype == "bfloat16":
        raise UserError(
            "`model.dtype` must be float32 with `tuning.method=full`: stored in bfloat16, weights lose most steps of "
            "training to rounding. Received: model.dtype=bfloat16. training.dtype=mixed_bfloat16 computes in bfloat16 "
            "all the same."
        )
    if "full" in methods and recipe.model.quantize != "none":
        raise UserError(
            "`model.quantize` must be none with `tuning.method=full`: int8 and int4 have no room for a step of training. "
            f"Received: model.quantize={recipe.model.quantize}. Train a prefix or lora, or leave the model as it is."
        )


def _check_heads_alone(recipe: "Recipe") -> None:
    """Refuses what contradicts training the heads alone."""
    heads, training = recipe.heads, recipe.training
    why = "heads.purpose=speed" if heads.purpose == "speed" else "tuning.method=heads"
    for key, wrong, wanted, received in (
        ("heads.count", heads.count == 0, "at least 1", "0"),
        ("heads.freeze", heads.freeze, "false", "true"),
        ("heads.target", heads.target == "next", "further", "next"),
        ("training.keep", training.keep != "last", "last", training.keep),
        ("training.patience", training.patience > 0, "0", str(training.patience)),
        ("training.probe_every", training.probe_every > 0, "0", str(training.probe_every)),
    ):
        if wrong:
            raise UserError(
                f"`{key}` must be {wanted} with `{why}`. Received: {key}={received}. That trains "
                "the heads and nothing else; head_1, by which the best weights are chosen, stays as it is."
            )


def _check_what_heads_learn(recipe: "Recipe") -> None:
    heads = recipe.heads
    if heads.purpose == "quality" and recipe.data.answers == "model":
        raise UserError(
            "`data.answers=model` needs `heads.purpose=speed`: a prefix would learn to say what the model says already. "
            "Received: heads.purpose=quality."
        )
    if heads.target == "next" and heads.kind == "sequential":
        raise UserError(
            "`heads.target=next` needs `heads.kind` transformer or linear: a sequential head is shown the tokens before its "
            "usual target, the next one among them. Received: heads.kind=sequential."
        )


def _check_something_is_trained(recipe: "Recipe") -> None:
    trains = recipe.prefix_length or {"lora", "full"} & {*recipe.tuning.methods}
    if not trains and (recipe.heads.freeze or not recipe.heads.count):
        raise UserError(
            "The recipe trains nothing: `prefix.length` is 0 and there are no unfrozen heads. Set `prefix.length` to "
            "at least 1, or `heads.count` to at least 1 with `heads.freeze=false`."
        )
    if recipe.training.probe_every and not trains:
        raise UserError(
            "`training.probe_every` must be 0 where only heads are trained: it measures what the heads ask of the weights "
            f"that they share. Received: training.probe_every={recipe.training.probe_every}."
        )
