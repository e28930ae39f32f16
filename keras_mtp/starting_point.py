"""`--from RUN`: what a finished run trained as the start of another run.

    the run            the new recipe
    prefix             prefix      the run's; its length must be the same. So with keys and values, LoRA, all weights
    head_2             head_2      the run's; the kind must be the same
                       head_3      fresh, warmed up alone

Heads that are to learn to draft (heads.purpose=speed) may be of another kind: then all of them are fresh.

The optimizer and its schedule begin anew. What a run started from is named in its recipe by the run's folder and the
hash of the weights, so that repeating it cannot start from anything else.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_mtp import checkpoint
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, load_recipe, updated
from keras_mtp.run_folder import CHECKPOINT, RECIPE, require_run


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """What a run's trained weights and heads are before it begins; with no arguments, fresh ones.

    Args:
        folder: the run that they are taken from; None for none.
        checkpoint: SHA-256 of that run's trained weights.
        heads: how many heads beyond `head_1` are that run's. Those of the new run that come after them are fresh.
    """

    folder: Path | None = None
    checkpoint: str = ""
    heads: int = 0

    @property
    def name(self) -> str:
        """The folder's name, without where it lies on this machine."""
        return "" if self.folder is None else self.folder.resolve().name

    def recorded_in(self, recipe: Recipe) -> Recipe:
        """The recipe, which now also says by its hash what it starts from."""
        return updated(recipe, {"start.checkpoint": self.checkpoint})

    def restore(self, model: MTPCausalLM, base: BaseInfo) -> None:
        """Puts the weights into a model just made from the new recipe."""
        if self.folder is not None:
            checkpoint.restore(self.folder / CHECKPOINT, model, base=base, heads=self.heads)


def starting_point(recipe: Recipe, base: BaseInfo) -> StartingPoint:
    """Finds what a recipe starts from, and checks it before minutes are spent on loading the base.

    Args:
        recipe: the new run's. base: the model it is to train.

    Raises:
        UserError: no finished run there, one that the recipe does not fit, or not the one that the recipe names.
    """
    if not recipe.start.run:
        _require_trained(recipe)
        return StartingPoint()
    folder = require_run(Path(recipe.start.run), "--from")
    manifest = checkpoint.read_manifest(folder / CHECKPOINT)
    checkpoint.require_base(manifest, base, folder)
    run = load_recipe(folder / RECIPE)
    same_kind = recipe.heads.kind == run.heads.kind
    heads = run.heads.count if same_kind or recipe.heads.purpose == "quality" else 0
    _require_fit(recipe, run, folder, heads)
    digest = manifest.files[checkpoint.TRAINED]
    if recipe.start.checkpoint not in ("", digest):
        raise UserError(
            f"`start.checkpoint` must be the hash of the weights in {folder}. Received: "
            f"{recipe.start.checkpoint[:12]}..., and there they are {digest[:12]}... Give the run it was with --from."
        )
    return StartingPoint(folder=folder, checkpoint=digest, heads=heads)


def _require_trained(recipe: Recipe) -> None:
    """Raises a `UserError` if heads are to learn to draft behind something that nothing has trained."""
    if recipe.heads.purpose != "speed":
        return
    if recipe.tuning.methods == ("prefix",) and recipe.prefix_length:
        raise UserError(
            "`heads.purpose=speed` does not train the prefix: it must come from a run that did, or be left out. Received: "
            f"prefix.length={recipe.prefix.length} and no run. Give the run with --from, or --set prefix.length=0."
        )
    if recipe.tuning.methods not in (("prefix",), ("heads",)):
        raise UserError(
            f"`heads.purpose=speed` trains the heads alone: what {recipe.tuning.method} trains must come from a run. Received: "
            f"tuning.method={recipe.tuning.method} and no run. Give the run with --from, or --set tuning.method=heads."
        )


def _require_fit(recipe: Recipe, run: Recipe, folder: Path, heads: int) -> None:
    """Raises a `UserError` that names the field in which the new recipe does not fit the run, of whose heads so many stay."""
    fields: list[tuple[str, Any, Any]] = []
    if recipe.tuning.methods != run.tuning.methods:
        fields.append(("tuning.method", recipe.tuning.method, run.tuning.method))
    elif "lora" in run.tuning.methods:
        pairs = zip(_lora(recipe).items(), _lora(run).values(), strict=True)
        fields += [(f"tuning.{name}", new, old) for (name, new), old in pairs if new != old]
    if recipe.prefix_length != run.prefix_length:
        fields.append(("prefix.length", recipe.prefix_length, run.prefix_length))
    if recipe.heads.count < heads:
        fields.append(("heads.count", recipe.heads.count, heads))
    if recipe.heads.kind != run.heads.kind and heads:
        fields.append(("heads.kind", recipe.heads.kind, run.heads.kind))
    for key, new, old in fields:
        least = "at least " if key == "heads.count" else ""
        raise UserError(
            f"`{key}` must be {least}{old}, as in the run to start from, {folder}. Received: {key}={new}. "
            f"Set it with --set {key}={old}."
        )


def _lora(recipe: Recipe) -> dict[str, Any]:
    """What makes LoRA of two recipes fit each other."""
    tuned = recipe.tuning
    targets = "+".join(tuned.projections)
    return {"lora_rank": tuned.lora_rank, "lora_alpha": tuned.lora_alpha, "lora_targets": targets}
