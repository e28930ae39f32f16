"""The formats a finished run can be written in: what each can hold, and what must be installed for it.

    format          is                                           holds
    saved_model     TensorFlow's, for servers                    everything, heads and the loop of generation too
    onnx            a graph for ONNX Runtime                     what head_1 says, by any method
    transformers    a Hugging Face Llama with its tokenizer      what can be merged into a Llama: LoRA, a trunk trained whole
    peft            a Hugging Face PEFT adapter                  a prefix, keys and values, or LoRA; one of them

No Keras here, so that a run that a format cannot hold is refused before anything slow is imported.
"""

import importlib.util
from collections.abc import Collection
from dataclasses import dataclass

from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe
from keras_mtp.tuning import PREFIXES


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Args:
        title: what it is, for the help page.
        holds: the sets of methods it can hold, None for all.
        heads: whether it holds the heads.
        packages: that must be installed. extra: of keras_mtp, which brings them.
        backend: what Keras must run on to write it, None where it does not matter.
    """

    title: str
    holds: tuple[frozenset[str], ...] | None = None
    heads: bool = False
    packages: tuple[str, ...] = ()
    extra: str = ""
    backend: str | None = None


FORMATS = {
    "saved_model": Format(
        title="TensorFlow's, for TensorFlow Serving and every program that has TensorFlow",
        heads=True,
        backend="tensorflow",
    ),
    "peft": Format(
        title="an adapter for Hugging Face PEFT: prompt tuning, prefix tuning or LoRA",
        holds=tuple(frozenset({name}) for name in (*PREFIXES, "lora")),
        packages=("torch", "transformers", "peft"),
        extra="peft",
    ),
    "transformers": Format(
        title="a Hugging Face Llama, LoRA merged into it",
        holds=(frozenset(), frozenset({"lora"}), frozenset({"full"})),
        packages=("torch", "transformers"),
        extra="transformers",
    ),
    "onnx": Format(
        title="for ONNX Runtime",
        packages=("torch", "onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        backend="torch",
    ),
}
DEFAULT = "saved_model"


def described() -> str:
    """Every format in a sentence."""
    return " ".join(f"{name}: {form.title}." for name, form in FORMATS.items())


def held(recipe: Recipe) -> frozenset[str]:
    """What a run's model holds besides the base and the heads: names of `tuning.METHODS`."""
    without = {"heads"} if recipe.prefix_length else {"heads", *PREFIXES}
    return frozenset(recipe.tuning.methods) - without


def require(name: str, recipe: Recipe) -> list[str]:
    """Raises a `UserError` where a format cannot hold a run's model, or lacks what it is written with.

    Returns:
        What will be missing or different in it, in sentences.
    """
    form = FORMATS[name]
    _require_holds(name, held(recipe))
    if name == "peft" and recipe.model.quantize != "none":
        raise UserError(
            "`--format peft` is an adapter beside the base's own weights, and the run trained it beside those weights in "
            f"{recipe.model.quantize}: it would not be the model that was judged. `--format onnx` and the others hold the rounded "
            "weights."
        )
    if absent := [package for package in form.packages if importlib.util.find_spec(package) is None]:
        raise UserError(
            f"`--format {name}` needs {' and '.join(form.packages)}, to write it and to read it back. Not installed: "
            f'{", ".join(absent)}. Run: pip install "keras_mtp[{form.extra}]"'
        )
    notes = []
    if recipe.heads.count and not form.heads:
        notes.append(
            f"`--format {name}` has no place for heads: {left_out(recipe.heads.count)} will not be in it, and nothing is "
            "drafted. `--format saved_model` holds them."
        )
    if recipe.model.quantize != "none":
        notes.append(
            f"`--format {name}` holds the model's matrices in floating point, with the values that they have in "
            f"{recipe.model.quantize}."
        )
    if name == "onnx" and recipe.training.dtype != "float32":
        notes.append(
            "`--format onnx` holds float32, the only one that ONNX Runtime computes in on every processor. The run computed "
            f"in {recipe.training.dtype}, which moves logits a little."
        )
    return notes


def left_out(heads: int) -> str:
    """The names of so many heads: "head_2 and head_3"."""
    return " and ".join(f"head_{k}" for k in range(2, 2 + heads))


def _require_holds(name: str, methods: frozenset[str]) -> None:
    holds = FORMATS[name].holds
    if holds is None or methods in holds:
        return
    others = [
        f"`--format {other}`"
        for other, form in FORMATS.items()
        if form.holds is None or methods in form.holds
    ]
    can = " and ".join([", ".join(others[:-1]), others[-1]]) if len(others) > 1 else others[0]
    raise UserError(f"`--format {name}` cannot hold what the run trained: {_why(name, methods)}. {can} can.")


def _why(name: str, methods: Collection[str]) -> str:
    """What stands in the way, for methods that the format does not hold."""
    if name == "transformers":
        prefix = next(kind for kind in PREFIXES if kind in methods)
        return f"a plain Llama has no place for its prefix (tuning.method={prefix})"
    if len(methods) > 1:
        return f"an adapter is of one kind, and this is {' and '.join(sorted(methods))}"
    if "full" in methods:
        return "all weights of the model (tuning.method=full), which is no adapter"
    return "the heads alone (tuning.method=heads), for which PEFT has no place"
