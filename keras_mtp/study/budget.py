"""Equal time for all arms, on request: how many joint steps each of them gets.

A further head makes a step longer, and its warm-up comes on top; with as many steps for all, its arm trains longer than the
baseline. Here every arm gets as many steps as fit into the baseline's time:

    budget        warm-up steps x seconds + joint steps x seconds     of the baseline, with the recipe's number of steps
    joint steps   (budget - warm-up steps x seconds) / seconds        of the arm, rounded down

The seconds of a step are the median of a short run of every arm, one after another with nothing beside them; evaluations
are not counted. Only the ratios of these times matter. They are noisy, so they are measured once, kept with the results, and the
steps found stand in every run's recipe: a study that goes on has the same steps. A grid over learning rates changes no
time; for whatever else a grid holds, each value is measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, updated
from keras_mtp.study.arms import Arm, Arms, Settings
from keras_mtp.study.results import Result
from keras_mtp.study.runs import Unit, unit

MEASURED_STEPS = 12  # of the heads' warm-up, and as many joint ones
Made = Callable[[Sequence[Unit]], list[Result]]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How many joint steps each arm has, at every point of the grid; without any, as many as its recipe says.

    Args:
        steps: by arm and by what of the point changes the time.
    """

    steps: Mapping[tuple[str, str], int]

    def settings(self, arm: Arm, point: Settings) -> Settings:
        """What to set besides the arm's own settings and the point."""
        return {"training.steps": self.steps[_key(arm, point)]} if self.steps else {}


def as_many_steps() -> Budget:
    """Every arm has the steps of its recipe."""
    return Budget(steps={})


def as_many_seconds(recipe: Recipe, arms: Arms, made: Made) -> Budget:
    """Every arm has as many steps as fit into the baseline's time.

    Args:
        made: makes runs, alone, or finds them made.

    Raises:
        UserError: the arms or the grid set the steps; or an arm's warm-up alone takes as long as the baseline.
    """
    for settings in (*(arm.settings for arm in arms.arms.values()), arms.grid):
        if "training.steps" in settings:
            raise UserError(
                "`training.steps` must not be set by an arm or the grid where arms get equal seconds: it is what is found. "
                f"Received: training.steps={settings['training.steps']}."
            )
    timed = {_key(arm, point): (arm, _timed(point)) for arm in arms.arms.values() for point in arms.points}
    measured = dict(zip(timed, made([_measuring(recipe, *each) for each in timed.values()]), strict=True))
    steps = {}
    for key, (arm, point) in timed.items():
        baseline = arms.arms[arms.baseline]
        own = _seconds(unit(recipe, baseline, point, 0).recipe, measured[_key(baseline, point)])
        budget = own["warmup"] + recipe.training.steps * own["joint"]
        seconds = _seconds(unit(recipe, arm, point, 0).recipe, measured[key])
        steps[key] = (
            recipe.training.steps if arm is baseline else int((budget - seconds["warmup"]) / seconds["joint"])
        )
        if steps[key] < 1:
            raise UserError(
                f"`heads.warmup_steps` must leave time for joint steps. Received: the arm {arm.name}, whose warm-up takes "
                f"{seconds['warmup']:.1f} s where the whole baseline takes {budget:.1f} s. Lower it, or raise training.steps."
            )
    return Budget(steps=steps)


def _measuring(recipe: Recipe, arm: Arm, point: Settings) -> Unit:
    """A short run, which no name of an arm can be taken for."""
    full = unit(recipe, replace(arm, name=f"seconds.{arm.name}"), point, 0)
    short = {
        "training.steps": MEASURED_STEPS,
        "heads.warmup_steps": MEASURED_STEPS if full.recipe.heads.warmup_steps else 0,
        "heads.warmup_patience": 0,
        "evaluation.every": MEASURED_STEPS,
        "evaluation.test_limit": 0,
    }
    return replace(full, recipe=updated(full.recipe, short))


def _seconds(recipe: Recipe, measured: Result) -> dict[str, float]:
    """Of the whole warm-up, were it to take all its steps, and of one joint step."""
    each = measured.step_seconds
    return {
        "warmup": recipe.heads.warmup_steps * each.get("warmup", 0.0),  # a run without heads has none
        "joint": each["joint"],
    }


def _timed(point: Mapping[str, Any]) -> Settings:
    return {key: value for key, value in point.items() if not key.endswith("learning_rate")}


def _key(arm: Arm, point: Mapping[str, Any]) -> tuple[str, str]:
    return arm.name, repr(_timed(point))
