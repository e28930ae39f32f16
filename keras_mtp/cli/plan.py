"""`keras-mtp plan`: what fits into a memory, and how long it takes."""

import json
from pathlib import Path

import click

from keras_mtp import backend, disk
from keras_mtp.cli.options import backend_option, data_option, set_option
from keras_mtp.recipe import apply_overrides, load_recipe, with_options


@click.command(short_help="What fits into a memory, and how long it takes; before anything is downloaded.")
@click.argument("name", metavar="NAME|PATH")
@click.option(
    "--model",
    metavar="NAME|PATH",
    help="A published Llama's sizes, llama3.2_1b or llama3.2_3b, or a model on this machine. Default: the recipe's.",
)
@click.option(
    "--memory", required=True, metavar="24GB", help="What may be taken of the device's: 24GB, 22.5GiB."
)
@click.option(
    "--speed",
    metavar="300TFLOPS",
    help="Operations per second that training reaches; tells the time of an epoch.",
)
@click.option(
    "--on",
    type=click.Choice(["gpu", "tpu", "accelerator", "cpu"]),
    default="gpu",
    show_default=True,
    help="Whose memory it is. All but cpu are predicted alike.",
)
@backend_option
@data_option
@click.option(
    "--examples", type=click.IntRange(min=1), help="How many are trained on, where --data does not tell."
)
@click.option("--tokens", type=click.IntRange(min=1), help="Per example: how long each is taken to be.")
@set_option("Change a field of the recipe, which is then left as it is set.")
@click.option(
    "--json", "file", metavar="FILE", type=click.Path(path_type=Path), help="Also write it, in plain numbers."
)
def plan(
    name: str,
    model: str | None,
    memory: str,
    speed: str | None,
    on: str,
    backend_name: str | None,
    data: str | None,
    examples: int | None,
    tokens: int | None,
    assignments: tuple[str, ...],
    file: Path | None,
) -> None:
    """Say what of a recipe fits into so much memory: batches, weights, and how long an epoch takes.

    A row for every way to keep the weights, changed no more than it must be: smaller micro-batches first, then
    rematerialisation; neither changes the result. Everything is predicted from sizes; nothing is downloaded or computed.
    Where nothing fits the exit code is 1.
    """
    from rich.console import Console

    from keras_mtp import plan as plans
    from keras_mtp.plan import page, quantities
    from keras_mtp.plan.model import planned_model
    from keras_mtp.plan.texts import texts

    memory_bytes = quantities.bytes_of(memory)
    flops_per_second = quantities.flops_per_second(speed) if speed else None
    chosen = with_options(load_recipe(name), {"data.source": data, "model.name": model})
    chosen = apply_overrides(chosen, assignments)
    known = planned_model(chosen.model.name)
    made = plans.make(
        chosen,
        known,
        texts(chosen, known.tokenizer, examples, tokens),
        memory_bytes=memory_bytes,
        backend=backend.chosen(backend_name),
        accelerator=on != "cpu",
        speed=flops_per_second,
        fixed=[assignment.partition("=")[0].strip() for assignment in assignments],
    )
    run = page.command(made, name, assignments, data)
    if file:
        disk.write_text(file, json.dumps(page.to_json(made, run), indent=2) + "\n")
    for line in page.notes(made):
        click.echo(line)
    Console(width=120).print(page.table(made))
    click.echo(page.explanation(made))
    if not made.chosen:
        click.echo("Nothing fits. Try a smaller model, data.max_tokens or tuning.method.")
        raise SystemExit(1)
    click.echo(f"With {made.chosen.precision} weights, the first that fit:\n{run}")
