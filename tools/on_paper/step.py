"""A training step on paper: operations and messages of a recipe on a mesh, in seconds of a machine."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from keras_mtp.at_once import CHUNK_ROWS_ON_ACCELERATOR
from keras_mtp.flops import Positions, Sizes, step_flops
from keras_mtp.recipe import Recipe
from keras_mtp.workload import packed
from tools.on_paper.machine import Machine
from tools.on_paper.volumes import Counts


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    Args:
        recipe: what. sizes: of its model. counts: of what its devices say. tokens: per row. labelled: share of them that a head's loss reads.
    """

    recipe: Recipe
    sizes: Sizes
    counts: Counts
    tokens: int
    labelled: float

    def positions(self, rows: int) -> Positions:
        """What one device of a batch computes of so many rows."""
        return packed(self.recipe, rows, self.tokens, 0)

    def labels(self, rows: int) -> int:
        """Of so many rows, of one head."""
        return round(rows * self.tokens * self.labelled)

    def flops(self, rows: int) -> float:
        """Operations of a step on so many rows."""
        heads, tuned = self.recipe.heads, self.recipe.tuning
        return step_flops(
            self.sizes,
            self.positions(rows),
            labelled_rows=self.labels(rows) * (heads.count + (not self.recipe.heads_alone)),
            trained="heads" if self.recipe.heads_alone else tuned.method,
            lora_rank=tuned.lora_rank,
            lora_targets=tuned.projections if "lora" in tuned.methods else (),
            heads=heads.count,
            kind=heads.kind,
            attach=heads.attach,
            heads_trained=self.recipe.heads_alone or not heads.freeze,
            detached=heads.detach,
            remat=self.recipe.training.remat,
        ).total


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of a step.

    Args:
        data, model: the mesh. rows, tokens: of the whole batch. compute: seconds of computing. fixed: seconds that stay however
            little there is to compute. said: seconds of talking, by axis.
    """

    data: int
    model: int
    rows: int
    tokens: int
    compute: float
    fixed: float
    said: dict[str, float]

    @property
    def devices(self) -> int:
        """All of them."""
        return self.data * self.model

    @property
    def talk(self) -> float:
        """Seconds of talking, along all axes."""
        return sum(self.said.values())

    @property
    def slowest(self) -> float:
        """Seconds where nobody computes while they talk."""
        return self.compute + self.fixed + self.talk

    @property
    def fastest(self) -> float:
        """Seconds where they talk while they compute, all the time."""
        return max(self.compute + self.fixed, self.talk)

    @property
    def share(self) -> float:
        """Of the slowest step that is talk."""
        return self.talk / self.slowest

    def efficiency(self, alone: "Step") -> float:
        """Tokens per second and device, of those of one device alone; the slowest step."""
        return self.tokens / self.slowest / self.devices / (alone.tokens / alone.slowest)


def step(job: Job, machine: Machine, share: float, data: int, model: int, rows: int) -> Step:
    """A step on a mesh.

    Args:
        share: of the machine's peak that computing reaches. rows: of the whole batch; `data` must divide them.
    """
    own = rows // data
    said: dict[str, float] = {}
    for volume in job.counts.volumes(
        data,
        model,
        layers=job.sizes.num_layers,
        positions=job.positions(own).count,
        labelled=job.labels(own),
        chunk_rows=CHUNK_ROWS_ON_ACCELERATOR,
    ):
        said[volume.axis] = said.get(volume.axis, 0) + machine.seconds(volume, data, model)
    return Step(
        data=data,
        model=model,
        rows=rows,
        tokens=rows * job.tokens,
        compute=job.flops(own) / model / (machine.peak_flops * share),
        fixed=machine.fixed,
        said=said,
    )


def of_one_batch(job: Job, machine: Machine, share: float, rows: int, model: int = 1) -> Iterator[Step]:
    """Twice as many devices each time share a batch of `rows`, until each has a single row or they do not divide them."""
    data = 1
    while data <= rows and rows % data == 0:
        yield step(job, machine, share, data, model, rows)
        data *= 2


def half(steps: Iterable[Step]) -> Step | None:
    """The first that computes for no more than half of its time, apart; None if none does."""
    return next((each for each in steps if each.compute <= each.slowest / 2), None)
