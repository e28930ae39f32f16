"""Does a further head help? A controlled study: arms x seeds, paired by seed and item. Read this file first.

    arms        what is compared, and the grid that every arm is tuned over
    runs        one process a run, one small file a result; finished runs are not made again
    budget      how many steps each arm gets: as many for all, or as many as fit into the same time
    statistics  paired differences with intervals over items and seeds
    page        the table, the pictures, and one sentence that says what the data support

The held-out slice of the training split decides and is what arms are compared by. The test split decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from keras_mtp.recipe import Recipe
from keras_mtp.study import budget, page, runs
from keras_mtp.study.arms import Arm, Arms
from keras_mtp.study.outcome import ArmOutcome, Outcome
from keras_mtp.study.results import Result
from keras_mtp.study.runs import Unit
from keras_mtp.study.statistics import Difference, holm, interval, mcnemar


def run(
    recipe: Recipe,
    arms: Arms,
    folder: Path,
    *,
    seeds: int,
    backend: str,
    jobs: int = 1,
    equal: str = "steps",
    progress: bool = True,
) -> Outcome:
    """Runs what is missing of a study and says what came out.

    Args:
        recipe: what all arms have in common. arms: what differs.
        folder: the study's; if it holds finished runs of the same study, they are not made again.
        seeds: 0, 1, ... so many of them, but for arms that say otherwise.
        backend: what to run on. jobs: runs at a time. equal: what all arms get alike, "steps" or "seconds". progress: whether to say on standard error what goes on.

    Returns:
        The outcome, also written to `study.md`, `study.json`, `curves.png` and `differences.png`.

    Raises:
        UserError: a run failed, or the folder holds results of another study or of other held-out examples. Finished runs
            are kept.
    """
    screen = Console(stderr=True, quiet=not progress, highlight=False)

    def told(result: Result) -> None:
        point = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in result.point.items())
        screen.print(
            f"{result.arm}, {point}, seed {result.seed}: {result.loss_before:.4f} -> {result.loss:.4f}"
        )

    def made(units: Sequence[Unit], jobs: int = 1) -> list[Result]:
        there = runs.finished(units, folder, backend)
        runs.require_same_items(there)
        missing = [each for each in units if each.name not in there]
        screen.print(f"{len(units)} runs, {len(missing)} of them to be made: {folder}")
        there |= runs.make(missing, folder, backend, jobs, told)
        runs.require_same_items(there)
        return [there[each.name] for each in units]

    def results(chosen: Sequence[tuple[Arm, Mapping[str, Any], int]]) -> list[Result]:
        return made(
            [
                runs.unit(recipe, arm, point, seed, plan.settings(arm, dict(point)))
                for arm, point, seed in chosen
            ],
            jobs,
        )

    plan = budget.as_many_seconds(recipe, arms, made) if equal == "seconds" else budget.as_many_steps()
    tuning = results(
        [(a, p, s) for a in arms.arms.values() for p in arms.points for s in range(arms.tuning_seeds)]
    )
    chosen = {name: _best(arms.points, [r for r in tuning if r.arm == name]) for name in arms.arms}
    final = results([(a, chosen[a.name], s) for a in arms.arms.values() for s in range(a.seeds or seeds)])
    outcomes = {
        name: ArmOutcome(
            arm=arm,
            point=chosen[name],
            tuning=[r for r in tuning if r.arm == name],
            results=[r for r in final if r.arm == name],
        )
        for name, arm in arms.arms.items()
    }
    differences = [_difference(outcomes[a].results, outcomes[b].results) for a, b in arms.comparisons]
    adjusted = holm([d.p for d in differences])
    outcome = Outcome(
        recipe=recipe,
        baseline=arms.baseline,
        equal=equal,
        arms=outcomes,
        differences=[replace(d, adjusted=p) for d, p in zip(differences, adjusted, strict=True)],
    )
    page.write(outcome, folder)
    return outcome


def _best(points: Sequence[Mapping[str, Any]], tuning: Sequence[Result]) -> Mapping[str, Any]:
    """The point of the grid with the lowest mean held-out loss; one at which a run diverged comes last."""

    def loss(point: Mapping[str, Any]) -> float:
        mean = float(np.mean([r.loss for r in tuning if r.point == point]))
        return math.inf if math.isnan(mean) else mean

    return min(points, key=loss)


def _difference(results: Sequence[Result], others: Sequence[Result]) -> Difference:
    """Compares two arms by the seeds that both were run with."""
    pairs = list(zip(results, others, strict=False))  # both count their seeds from 0
    nats = np.array([np.array(a.nats) - np.array(b.nats) for a, b in pairs])
    value, low, high, p = interval(nats, np.array(results[0].tokens))
    right, wrong, equal = mcnemar(
        np.array([a.scores for a, _ in pairs]), np.array([b.scores for _, b in pairs])
    )
    return Difference(
        arm=results[0].arm,
        other=others[0].arm,
        seeds=len(pairs),
        items=nats.shape[1],
        value=value,
        low=low,
        high=high,
        p=p,
        right=right,
        wrong=wrong,
        mcnemar=equal if results[0].scores else None,
    )
