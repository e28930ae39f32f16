"""The memory that runs are predicted to take beside what they take, and the factors behind the prediction.

    .venv/bin/python tools/measure_memory.py --quick                          # two short runs per backend
    .venv/bin/python tools/measure_memory.py --data FOLDER --json memory.json # all of them, one at a time: about an hour
    .venv/bin/python tools/measure_memory.py --reuse memory.json --fit        # write keras_mtp/memory_plan/factors.toml anew

Every run is a process of its own: a recipe from start to finish with a few steps, its peak of resident memory less that
after imports, until training begins, until it ends, and in all. JAX compiles everything anew; torch does not compile. Factors are fitted to the runs marked `fit` alone: least squares of the logarithm
of predicted over measured, each factor drawn a little towards 1 (in bfloat16 towards float32's), so that parts which no run
tells apart stay at what their shapes say. Runs marked `check` had no part in that.

GB predicted / measured (ratio), SmolLM2-135M on GSM8K or the generated problems, two CPU cores, keras 3.15.1, jax 0.10.2,
tensorflow 2.21.0, torch 2.13.0:

    run                                              jax                  tensorflow           torch
    prefix, 4 x 128                           fit    1.68 / 1.65 (1.02)   1.88 / 1.91 (0.98)   1.30 / 1.17 (1.11)
    full, 4 x 192                             fit    5.17 / 5.09 (1.02)   5.36 / 6.00 (0.89)   5.21 / 5.13 (1.02)
    prefix, a head, 8 x 256                   fit    4.10 / 4.17 (0.98)   4.22 / 4.00 (1.06)   3.00 / 3.12 (0.96)
    prefix, a head, answers, 8 x 192          fit    3.09 / 3.09 (1.00)   3.75 / 3.77 (1.00)   2.14 / 2.08 (1.03)
    lora on all, 2 linear heads, 4 x 4 x 192  fit    3.14 / 3.15 (0.99)   3.85 / 4.41 (0.87)   2.71 / 2.74 (0.99)
    prefix, a head, bfloat16, 16 x 192        fit    5.06 / 5.22 (0.97)                        3.63 / 3.69 (0.98)
    prefix, a head, remat, 16 x 256           fit                                              1.85 / 2.12 (0.87)
    gsm8k as it is, 6 steps                   check  3.30 / 3.33 (0.99)   3.90 / 4.07 (0.96)   2.36 / 2.39 (0.98)
    lora, 4 x 192, answers                    check  2.29 / 2.24 (1.02)                        1.75 / 1.66 (1.06)
    prefix, 8 x 192, 2 lengths                check  2.77 / 2.83 (0.98)   2.95 / 2.83 (1.04)   2.03 / 1.90 (1.07)
    prefix, a head, 3 lengths, 12 steps       check  3.34 / 3.32 (1.00)
    prefix, 4 x 4 x 192                       check  2.01 / 2.04 (0.99)

(8 x 256, bfloat16, remat and those with several lengths were measured by an older version of the code, which freed less between
phases; "gsm8k as it is" with 3 steps on TensorFlow and torch.) Not measured yet: the other runs below; remat but on torch;
bfloat16 on TensorFlow, which has float32's factors; large batches in evaluation. What is measured is what is resident: on a
machine that is short of memory it is too little, by a gigabyte once.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import tomli_w
from rich.table import Table
from scipy.optimize import least_squares

from keras_mtp.backend import BACKENDS
from keras_mtp.flops import Positions, Sizes
from keras_mtp.memory_plan import FACTORS, PARTS, Workload, counted
from tools.benchmarks.alone import in_a_process, say
from tools.benchmarks.screen import console

FEW_STEPS = (
    *("training.steps=2", "heads.warmup_steps=1", "training.compile=false", "data.buckets=1"),
    *("evaluation.limit=1", "evaluation.test_limit=0", "evaluation.batch_size=4"),
)
PROGRAM_BYTES = 3e8  # what the program itself is drawn towards
PULL = (
    0.2  # a factor off by 1 weighs as much as a prediction off by this; with less, parts trade places freely
)
# What is drawn towards 0 and not towards 1: memory of answers goes back to the system, and torch compiles nothing here.
NOTHING = {"jax": ("left",), "torch": ("left", "compiled")}
BEFORE = ("loading", "evaluation", "generation")  # phases before training
SMALL_BYTES = 1e8


@dataclass(frozen=True)
class Case:
    """A run: its settings, as `--set` takes them, and whether factors are fitted to it."""

    name: str
    settings: str
    fit: bool = True


ANSWERS = "evaluation.test_limit=1 evaluation.max_new_tokens=24"
CASES = (
    Case("prefix, 4 x 128", "heads.count=0 training.batch_size=4 data.max_tokens=128"),
    Case("full, 4 x 192", "heads.count=0 tuning.method=full training.batch_size=4 data.max_tokens=192"),
    Case("prefix, a head, 8 x 256", "heads.count=1 training.batch_size=8 data.max_tokens=256"),
    Case(
        "prefix, a head, answers, 8 x 192",
        f"heads.count=1 training.batch_size=8 data.max_tokens=192 data.buckets=3 {ANSWERS}",
    ),
    Case(
        "lora on all, 2 linear heads, 4 x 4 x 192",
        "heads.count=2 heads.kind=linear tuning.method=lora tuning.lora_targets=all training.batch_size=16 "
        "training.accumulation=4 data.max_tokens=192",
    ),
    Case(
        "prefix, a head, bfloat16, 16 x 192",
        "heads.count=1 training.dtype=mixed_bfloat16 training.batch_size=16 data.max_tokens=192",
    ),
    Case(
        "prefix, a head, remat, 16 x 256",
        "heads.count=1 training.remat=true training.batch_size=16 data.max_tokens=256",
    ),
    Case(
        "gsm8k as it is, 6 steps",
        "data.buckets=0 training.steps=4 heads.warmup_steps=2 evaluation.limit=32 evaluation.batch_size=32 "
        "evaluation.test_limit=32 evaluation.max_new_tokens=60",
        fit=False,
    ),
    Case(
        "lora, 4 x 192, answers",
        f"heads.count=0 tuning.method=lora training.batch_size=4 data.max_tokens=192 {ANSWERS}",
        fit=False,
    ),
    Case(
        "prefix, 4 x 4 x 192",
        "heads.count=0 training.batch_size=16 training.accumulation=4 data.max_tokens=192",
        fit=False,
    ),
    Case(
        "prefix, 8 x 192, 2 lengths",
        "heads.count=0 training.batch_size=8 data.max_tokens=192 training.steps=3 data.buckets=3",
        fit=False,
    ),
    Case(
        "prefix, a head, 3 lengths, 12 steps",
        "heads.count=1 training.batch_size=8 data.max_tokens=192 training.steps=12 heads.warmup_steps=4 data.buckets=3",
        fit=False,
    ),
    Case(
        "prefix_kv, 2 heads, answers, 8 x 160",
        f"heads.count=2 tuning.method=prefix_kv training.batch_size=8 data.max_tokens=160 {ANSWERS}",
        fit=False,
    ),
    Case(
        "full, a head, bfloat16, 8 x 128",
        "heads.count=1 tuning.method=full training.dtype=mixed_bfloat16 training.batch_size=8 data.max_tokens=128",
        fit=False,
    ),
    Case(
        "lora, a head, bfloat16, 8 x 256",
        "heads.count=1 tuning.method=lora training.dtype=mixed_bfloat16 training.batch_size=8 data.max_tokens=256",
        fit=False,
    ),
    Case(
        "prefix, a head, int8, answers, 8 x 192",
        f"heads.count=1 model.quantize=int8 training.dtype=mixed_bfloat16 training.batch_size=8 data.max_tokens=192 {ANSWERS}",
        fit=False,
    ),
    Case(
        "prefix, 2 heads, remat, 8 x 192",
        "heads.count=2 training.remat=true training.batch_size=8 data.max_tokens=192",
        fit=False,
    ),
    Case(
        "judged in batches of 32",
        "heads.count=0 training.batch_size=1 data.max_tokens=256 evaluation.batch_size=32",
        fit=False,
    ),
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
        say(run_one(json.loads(options.one)))
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
    import keras

    from keras_mtp import memory, pipeline
    from keras_mtp.recipe import apply_overrides, load_recipe

    class Follow(keras.callbacks.Callback):
        """The peak until training first began, and until it last ended."""

        clock, began_bytes, ended_bytes = memory.Clock(), 0, 0

        def on_train_begin(self, logs=None):
            self.began_bytes = self.began_bytes or self.clock.peak_bytes

        def on_train_end(self, logs=None):
            self.ended_bytes = self.clock.peak_bytes

    recipe, follow = apply_overrides(load_recipe("gsm8k"), wanted["settings"]), Follow()
    with tempfile.TemporaryDirectory() as folder:
        report = pipeline.run(recipe, Path(folder) / "run", progress=False, callbacks=[follow])
    return {
        "dtype": recipe.training.dtype,
        "peak_bytes": report.peak_bytes,
        "began_bytes": follow.began_bytes,
        "ended_bytes": follow.ended_bytes,
        "workload": dataclasses.asdict(report.predicted.workload),
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
    wanted = {"backend": backend, "settings": [*settings, "training.memory_check=false"]}
    return in_a_process(__file__, wanted)


def fitted(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Factors by backend and dtype, from the rows that are to be fitted to; a backend without any keeps those it has."""
    found: dict[str, dict[str, dict[str, float]]] = tomllib.loads(FACTORS.read_text(encoding="utf-8"))
    for backend in {row["backend"] for row in rows if row["fit"]}:
        start = np.array([part not in NOTHING.get(backend, ()) for part in ("program", *PARTS)], float)
        found[backend] = {}
        for dtype in ("float32", "mixed_bfloat16"):
            used = [r for r in rows if r["fit"] and (r["backend"], r["dtype"]) == (backend, dtype)]
            start = _fit(used, start)
            rounded = (round(float(factor), 3) for factor in start)
            found[backend][dtype] = dict(zip(("program", *PARTS), rounded, strict=True))
            found[backend][dtype]["program"] *= PROGRAM_BYTES
    return found


