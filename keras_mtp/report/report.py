"""A run's results and what is needed to repeat it; the content of `report.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keras_mtp.disk import finite
from keras_mtp.report.results import GradientResult, HeadResult, SourceResult, TaskResult

if TYPE_CHECKING:
    from keras_mtp.memory_plan import Prediction


@dataclass(frozen=True, kw_only=True)
class Report:
    """A run's results and what is needed to repeat it.

    Args:
        recipe: the recipe's name. backend: what Keras ran on. seed: the recipe's. steps: optimizer steps done, the
            heads' warm-up aside. heads_alone: whether only heads were trained.
        method: `tuning.method`. tuned: what that trains, in words. tuned_weights: how many weights it has, heads aside.
        kept_step: the step whose weights are the result, where the held-out examples chose it; else None: the last one's.
        continued: how often the run was cut off and went on.
        stopped_early: whether training ended before the recipe's number of steps.
        started_from: the run whose trained weights and heads were the start, "" for none. started_from_checkpoint: the SHA-256
            of its trained weights. started_heads: how many heads were that run's too.
        model: the base model's name. model_revision: the hub's commit. model_sha256: of its files. model_licence: its
            licence. model_notice: what the licence wants to be shown.
        data: the task's title, as "GSM8K" or "generated word problems (not GSM8K)". data_source: "hub", "tfds",
            "builtin" or a path. data_revision: which version of it. data_licence: their licence. data_note: how they
            were split, where the task had to decide.
        is_benchmark: False if a score on these data is no benchmark result.
        held_out: results by head. held_out_n: number of held-out examples. held_out_by_source: the same by source of the
            data, where they name any; the largest first.
        task: the task's score.
        gradients: by head, where `training.probe_every` asked for them. gradients_n: number of steps measured.
        tokens_per_second: real tokens trained on per second, the warm-up aside.
        peak_bytes: peak resident memory less that after imports. predicted: what was predicted before training; on an
            accelerator, of that one's memory.
        seconds: of the whole run. padding_share: share of padding in what training computed.
        skipped_examples: training examples left out for their length. truncated_examples: those cut to it.
        marked_examples: those left out for the text of a special token in them.
        date: when the run ended, ISO 8601. versions: by package. command: what repeats the run, argument by argument.
    """

    recipe: str
    backend: str
    model: str
    model_licence: str
    data: str
    data_source: str
    data_licence: str
    model_revision: str | None = None
    model_sha256: str = ""
    model_notice: str | None = None
    data_revision: str | None = None
    data_note: str = ""
    is_benchmark: bool
    seed: int
    steps: int
    heads_alone: bool = False
    method: str = "prefix"
    tuned: str = "a prefix"
    tuned_weights: int = 0
    kept_step: int | None = None
    stopped_early: bool = False
    continued: int = 0
    started_from: str = ""
    started_from_checkpoint: str = ""
    started_heads: int = 0
    held_out: Mapping[str, HeadResult]
    held_out_n: int
    held_out_by_source: Mapping[str, SourceResult] = field(default_factory=dict)
    task: TaskResult
    gradients: Mapping[str, GradientResult] = field(default_factory=dict)
    gradients_n: int = 0
    tokens_per_second: float
    peak_bytes: int
    predicted: "Prediction | None" = None
    seconds: float
    padding_share: float
    skipped_examples: int
    truncated_examples: int = 0
    marked_examples: int = 0
    date: str
    versions: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = ()

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`; what a run may lack only where there is one."""
        content: dict[str, Any] = {
            "recipe": self.recipe,
            "backend": self.backend,
            "model": self.model,
            "data": self.data,
            "method": self.method,
            "tuned_weights": self.tuned_weights,
            "seed": self.seed,
            "steps": self.steps,
            "held_out": _by_head(self.held_out, self.held_out_n),
            "task": self.task.to_json(),
            "tokens_per_second": self.tokens_per_second,
            "peak_bytes": self.peak_bytes,
        }
        if self.predicted:
            content["predicted_peak_bytes"] = self.predicted.peak_bytes
        if self.held_out_by_source:
            content["held_out_by_source"] = {
                source: _by_head(result.heads, result.n) for source, result in self.held_out_by_source.items()
            }
        if self.gradients:
            heads = {name: gradient.to_json() for name, gradient in self.gradients.items()}
            content["gradients"] = {**heads, "n": self.gradients_n}
        if self.kept_step is not None:
            content["kept_step"] = self.kept_step
        if self.continued:
            content["continued"] = self.continued
        if self.started_from:
            content["started_from"] = {"run": self.started_from, "checkpoint": self.started_from_checkpoint}
        return finite(content)


def _by_head(heads: Mapping[str, HeadResult], n: int) -> dict[str, Any]:
    return {**{name: head.to_json() for name, head in heads.items()}, "n": n}
