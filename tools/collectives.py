#!/usr/bin/env python3
"""What the devices say to each other in one training step on JAX: every kind of collective, how often and how many bytes.

    tools/collectives.py --data 2 --model 2                      a recipe's step, on simulated devices
    tools/collectives.py --data 4 --layers 2 --set tuning.method=lora --json

The step is compiled for so many CPU devices and read: nothing is trained. Weights are zeros of the model's sizes, with
`--layers` fewer blocks of them: what a block needs is the difference of two such counts. Bytes are those of a collective's
result on one device. Those inside a loop (the loss goes through rows a chunk at a time) are per turn, and counted apart.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {
    "pred": 8,
    "s8": 8,
    "u8": 8,
    "bf16": 16,
    "f16": 16,
    "s32": 32,
    "u32": 32,
    "f32": 32,
    "s64": 64,
    "f64": 64,
}
_CALL = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls|condition|branch_computations)=\{?%?([\w., %-]+)")


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One in a compiled program.

    Args:
        kind: one of `KINDS`. bytes: of its result on one device. in_loop: whether it is in a loop, and made in every turn.
    """

    kind: str
    bytes: int
    in_loop: bool


def collectives(program: str) -> list[Collective]:
    """All of them in the text of a compiled program (HLO)."""
    bodies = dict(_computations(program))
    looped = _reached(bodies, set(re.findall(r"body=%?([\w.-]+)", program)))
    return [
        Collective(kind=match[2], bytes=_bytes(match[1], bool(match[3])), in_loop=name in looped)
        for name, lines in bodies.items()
        for match in map(_CALL.search, lines)
        if match
    ]


def totals(found: list[Collective]) -> list[dict]:
    """By kind and place: `{"kind", "in_loop", "count", "bytes"}`."""
    groups = sorted({(each.kind, each.in_loop) for each in found})
    return [
        {"kind": kind, "in_loop": in_loop, "count": len(sizes), "bytes": sum(sizes)}
        for kind, in_loop in groups
        if (sizes := [each.bytes for each in found if (each.kind, each.in_loop) == (kind, in_loop)])
    ]


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in program.splitlines():
        if begun := _COMPUTATION.match(line):
            name, lines = begun[1], []
        elif line == "}":
            yield name, lines
        else:
            lines.append(line)


def _reached(bodies: dict[str, list[str]], names: set[str]) -> set[str]:
    """These computations and all that they call."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        called = {
            n.strip(" %")
            for line in bodies.get(name, ())
            for m in _CALLED.findall(line)
            for n in m.split(",")
        }
        names |= (called & bodies.keys()) - found
    return found


def _bytes(shapes: str, is_start: bool) -> int:
    """Of the result; an asynchronous start gives its operands too, which come first."""
    sizes = [BITS[kind] // 8 * _product(dims) for kind, dims in _SHAPE.findall(shapes)]
    return sum(sizes[len(sizes) // 2 :] if is_start and len(sizes) > 1 else sizes)


def _product(dims: str) -> int:
    found = 1
    for size in filter(None, dims.split(",")):
        found *= int(size)
    return found


def compiled_step(recipe, tokens: int, layers: int | None) -> str:
    """The text of a recipe's compiled training step: of its joint stage, or of the one of its heads alone.

    Args:
        recipe: with its `distribution`. tokens: per row. layers: blocks of the model; None for all it has.
    """
    import numpy as np

    from keras_mtp import distribution, training
    from keras_mtp.backend.jax_devices import compiled_step
    from keras_mtp.data.encoding import Encoded

    with distribution.begun(recipe.distribution.data, recipe.distribution.model) as group:
        model = _empty_model(recipe, layers)
        item = Encoded(id="", ids=np.ones(tokens, "int32"), is_answer=np.arange(tokens) >= tokens // 2)
        stage = (training._heads if recipe.heads_alone else training._joint)(model, recipe, 0)
        batches = training._batches(stage, [item] * recipe.training.batch_size, recipe)
        losses = training.head_losses(model.backbone.token_embedding, stage.loss_weights)
        stage.view.compile(optimizer=stage.optimizer, loss=losses, loss_weights=stage.loss_weights)
        return compiled_step(stage.view, group.distributed(batches[0]))


def _empty_model(recipe, layers: int | None):
    from keras_mtp.models import from_recipe, llama
    from keras_mtp.models.backbone import base_info
    from keras_mtp.models.mtp_causal_lm import MTPCausalLM
    from keras_mtp.tuning import PREFIXES

    sizes = dict(base_info(recipe.model.name).architecture)
    if sizes["rope_scaling"]:
        sizes["rope_scaling"] = llama.RopeScaling(**sizes["rope_scaling"])
    sizes["num_layers"] = layers or sizes["num_layers"]
    tuned = recipe.tuning
    kinds = [kind for name, kind in PREFIXES.items() if name in tuned.methods]
    return MTPCausalLM(
        llama.build(llama.LlamaSizes(**sizes), from_recipe._dtype(recipe)),
        prefix_length=recipe.prefix_length,
        prefix_kind=kinds[0] if kinds else "embeddings",
        prefix_start="random",
        lora_rank=tuned.lora_rank if "lora" in tuned.methods else 0,
        lora_targets=tuned.projections,
        freeze_backbone="full" not in tuned.methods,
        heads=[from_recipe._head(recipe, k) for k in range(2, 2 + recipe.heads.count)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="gsm8k", help="name or file (default: %(default)s)")
    parser.add_argument("--data", type=int, default=1, help="devices that share a batch")
    parser.add_argument("--model", type=int, default=1, help="devices that share the weights")
    parser.add_argument("--tokens", type=int, default=192, help="per row (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="blocks of the model, if not all")
    parser.add_argument("--set", dest="assignments", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()

    count = f"--xla_force_host_platform_device_count={arguments.data * arguments.model}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    from keras_mtp import backend
    from keras_mtp.recipe import apply_overrides, load_recipe

    backend.select("jax")
    devices = [f"distribution.{name}={getattr(arguments, name)}" for name in ("data", "model")]
    recipe = apply_overrides(load_recipe(arguments.recipe), [*arguments.assignments, *devices])
    rows = totals(collectives(compiled_step(recipe, arguments.tokens, arguments.layers)))
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        place = "per turn of a loop" if row["in_loop"] else "per step"
        print(f"{row['kind']:<20} {row['count']:>5}   {row['bytes'] / 1e6:>10.3f} MB   {place}")


if __name__ == "__main__":
    main()
