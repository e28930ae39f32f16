"""How arms are compared: pairwise by seed and by held-out item, with intervals over both.

The same seed means the same batches in the same order, and the held-out items are the same always: so the difference of
two arms is taken item by item, seed by seed. Seeds and items are both drawn anew in the bootstrap (crossed random effects;
Owen 2007, "The pigeonhole bootstrap", arXiv 0712.1111, whose standard error is a little too large rather than too small).
Few seeds are allowed for as by Student: the bootstrap's standard error, corrected by sqrt(S / (S - 1)), times the quantile
of t with S - 1 degrees of freedom.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 4000
LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class Difference:
    """An arm's held-out loss less that of the arm it is compared with, nats per token: below 0 is better.

    Args:
        arm, other: the two. seeds: how many both were run with. items: held-out items.
        value: the difference; not a number if a run diverged. low, high: its 95 % interval. p: of no difference, two-sided. adjusted: the same by Holm
            among all comparisons of the study.
        right, wrong: test items that the arm, or the other, answered right with more seeds. mcnemar: the exact p of as many on
            both sides, of the choice of items alone; None if no test items were answered.
    """

    arm: str
    other: str
    seeds: int
    items: int
    value: float
    low: float
    high: float
    p: float
    adjusted: float = math.nan
    right: int = 0
    wrong: int = 0
    mcnemar: float | None = None

    @property
    def verdict(self) -> str:
        """What may be said: lower, higher, no difference seen, diverged; or one seed, from which nothing follows."""
        if math.isnan(self.value):
            return "diverged"
        if self.seeds == 1:
            return "one seed"
        if not self.adjusted < LEVEL:
            return "no difference seen"
        return "lower" if self.value < 0 else "higher"


def interval(nats: np.ndarray, tokens: np.ndarray) -> tuple[float, float, float, float]:
    """Mean difference per token, its 95 % interval and its p.

    Args:
        nats: (S, I) differences of the summed losses, by seed and item. tokens: (I,).

    Returns:
        `(value, low, high, p)`. With one seed the interval covers the items only, and p, which would too, is not a number.
    """
    seeds, items = nats.shape
    value = nats.mean(0).sum() / tokens.sum()
    rng = np.random.default_rng(0)
    weights = rng.multinomial(items, np.full(items, 1 / items), DRAWS)
    by_seed = (weights @ nats.T) / (weights @ tokens)[:, None]  # (DRAWS, S)
    drawn = np.take_along_axis(by_seed, rng.integers(0, seeds, (DRAWS, seeds)), 1).mean(1)
    error = drawn.std(ddof=1) * (math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0)
    law = stats.t(seeds - 1) if seeds > 1 else stats.norm()
    reach = law.ppf(1 - LEVEL / 2) * error
    p = math.nan if seeds == 1 else 2 * law.sf(abs(value) / error) if error else float(value == 0)
    return float(value), float(value - reach), float(value + reach), float(p)


def mcnemar(scores: np.ndarray, others: np.ndarray) -> tuple[int, int, float]:
    """Test items that one side got right with more seeds than the other, and the exact p of as many on both sides.

    An item counts once, however many seeds answered it: its answers are not independent. Of one seed it is McNemar's test.

    Args:
        scores, others: (S, I); 1 where the item was answered right.
    """
    more = (scores == 1).sum(0) - (others == 1).sum(0)
    right, wrong = int((more > 0).sum()), int((more < 0).sum())
    p = stats.binomtest(right, right + wrong).pvalue if right + wrong else 1.0
    return right, wrong, float(p)


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979): the chance of even one false alarm stays below the level.

    What is not a number stays so, and does not count.
    """
    adjusted = np.full(len(values), math.nan)
    order = [index for index in np.argsort(values) if not math.isnan(values[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(order) - rank) * values[index], 1.0))
        adjusted[index] = largest
    return adjusted.tolist()
