"""The results that a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class HeadResult:
    """One head on the held-out examples.

    Args:
        loss_before: nats per answer token before any training. loss_after: the same at the end.
        top1_before: share of answer tokens whose largest logit was right, before. top1: the same at the end.
    """

    loss_before: float
    loss_after: float
    top1_before: float
    top1: float

    def to_json(self) -> dict[str, float]:
        """The entry in `report.json`."""
        return {"loss_before": self.loss_before, "loss_after": self.loss_after, "top1": self.top1}


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """The task's own score on answers generated for the test split.

    Args:
        metric: its name, as "exact_match". value_before, value: mean over the items, before and at the end.
        n: number of test items. passed_over: items not asked, for their prompts.
        further: the means by other measures, on the same items.
    """

    metric: str
    value_before: float
    value: float
    n: int
    passed_over: int = 0
    further: "Sequence[TaskResult]" = ()

    def to_json(self) -> dict[str, Any]:
        """The entry in `report.json`; `passed_over` and `further` are in it only where there are any."""
        content: dict[str, Any] = {
            "metric": self.metric,
            "value_before": self.value_before,
            "value": self.value,
            "n": self.n,
        }
        if self.passed_over:
            content["passed_over"] = self.passed_over
        if self.further:
            content["further"] = {
                result.metric: {"value_before": result.value_before, "value": result.value}
                for result in self.further
            }
        return content


@dataclass(frozen=True, kw_only=True)
class SourceResult:
    """The held-out examples of one source of the data.

    Args:
        heads: results by head. n: number of examples.
    """

    heads: Mapping[str, HeadResult]
    n: int


@dataclass(frozen=True, kw_only=True)
class GradientResult:
    """What one head asked of the trained weights outside the heads, see `keras_mtp.probes`.

    Args:
        norm_first, norm_last: of its loss's gradient, the loss unweighted, in the first and the last step measured.
        norm: the mean of all measured. cosine: the mean cosine to head_1's; None for head_1 itself.
    """

    norm_first: float
    norm_last: float
    norm: float
    cosine: float | None = None

    def to_json(self) -> dict[str, float]:
        """The entry in `report.json`."""
        content = {"norm_first": self.norm_first, "norm_last": self.norm_last, "norm": self.norm}
        return content if self.cosine is None else content | {"cosine": self.cosine}
