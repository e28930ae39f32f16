#!/usr/bin/env python3
"""How training scales over devices, on paper: seconds and tokens per second of a step, and where more devices stop paying.

    tools/scaling.py                                          all counts that are here, on 1, 8 and 64 devices
    tools/scaling.py --counts FILE --mesh 16x4 --share 0.4    one recipe's, another mesh, faster computing

Arithmetic only. What is computed comes from keras_mtp/flops.py; what devices say to each other from programs compiled for
simulated devices (tools/on_paper/counts, made by tools/collectives.py); how fast either is, from the arguments.

`apart` computes first and talks then; `at once` talks while it computes, all the time. What is true lies between.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keras_mtp.errors import UserError
from keras_mtp.plan.model import planned_model
from keras_mtp.recipe import apply_overrides, load_recipe
from tools.on_paper.machine import Machine
from tools.on_paper.step import Job, Step, half, of_one_batch, step
from tools.on_paper.volumes import Counts

COUNTS = Path(__file__).resolve().parent / "on_paper/counts"
MESHES = [(1, 1), (8, 1), (4, 2), (2, 4), (1, 8), (64, 1), (16, 4), (8, 8)]
HEADER = """\
| devices | rows a step | computing | talking: data | model | talk, apart | tokens/s apart | at once | of ideal, apart |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def job(path: Path, tokens: int, labelled: float) -> Job:
    """What a file of counts is of.

    Args:
        tokens, labelled: as in `Job`.

    Raises:
        UserError: no counts, or of a model that is not here.
    """
    counts = Counts.read(path)
    recipe = apply_overrides(load_recipe(counts.recipe), list(counts.assignments))
    sizes = planned_model(recipe.model.name).sizes
    return Job(recipe=recipe, sizes=sizes, counts=counts, tokens=tokens, labelled=labelled)


def line(each: Step, alone: Step) -> str:
    """A row of the table."""
    said = [f"{each.said[axis] * 1e3:.2f} ms" if axis in each.said else "-" for axis in ("data", "model")]
    cells = [
        f"{each.data} x {each.model}",
        f"{each.rows}",
        f"{each.compute * 1e3:.0f} ms",
        *said,
        f"{each.share:.1%}",
        f"{each.tokens / each.slowest:,.0f}",
        f"{each.tokens / each.fastest:,.0f}",
        f"{each.efficiency(alone):.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def limits(work: Job, machine: Machine, share: float, rows: int) -> str:
    """Where more devices stop paying for one batch of `rows`, in a sentence for every number of devices that share weights."""
    found = []
    for model in work.counts.shares:
        steps = list(of_one_batch(work, machine, share, rows, model))
        stops, last = half(steps), steps[-1]
        said = (
            f"half of the step is no computing at {stops.data} x {stops.model}, rows for each: {stops.rows // stops.data}"
            if stops
            else f"the batch ends first: {last.data} x {last.model}, a row each, {last.share:.1%} talk, {last.tokens / last.slowest:,.0f} tokens/s"
        )
        found.append(f"- weights over {model}: {said}")
    return "\n".join(found)


def page(
    work: Job, machine: Machine, share: float, meshes: list[tuple[int, int]], rows: int, batch: int
) -> str:
    """The tables of one job at one share of the peak."""
    alone = step(work, machine, share, 1, 1, rows)
    lines = [line(step(work, machine, share, *mesh, rows * mesh[0] * mesh[1]), alone) for mesh in meshes]
    said = limits(work, machine, share, batch)
    return "\n".join(
        [
            f"At {share:.1%} of the peak:",
            "",
            HEADER,
            *lines,
            "",
            f"A batch of {batch} rows on more and more:",
            said,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--counts", type=Path, nargs="+", default=sorted(COUNTS.glob("*.json")), help="of what devices say"
    )
    parser.add_argument("--mesh", nargs="+", type=_mesh, help="DATAxMODEL; all that are counted")
    parser.add_argument(
        "--rows", type=int, default=16, help="of a batch, for every device (default: %(default)s)"
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=128,
        help="rows of the one batch that is shared out (default: %(default)s)",
    )
    parser.add_argument("--tokens", type=int, default=512, help="per row (default: %(default)s)")
    parser.add_argument(
        "--labelled",
        type=float,
        default=0.5,
        help="share of the tokens that losses read (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=float,
        nargs="+",
        default=[0.165, 0.4],
        help="of the peak that computing reaches (default: 0.165, measured once on an H200 with torch; and 0.4, a guess)",
    )
    for field in dataclasses.fields(Machine):
        option = f"--{field.name.replace('_', '-')}"
        text = f"{field.metadata['help']} (default: %(default)g)"
        parser.add_argument(option, type=type(field.default), default=field.default, help=text)
    arguments = parser.parse_args()
    machine = Machine(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Machine)})
    try:
        for path in arguments.counts:
            work = job(path, arguments.tokens, arguments.labelled)
            meshes = arguments.mesh or [mesh for mesh in MESHES if mesh[1] in work.counts.shares]
            print(f"## {path.stem}, on paper\n")
            for share in arguments.share:
                print(page(work, machine, share, meshes, arguments.rows, arguments.batch))
    except UserError as error:
        sys.exit(f"Error: {error}")


def _mesh(text: str) -> tuple[int, int]:
    data, model = map(int, text.split("x"))
    return data, model


if __name__ == "__main__":
    main()