def _fit(rows: Sequence[Mapping[str, Any]], towards: np.ndarray) -> np.ndarray:
    """The factors, `program` first in units of `PROGRAM_BYTES`."""
    cases = []
    for row in rows:
        phases = _counted(row)
        before = [phases[name] for name in BEFORE if name in phases]
        unsaved = [parts for name, parts in phases.items() if name != "saving"]
        cases += [(_table(phases.values()), row["peak_bytes"]), (_table(unsaved), row["ended_bytes"])]
        # Keras may make an optimizer before it says that training begins: this is what came before only if it is small.
        if row["began_bytes"] and phases["training"]["optimizer"] < SMALL_BYTES:
            cases.append((_table(before), row["began_bytes"]))

    def off(factors: np.ndarray) -> np.ndarray:
        of_peaks = [np.log((table @ factors).max() / peak) for table, peak in cases]
        return np.concatenate([of_peaks, PULL * (factors - towards)])

    return least_squares(off, towards, bounds=(0, np.inf), x_scale=0.1).x


def _counted(row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Anew from what the run was, so that a run measured before stays of use when something else is counted."""
    of_run = row["workload"]
    nested = {"sizes": Sizes(**of_run["sizes"]), "lora_targets": tuple(of_run["lora_targets"])}
    nested |= {name: Positions(**of_run[name]) for name in ("training", "held_out")}
    return counted(Workload(**of_run | nested))


def _table(phases: Iterable[Mapping[str, float]]) -> np.ndarray:
    """(phases, parts) bytes, `program` first."""
    return np.array([[PROGRAM_BYTES, *(parts.get(part, 0) for part in PARTS)] for parts in phases])


def written(factors: Mapping[str, Any]) -> str:
    """The factors as a file."""
    today = datetime.datetime.now(datetime.UTC).date()
    return (
        "# What a backend keeps of every part that memory_plan/ counts; `program` is bytes. Not written by hand:\n"
        f"# tools/measure_memory.py fitted it to measured peaks of resident memory, on a CPU, torch without\n# torch.compile, {today}.\n\n"
        + tomli_w.dumps(factors)
    )


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of what was predicted, with the factors there are now, and what was measured."""
    from keras_mtp import memory_plan

    table = Table("backend", "run", "used for", "predicted GB", "measured GB", "ratio")
    for row in rows:
        factors = memory_plan.factors(row["backend"], row["dtype"])
        predicted = max(sum(p.values()) for p in memory_plan.weighed(_counted(row), factors).values())
        ratio = predicted / row["peak_bytes"]
        use = "fit" if row["fit"] else "check"
        numbers = f"{predicted / 1e9:.2f}", f"{row['peak_bytes'] / 1e9:.2f}", f"{ratio:.2f}"
        table.add_row(row["backend"], row["case"], use, *numbers)
    console().print(table)


if __name__ == "__main__":
    main()
