#!/usr/bin/env python3
"""What the devices say to each other in one training step on JAX: every kind of collective, how often and how many bytes.

    tools/collectives.py --mesh 2x2                              a recipe's step, on simulated devices
    tools/collectives.py --mesh 8x1 4x2 --layers 1 2 --set model.name=random:llama3.2_1b --json

The step is compiled for so many CPU devices and read: nothing is trained. Weights are shapes without values, so that the
model may be of any size; `--layers` gives it fewer blocks: what a block needs is the difference of two such counts. Bytes
are those of a collective's result on one device. Those inside a loop (the loss goes through rows a chunk at a time) are per
turn, and counted apart.
"""

import argparse
import gc
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.collective_calls import collectives, totals


def compiled_step(recipe, tokens: int, layers: int | None) -> str:
    """The text of a recipe's compiled training step: of its joint stage, or of the one of its heads alone.

    Args:
        recipe: with its `distribution`. tokens: per row. layers: blocks of the model; None for all it has.
    """
    import numpy as np

    from keras_mtp import distribution
    from keras_mtp.backend.jax_devices import compiled_step
    from keras_mtp.data.encoding import Encoded
    from keras_mtp.models.filling import without_values
    from keras_mtp.training import head_losses, stages

    with distribution.begun(recipe.distribution.data, recipe.distribution.model) as group:
        with without_values():
            model = _empty_model(recipe, layers)
        item = Encoded(id="", ids=np.ones(tokens, "int32"), is_answer=np.arange(tokens) >= tokens // 2)
        stage = (stages.heads_alone if recipe.heads_alone else stages.joint)(model, recipe, 0)
        batches = stages.batches(stage, [item] * recipe.training.batch_size, recipe)
        losses = head_losses(model.backbone.token_embedding, stage.loss_weights)
        stage.view.compile(optimizer=stage.optimizer, loss=losses, loss_weights=stage.loss_weights)
        with without_values():
            return compiled_step(stage.view, group.distributed(batches[0]))


def _empty_model(recipe, layers: int | None):
    import keras

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
    backbone = llama.build(llama.LlamaSizes(**sizes), from_recipe._dtype(recipe))
    for variable in backbone.variables:
        variable._initializer = (
            keras.initializers.Zeros()
        )  # where a value is asked for; no random numbers are drawn
    return MTPCausalLM(
        backbone,
        prefix_length=recipe.prefix_length,
        prefix_kind=kinds[0] if kinds else "embeddings",
        prefix_start=[0],
        lora_rank=tuned.lora_rank if "lora" in tuned.methods else 0,
        lora_targets=tuned.projections,
        freeze_backbone="full" not in tuned.methods,
        heads=[from_recipe._head(recipe, k) for k in range(2, 2 + recipe.heads.count)],
    )


def counted(recipe, assignments: list[str], tokens: int, layers: int | None) -> dict:
    """One count as JSON: what was compiled, what one device has of a batch, and what it says.

    Args:
        assignments: what makes the recipe another than its file. tokens, layers: as in `compiled_step`.
    """
    import keras

    from keras_mtp.losses import default_chunk_rows
    from keras_mtp.workload import micro_batch

    devices = recipe.distribution
    found = collectives(compiled_step(recipe, tokens, layers))
    keras.utils.clear_session()  # or the model of every count stays until the end
    gc.collect()
    return {
        "recipe": recipe.name,
        "set": assignments,
        "data": devices.data,
        "model": devices.model,
        "layers": layers,
        "positions": micro_batch(recipe, tokens, 0).count,
        "chunk_rows": default_chunk_rows(),
        "collectives": totals(found, devices.data, devices.model),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="gsm8k", help="name or file (default: %(default)s)")
    parser.add_argument(
        "--mesh",
        nargs="+",
        type=_mesh,
        default=[(2, 1)],
        help="DATAxMODEL: devices of a batch, of the weights",
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", help="per device of a batch, if not the recipe's batch"
    )
    parser.add_argument("--tokens", type=int, default=192, help="per row (default: %(default)s)")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[None], help="blocks of the model, if not all"
    )
    parser.add_argument(
        "--set", dest="assignments", metavar="KEY=VALUE", nargs="+", action="extend", default=[]
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()

    devices = max(data * model for data, model in arguments.mesh)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = flags.strip()
    from keras_mtp import backend

    backend.select("jax")
    counts = [
        counted(_recipe(arguments, mesh, rows), arguments.assignments, arguments.tokens, layers)
        for mesh in arguments.mesh
        for rows in arguments.rows or [None]
        for layers in arguments.layers
    ]
    if arguments.json:
        command = " ".join(["tools/collectives.py", *sys.argv[1:]])
        print(json.dumps({"commands": [command], "counts": counts}))
        return
    for count in counts:
        _print(count)


def _mesh(text: str) -> tuple[int, int]:
    data, model = map(int, text.split("x"))
    return data, model


def _recipe(arguments: argparse.Namespace, mesh: tuple[int, int], rows: int | None):
    from keras_mtp.recipe import apply_overrides, load_recipe

    changes = [f"distribution.data={mesh[0]}", f"distribution.model={mesh[1]}"]
    if rows:
        changes.append(f"training.batch_size={rows * mesh[0]}")
    return apply_overrides(load_recipe(arguments.recipe), [*arguments.assignments, *changes])


def _print(count: dict) -> None:
    layers = "all" if count["layers"] is None else count["layers"]
    print(
        f"{count['data']} x {count['model']} devices, {layers} blocks, {count['positions']} positions a device"
    )
    for row in count["collectives"]:
        place = "per turn of a loop" if row["in_loop"] else "per step"
        size = f"{row['bytes'] / 1e6:>10.3f} MB"
        print(f"  {row['kind']:<18} {row['axis']:<6} {row['count']:>5}   {size}   {place}")


if __name__ == "__main__":
    main()
