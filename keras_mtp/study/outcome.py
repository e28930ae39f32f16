"""What came out of a study, before it is put on a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_mtp.disk import finite
from keras_mtp.recipe import Recipe
from keras_mtp.study.arms import Arm
from keras_mtp.study.results import Result
from keras_mtp.study.statistics import Difference


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmOutcome:
    """One arm.

    Args:
        arm: what it is. point: the point of the grid that its held-out loss chose.
        tuning: results over the grid. results: at that point, seed 0, 1, ...
    """

    arm: Arm
    point: Mapping[str, Any]
    tuning: Sequence[Result]
    results: Sequence[Result]

    @property
    def losses(self) -> np.ndarray:
        """Head_1's held-out loss by seed, nats per token."""
        return np.array([result.loss for result in self.results])

    @property
    def steps(self) -> int:
        """Joint steps that its runs were to make."""
        return int(self.results[0].recipe["training"]["steps"])

    @property
    def score(self) -> float | None:
        """Mean of the task's score over items and seeds; None if nothing was answered."""
        scores = [result.scores for result in self.results]
        return float(np.mean(scores)) if scores[0] else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A whole study.

    Args:
        recipe: what all arms have in common. baseline: the arm that the others are compared with.
        equal: what all arms got alike, "steps" or "seconds".
        arms: by name. differences: all comparisons, the baseline's first.
    """

    recipe: Recipe
    baseline: str
    equal: str = "steps"
    arms: Mapping[str, ArmOutcome]
    differences: Sequence[Difference]

    @property
    def first(self) -> Result:
        """Any result: for what all have in common."""
        return self.arms[self.baseline].results[0]

    @property
    def at_the_edge(self) -> list[str]:
        """Arms that chose the first or the last of the values tried for a number: a better one may lie beyond."""
        return [
            name
            for name, arm in self.arms.items()
            if any(_is_edge(value, {r.point[key] for r in arm.tuning}) for key, value in arm.point.items())
        ]

    @property
    def sentence(self) -> str:
        """What the data support, about all arms that were compared with the baseline."""
        compared = [d for d in self.differences if d.other == self.baseline]
        seen = {
            verdict: [d for d in compared if d.verdict == verdict]
            for verdict in ("lower", "higher", "no difference seen", "one seed", "diverged")
        }
        parts = []
        for verdict in ("lower", "higher"):
            if seen[verdict]:
                parts.append(
                    f"a {verdict} held-out loss of head_1 with {_listed(map(_with_interval, seen[verdict]))}"
                )
        if seen["no difference seen"]:
            bounded = [f"{d.arm} ({d.low:+.4f} to {d.high:+.4f})" for d in seen["no difference seen"]]
            parts.append(f"no difference seen, the number of comparisons counted, with {_listed(bounded)}")
        if seen["one seed"]:
            single = _listed(f"{d.arm} ({d.value:+.4f})" for d in seen["one seed"])
            parts.append(f"one seed, from which nothing follows, with {single}")
        if names := [d.arm for d in seen["diverged"]]:
            parts.append(f"no result with {_listed(names)}, which diverged")
        return f"Compared with {self.baseline}, on {compared[0].items} held-out items: {'; '.join(parts)}."

    def to_json(self) -> dict[str, Any]:
        """The content of `study.json`."""
        content = {
            "data": self.first.data,
            "model": self.first.model,
            "backend": self.first.backend,
            "baseline": self.baseline,
            "equal": self.equal,
            "sentence": self.sentence,
            "arms": {
                name: {
                    "settings": arm.arm.settings,
                    "point": dict(arm.point),
                    "seeds": len(arm.results),
                    "steps": arm.steps,
                    "losses": arm.losses.tolist(),
                    "score": arm.score,
                }
                for name, arm in self.arms.items()
            },
            "differences": [
                {
                    "arm": d.arm,
                    "other": d.other,
                    "seeds": d.seeds,
                    "items": d.items,
                    "difference": d.value,
                    "interval": [d.low, d.high],
                    "p": d.p,
                    "p_holm": d.adjusted,
                    "verdict": d.verdict,
                    "mcnemar": None
                    if d.mcnemar is None
                    else {"right": d.right, "wrong": d.wrong, "p": d.mcnemar},
                }
                for d in self.differences
            ],
        }
        return finite(content)


def _is_edge(value: Any, tried: set[Any]) -> bool:
    return isinstance(value, int | float) and len(tried) > 1 and value in (min(tried), max(tried))


def _with_interval(d: Difference) -> str:
    return f"{d.arm} ({d.value:+.4f} nats per token, 95 % interval {d.low:+.4f} to {d.high:+.4f}, {d.seeds} seeds)"


def _listed(items: Any) -> str:
    *rest, last = items
    return f"{', '.join(rest)} and {last}" if rest else last
