"""The memory that runs are predicted to take beside what they take, and the factors behind the prediction.

    .venv/bin/python tools/measure_memory.py --quick                          # two short runs per backend
    .venv/bin/python tools/measure_memory.py --data FOLDER --json memory.json # all of them, one at a time: about an hour
    .venv/bin/python tools/measure_memory.py --reuse memory.json --fit        # write keras_mtp/memory_factors.toml anew

Every run is a process of its own: a recipe from start to finish with a few steps, its peak of resident memory less that
after imports. JAX compiles everything anew. Factors are fitted to the runs marked `fit` alone: least squares of the logarithm
of predicted over measured, each factor drawn a little towards 1 (in bfloat16 towards float32's), so that parts which no run
tells apart stay at what their shapes say. Runs marked `check` had no part in that.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tomli_w
from rich.table import Table
from scipy.optimize import least_squares

from keras_mtp.backend import BACKENDS
from keras_mtp.memory_plan import FACTORS, PARTS
from tools.benchmarks.screen import console

FEW_STEPS = (
    *("training.steps=3", "heads.warmup_steps=2", "training.compile=false"),
    *("evaluation.limit=8", "evaluation.test_limit=0", "evaluation.batch_size=8"),
)
PROGRAM_BYTES = 3e8  # what the program itself is drawn towards
PULL = 0.05  # how much a factor off by 1 weighs beside a prediction that is off by so much
SAID = "measured: "


@dataclass(frozen=True)
class Case:
    """A run: its settings, as `--set` takes them, and whether factors are fitted to it."""

    name: str
    settings: str
    fit: bool = True


CASES = (
    Case("prefix, batch 4", "heads.count=0 training.batch_size=4 data.max_tokens=128"),
    Case("prefix, batch 16", "heads.count=0 training.batch_size=16 data.max_tokens=160"),
)
QUICK = CASES[:1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="builtin", help="builtin, hub, or a folder with GSM8K's files")
    parser.add_argument("--model", default="smollm2-135m", help="a model's name or path")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--cases", nargs="+", help="only those with one of these texts in their names")
    parser.add_argument("--quick", action="store_true", help="only the smallest cases")
    parser.add_argument("--fit", action="store_true", help="write the factors that fit best")
    parser.add_argument("--reuse", type=Path, help="runs measured before, which are not made again")
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a run's process is told
    options = parser.parse_args()
    if options.one:
        print(SAID + json.dumps(run_one(json.loads(options.one))))
        return
    known = json.loads(options.reuse.read_text()) if options.reuse else []
    rows = [*known, *measured(options, {(row["backend"], row["case"]) for row in known})]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if options.fit:
        FACTORS.write_text(written(fitted(rows)), encoding="utf-8")
    show(rows)


def run_one(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """A run in this process, its backend already chosen: its peak, and what was counted of it by part."""
    from keras_mtp import backend

    backend.select(wanted["backend"])
    from keras_mtp import memory_plan, pipeline
    from keras_mtp.recipe import apply_overrides, load_recipe

    recipe = apply_overrides(load_recipe("gsm8k"), wanted["settings"])
    with tempfile.TemporaryDirectory() as folder:
        report = pipeline.run(recipe, Path(folder) / "run", progress=False)
    return {
        "dtype": recipe.training.dtype,
        "peak_bytes": report.peak_bytes,
        "counted": memory_plan.counted(report.predicted.workload),
    }


def measured(options: argparse.Namespace, known: set[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Makes the runs, one after another."""
    progress = console(stderr=True)
    for case in QUICK if options.quick else CASES:
        if options.cases and not any(text in case.name for text in options.cases):
            continue
        for backend in options.backends:
            if (backend, case.name) in known:
                continue
            inputs = [f"data.source={options.data}", f"model.name={options.model}"]
            found = _in_a_process(backend, [*FEW_STEPS, *inputs, *case.settings.split()])
            progress.print(f"{backend}, {case.name}: {found['peak_bytes'] / 1e9:.2f} GB")
            yield {"backend": backend, "case": case.name, "fit": case.fit, **found}


def _in_a_process(backend: str, settings: Sequence[str]) -> dict[str, Any]:
    wanted = json.dumps({"backend": backend, "settings": [*settings, "training.memory_check=false"]})
    with tempfile.TemporaryDirectory() as programs:
        done = subprocess.run(
            [sys.executable, __file__, "--one", wanted],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": programs},
            capture_output=True,
            text=True,
        )
    for line in done.stdout.splitlines():
        if line.startswith(SAID):
            return json.loads(line.removeprefix(SAID))
    sys.exit(f"Error: the run failed.\n{done.stderr[-2000:]}")


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Factors by backend and dtype, from the rows that are to be fitted to."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for backend in BACKENDS:
        start, found[backend] = np.ones(1 + len(PARTS)), {}
        for dtype in ("float32", "mixed_bfloat16"):
            used = [r for r in rows if r["fit"] and (r["backend"], r["dtype"]) == (backend, dtype)]
            start = _fit(used, start)
            named = zip(("program", *PARTS), start, strict=True)
            found[backend][dtype] = {
                name: round(float(f * (PROGRAM_BYTES if name == "program" else 1)), 3) for name, f in named
            }
    return found


def _fit(rows: Sequence[Mapping[str, Any]], towards: np.ndarray) -> np.ndarray:
    """The factors, `program` first in units of `PROGRAM_BYTES`."""
    tables = [
        np.array([[PROGRAM_BYTES, *(parts.get(p, 0) for p in PARTS)] for parts in r["counted"].values()])
        for r in rows
    ]
    peaks = np.array([r["peak_bytes"] for r in rows])

    def off(factors: np.ndarray) -> np.ndarray:
        predicted = np.array([(table @ factors).max() for table in tables])
        return np.concatenate([np.log(predicted / peaks), PULL * (factors - towards)])

    return least_squares(off, towards, bounds=(0, np.inf), x_scale=0.1).x


def written(factors: Mapping[str, Any]) -> str:
    """The factors as a file."""
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        "# What a backend keeps of every part that memory_plan.py counts; `program` is bytes. Not written by hand:\n"
        f"# tools/measure_memory.py fitted it to measured peaks of resident memory, on a CPU, {today}.\n\n"
        + tomli_w.dumps(factors)
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of what was predicted, with the factors there are now, and what was measured."""
    from keras_mtp import memory_plan

    table = Table("backend", "run", "used for", "predicted GB", "measured GB", "ratio")
    for row in rows:
        factors = memory_plan.factors(row["backend"], row["dtype"])
        predicted = max(sum(p.values()) for p in memory_plan.weighed(row["counted"], factors).values())
        ratio = predicted / row["peak_bytes"]
        use = "fit" if row["fit"] else "check"
        numbers = f"{predicted / 1e9:.2f}", f"{row['peak_bytes'] / 1e9:.2f}", f"{ratio:.2f}"
        table.add_row(row["backend"], row["case"], use, *numbers)
    console().print(table)


if __name__ == "__main__":
    main()
