"""The arms of a study, read from TOML: what differs from the recipe in each, and what every arm is tuned over.

baseline = "none"                          the arm that the others are compared with
pairs = [["transformer", "placebo"]]       further comparisons
tuning_seeds = 1                           the grid is run with so many seeds; its best point with all

[grid]                                     the same for every arm, since an untuned arm makes any gain meaningless
training.learning_rate = [2e-3, 4e-3]

[arms.none]
heads.count = 0

[arms.transformer]
heads.count = 1
seeds = 5                                  where an arm is to have more seeds, or fewer, than --seeds says
"""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, flat, parse_toml, read_text, shipped_files, updated

Settings = dict[str, Any]  # {"heads.count": 1}: fields of a recipe by dotted key
_MOST_ARMS, _MOST_POINTS = 100, 1000  # each is a run at least
_KEYS = ("baseline", "pairs", "tuning_seeds", "grid", "arms")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the things compared.

    Args:
        name: letters, digits, `_` and `-`. settings: what differs from the study's recipe.
        seeds: how many seeds it is run with; None for as many as the study says.
    """

    name: str
    settings: Settings
    seeds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Arms:
    """All arms, and how they are compared.

    Args:
        arms: by name, in the order of the file. baseline: the name of the one that the others are compared with.
        pairs: further comparisons, (arm, the arm it is compared with).
        grid: values to try by key. tuning_seeds: with how many seeds.
    """

    arms: Mapping[str, Arm]
    baseline: str
    pairs: tuple[tuple[str, str], ...] = ()
    grid: Mapping[str, list[Any]]
    tuning_seeds: int = 1

    @property
    def points(self) -> list[Settings]:
        """Every combination of the grid's values; one that sets nothing if there is no grid."""
        return [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]

    @property
    def comparisons(self) -> list[tuple[str, str]]:
        """(arm, the arm it is compared with): all with the baseline, then the further pairs."""
        return [(name, self.baseline) for name in self.arms if name != self.baseline] + list(self.pairs)


def available_arms() -> dict[str, Path]:
    """The files of arms that come with the package, by name."""
    return shipped_files("arms")


def load_arms(name_or_path: str | Path, recipe: Recipe) -> Arms:
    """Reads arms by the name of a file that comes with the package, or from a file.

    Args:
        recipe: what they change; every arm must be a recipe that can be run.

    Raises:
        UserError: no such file, or its text does not describe arms.
    """
    known = available_arms()
    path = known.get(str(name_or_path), Path(name_or_path))
    _require(
        path.is_file(),
        f"No arms named {str(name_or_path)!r}, nor a file that can be read. Available: {', '.join(known)}.",
    )
    tables = parse_toml(read_text(path, "An arms file"), str(path))
    try:
        arms = _arms(tables)
        for arm in arms.arms.values():
            for point in arms.points:
                _require_same_questions(recipe, arm.settings | point)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return arms


def _require_same_questions(recipe: Recipe, settings: Settings) -> None:
    changed = updated(recipe, settings).evaluation
    for key in ("limit", "test_limit"):
        now = getattr(recipe.evaluation, key)
        _require(
            getattr(changed, key) == now,
            f"`evaluation.{key}` must be the same for every arm, since arms are compared item by item. Received: "
            f"{getattr(changed, key)}, where the study's recipe has {now}. Set it with --set.",
        )


def _arms(tables: Mapping[str, Any]) -> Arms:
    for key in tables:
        _require(key in _KEYS, f"Unknown key `{key:.80}`. An arms file has {', '.join(_KEYS)}.")
    arms = {name: _arm(name, values) for name, values in _table(tables, "arms").items()}
    _require(len(arms) > 1, f"`arms` must hold at least two arms. Received: {len(arms)}.")
    _require(len(arms) <= _MOST_ARMS, f"`arms` must hold at most {_MOST_ARMS} arms. Received: {len(arms)}.")
    baseline = tables.get("baseline", next(iter(arms)))
    pairs = tables.get("pairs", [])
    _require(
        isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs),
        f'`pairs` must look like [["a", "b"]]. Received: {pairs!r:.80}.',
    )
    for name in [baseline, *itertools.chain(*pairs)]:
        _require(
            isinstance(name, str) and name in arms,
            f"There is no arm {name!r:.80} to compare with. The arms: {', '.join(arms)}.",
        )
    grid = dict(flat(_table(tables, "grid")))
    for key, values in grid.items():
        _require(
            isinstance(values, list) and bool(values),
            f"`grid.{key}` must be a list of values to try. Received: {values!r:.80}.",
        )
        for arm in arms.values():
            _require(key not in arm.settings, f"`{key}` is in the grid and in the arm {arm.name}. Keep one.")
    points = math.prod(map(len, grid.values()))
    _require(points <= _MOST_POINTS, f"`grid` must have at most {_MOST_POINTS} points. Received: {points}.")
    return Arms(
        arms=arms,
        baseline=baseline,
        pairs=tuple((a, b) for a, b in pairs),
        grid=grid,
        tuning_seeds=_count(tables.get("tuning_seeds", 1), "tuning_seeds"),
    )


def _arm(name: str, values: Any) -> Arm:
    _require(
        bool(re.fullmatch(r"[\w-]+", name)),
        f"An arm's name must be letters, digits, `_` and `-`: {name!r:.80}.",
    )
    _require(isinstance(values, dict), f"`arms.{name}` must be a table. Received: {values!r:.80}.")
    settings = dict(flat({key: value for key, value in values.items() if key != "seeds"}))
    _require("training.seed" not in settings, f"`arms.{name}` must not set training.seed: the study does.")
    seeds = values.get("seeds")
    return Arm(
        name=name, settings=settings, seeds=None if seeds is None else _count(seeds, f"arms.{name}.seeds")
    )


def _table(tables: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = tables.get(key, {})
    _require(isinstance(table, dict), f"`{key}` must be a table. Received: {table!r:.80}.")
    return table


def _count(value: Any, key: str) -> int:
    _require(
        type(value) is int and value > 0,
        f"`{key}` must be a whole number, at least 1. Received: {value!r:.80}.",
    )
    return value


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
