"""A recipe's model: the names in the file become layers here, and only here."""

import keras

from keras_mtp.data.chat_template import MODELS_OWN, read_template
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.backbone import Pretrained, load_backbone
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe
from keras_mtp.tuning import PREFIXES


def model_from_recipe(recipe: Recipe, *, rounded: bool = False) -> tuple[MTPCausalLM, Tokenizer]:
    """Loads the recipe's base model, and puts around it what the recipe trains.

    Args:
        rounded: store a quantised model's matrices in floating point, with the values that they have in int8 or int4.

    Returns:
        `(model, tokenizer)`: the model untrained, its prefix, LoRA and heads at their start; the tokenizer with the recipe's
        chat template.
    """
    backbone, tokenizer = _base(recipe, rounded)
    tuned = recipe.tuning
    prefix_kinds = [kind for name, kind in PREFIXES.items() if name in tuned.methods]
    model = MTPCausalLM(
        backbone,
        prefix_length=recipe.prefix_length,
        prefix_kind=prefix_kinds[0] if prefix_kinds else "embeddings",
        prefix_start=_prefix_start(recipe, tokenizer),
        lora_rank=tuned.lora_rank if "lora" in tuned.methods else 0,
        lora_alpha=tuned.lora_alpha,
        lora_targets=tuned.projections,
        freeze_backbone="full" not in tuned.methods,
        heads=[_head(recipe, k) for k in range(2, 2 + recipe.heads.count)],
        tokenizer=tokenizer,
        seed=recipe.training.seed,
    )
    return model, tokenizer


def base_from_recipe(recipe: Recipe) -> tuple[MTPCausalLM, Tokenizer]:
    """The recipe's base model as it came, with neither prefix nor heads."""
    backbone, tokenizer = _base(recipe)
    return MTPCausalLM(backbone, tokenizer=tokenizer), tokenizer


def _base(recipe: Recipe, rounded: bool = False) -> Pretrained:
    """The base model, and its tokenizer with the recipe's chat template."""
    backbone, tokenizer = load_backbone(
        recipe.model.name, dtype=_dtype(recipe), quantize=recipe.model.quantize, rounded=rounded
    )
    if recipe.data.template != MODELS_OWN:
        tokenizer = tokenizer.with_template(read_template(recipe.data.template))
    return Pretrained(backbone, tokenizer)


def _dtype(recipe: Recipe) -> str:
    """Keras names storage and compute together.

    A frozen trunk that is computed with in bfloat16 is stored in it as well: rounded once, not at every use. One that is
    trained stays in float32, or its steps would be rounded away.
    """
    if recipe.training.dtype == "float32":
        return "float32"
    return "mixed_bfloat16" if "full" in recipe.tuning.methods else "bfloat16"


def _prefix_start(recipe: Recipe, tokenizer: Tokenizer) -> str | list[int]:
    return tokenizer.encode(recipe.prefix.text) if recipe.prefix.start == "text" else recipe.prefix.start


def _head(recipe: Recipe, k: int) -> keras.layers.Layer:
    heads = recipe.heads
    kind = {"transformer": TransformerHead, "sequential": SequentialHead, "linear": LinearHead}[heads.kind]
    # A linear head has no block to be a copy of.
    start = "zero" if heads.kind == "linear" and heads.start == "last_block" else heads.start
    return kind(start=start, seed=recipe.training.seed + k, attach=heads.attach, name=f"head_{k}")
