"""The runs of a study: each a `keras-mtp recipe` in a process of its own, several at a time where the machine can.

A run that is finished left a file and is not made again; one that was cut off goes on.
"""

import importlib.metadata
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_mtp import __version__
from keras_mtp.disk import write_text
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, to_toml, updated
from keras_mtp.run_folder import REPORT
from keras_mtp.study import results
from keras_mtp.study.arms import Arm
from keras_mtp.study.results import Result

RESULTS, RUNS = "results", "runs"
Told = Callable[[Result], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """One run.

    Args:
        arm: what is run. point: where in the grid. seed: with which seed. recipe: all of it put together.
    """

    arm: Arm
    point: Mapping[str, Any]
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """Unique in the study, and fit for a file."""
        point = [f"{key.rpartition('.')[2]}_{value}" for key, value in self.point.items()]
        return ".".join([self.arm.name, *point, f"seed_{self.seed}"])


def unit(
    recipe: Recipe, arm: Arm, point: Mapping[str, Any], seed: int, further: Mapping[str, Any] | None = None
) -> Unit:
    """The run of an arm at a point of the grid with a seed; `further` settings come on top."""
    values = arm.settings | dict(point) | dict(further or {}) | {"training.seed": seed}
    return Unit(arm=arm, point=point, seed=seed, recipe=updated(recipe, values))


def finished(units: Iterable[Unit], folder: Path, backend: str) -> dict[str, Result]:
    """The results that are there already, by the unit's name."""
    return {
        each.name: results.read(_file(folder, each), each.recipe, backend)
        for each in units
        if _file(folder, each).exists()
    }


def require_same_items(found: Mapping[str, Result]) -> None:
    """Raises a `UserError` if some results are of other held-out examples than the others: nothing can be paired then.

    Args:
        found: results by the unit's name.
    """
    for (name, one), (other_name, other) in itertools.pairwise(found.items()):
        if (one.items, one.tokens) != (other.items, other.tokens):
            raise UserError(
                "All results of a study must be of the same held-out examples, since arms are compared item by item. Received: "
                f"{name} with {_examples(one)}, {other_name} with {_examples(other)}. If an arm changes the data, let it not; if the "
                "data were changed since, give the study another folder with --run, or remove the results made before."
            )


def _examples(result: Result) -> str:
    return f"{len(result.tokens)} examples of {sum(result.tokens)} answer tokens (SHA-256 {result.items[:12]}...)"


def make(units: Iterable[Unit], folder: Path, backend: str, jobs: int, told: Told) -> dict[str, Result]:
    """Makes runs, and gives their results by the unit's name.

    Args:
        folder: the study's. backend: what to run on. jobs: runs at a time. told: called with every result as it comes.

    Raises:
        UserError: a run failed. Those that had begun are finished, and kept, first.
    """
    (folder / RESULTS).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_make, each, folder, backend, jobs): each.name for each in units}
        try:
            for future in as_completed(waiting):
                told(future.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {name: future.result() for future, name in waiting.items()}


def _make(each: Unit, folder: Path, backend: str, jobs: int) -> Result:
    run = folder / RUNS / each.name
    recipe, log = run / "study.toml", run / "log.txt"
    # An arm whose rate is too high is a result too.
    wanted = to_toml(updated(each.recipe, {"training.on_divergence": "continue"}))
    begun = recipe.is_file() and recipe.read_text(encoding="utf-8") == wanted
    if not begun or (run / REPORT).exists():
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        write_text(recipe, wanted)
    command = [
        sys.executable,
        "-m",
        "keras_mtp",
        "recipe",
        str(recipe),
        "--backend",
        backend,
        "--run",
        str(run),
        "--quiet",
    ]
    with log.open("w", encoding="utf-8") as said:
        code = subprocess.run(command, stdout=said, stderr=said, env=_environment(jobs)).returncode
    if code:
        last = (
            log.read_text(encoding="utf-8", errors="replace")
            .strip()
            .rpartition("\n")[2]
            .removeprefix("Error: ")
        )
        raise UserError(
            f"The run {each.name} ended with exit code {code}. {last:.300} The rest of what it said: {log}."
        )
    result = results.collect(
        run, arm=each.arm.name, point=each.point, recipe=each.recipe, versions=_versions(backend)
    )
    results.write(result, _file(folder, each))
    shutil.rmtree(run)
    return result


def _versions(backend: str) -> dict[str, str]:
    # A checkout need not be installed to be run.
    return {"keras_mtp": __version__} | {
        name: importlib.metadata.version(name) for name in ("keras", "keras_hub", backend)
    }


def _environment(jobs: int) -> dict[str, str]:
    """Runs beside each other must not each take the whole machine."""
    shared = {
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // jobs, 1)),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # JAX on a GPU takes three quarters of its memory otherwise
    }
    return (shared if jobs > 1 else {}) | os.environ


def _file(folder: Path, each: Unit) -> Path:
    return folder / RESULTS / f"{each.name}.json"
