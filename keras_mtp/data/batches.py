"""Training batches in an order that is a pure function of (seed, purpose, epoch, step).

Keras shuffles from global state, which cannot be entered again in the middle; here any step can be. Examples of like
length share a batch, padded to one of a few lengths: little padding, and few shapes for XLA to compile.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import keras
import numpy as np

from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import bucket_lengths, enough_buckets
from keras_mtp.data.targets import Arrays, head_targets, pad
from keras_mtp.errors import UserError


class Batches(keras.utils.PyDataset):
    """`steps` optimizer batches as Keras takes them: (token_ids, targets, weights).

    The weights of each head sum to 1 over an optimizer batch (or to what its schedule says), all its micro-batches together, so
    that losses are summed and neither accumulation nor data parallelism changes the result. Keras averages accumulated gradients over the
    micro-batches; the weights are scaled up by their number to undo that.

    Args:
        examples: encoded training examples, at least `batch_size` of them.
        heads: names of the heads to make targets for, such as ("head_1", "head_2").
        steps: optimizer steps.
        batch_size: examples per optimizer step.
        accumulation: micro-batches per optimizer step; divides `batch_size`.
        buckets: number of batch lengths; 0 takes as few as keep padding under `PADDING`.
        seed: with `purpose`, decides the order. purpose: names the stream ("warmup", "joint", "heads").
        target: what the heads beyond head_1 are to predict, see `head_targets`.
        schedule: how their weights change over the steps, see `scheduled`.
        rows: which rows of a micro-batch of so many are wanted; all by default. Weights are those of the whole batch all the same.
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        *,
        heads: Sequence[str],
        steps: int,
        batch_size: int,
        accumulation: int = 1,
        buckets: int = 4,
        seed: int = 0,
        purpose: str = "joint",
        target: str = "further",
        schedule: str = "constant",
        rows: Callable[[int], slice] = lambda size: slice(0, size),
    ):
        super().__init__()
        require_a_batch(examples, batch_size)
        self.examples = examples
        self.heads = tuple(heads)
        self.steps = steps
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.purpose = purpose
        self.target = target
        self.schedule = schedule
        self.rows = rows
        self.lengths = np.array([len(item.ids) for item in examples])
        self.bucket_lengths = bucket_lengths(self.lengths, buckets or enough_buckets(self.lengths))
        self._epoch_order = lru_cache(maxsize=2)(self.epoch_order)

    @property
    def num_batches(self) -> int:
        return self.steps * self.accumulation

    def __getitem__(self, index: int) -> tuple[np.ndarray, Arrays, Arrays]:
        step, micro = divmod(index, self.accumulation)
        chosen = self.step_examples(step)
        ids, is_answer = pad([self.examples[i] for i in chosen], self.padded_length(chosen))
        targets, weights = head_targets(ids, is_answer, self.heads, self.target)
        total = {name: self.accumulation * self.weight(name, step) for name in weights}
        weights = {k: w * np.float32(total[k] / max(w.sum(), 1.0)) for k, w in weights.items()}
        size = self.batch_size // self.accumulation
        wanted = self.rows(size)
        rows = slice(micro * size + wanted.start, micro * size + wanted.stop)
        return ids[rows], {k: v[rows] for k, v in targets.items()}, {k: w[rows] for k, w in weights.items()}

    def after(self, step: int) -> "Rest":
        """What is left after the first `step` optimizer batches."""
        return Rest(self, step)

    def weight(self, head: str, step: int) -> float:
        """What the weights of a head sum to in optimizer step `step`: 1, but for the schedule."""
        return 1.0 if head == "head_1" else scheduled(self.schedule, step, self.steps)

    def step_examples(self, step: int) -> np.ndarray:
        """Indices of the examples of optimizer step `step`, counted from 0."""
        epoch, place = divmod(step, len(self.examples) // self.batch_size)
        return self._epoch_order(epoch)[place]

    def epoch_order(self, epoch: int) -> np.ndarray:
        """Indices (batches, batch_size) of one epoch. What does not fill a batch sits this epoch out."""
        rng = np.random.default_rng([self.seed, epoch, *self.purpose.encode()])
        count = len(self.examples) // self.batch_size
        order = rng.permutation(len(self.examples))[: count * self.batch_size]
        bucket = np.searchsorted(self.bucket_lengths, self.lengths[order])
        order = order[np.argsort(bucket, kind="stable")]
        return rng.permutation(order.reshape(count, self.batch_size))

    def padded_length(self, chosen: np.ndarray) -> int:
        """Tokens per row of a batch: the shortest bucket that holds its longest example."""
        return int(self.bucket_lengths[np.searchsorted(self.bucket_lengths, self.lengths[chosen].max())])

    def tokens(self, step: int) -> int:
        """Positions computed in optimizer step `step`, padding included."""
        return self.batch_size * self.padded_length(self.step_examples(step))

    def real_tokens(self, step: int) -> int:
        """Tokens of optimizer step `step`, padding aside."""
        return int(self.lengths[self.step_examples(step)].sum())

    def padding_share(self, steps: int) -> float:
        """Share of positions that are padding, over the first `steps` optimizer batches."""
        real = sum(self.real_tokens(step) for step in range(steps))
        return 1.0 - real / max(sum(self.tokens(step) for step in range(steps)), 1)


class Rest(keras.utils.PyDataset):
    """What is left of `batches` after the first `step` optimizer batches, as Keras takes it."""

    def __init__(self, batches: Batches, step: int):
        super().__init__()
        self.batches, self.first = batches, step * batches.accumulation

    @property
    def num_batches(self) -> int:
        return self.batches.num_batches - self.first

    def __getitem__(self, index: int) -> tuple[np.ndarray, Arrays, Arrays]:
        return self.batches[self.first + index]


def scheduled(schedule: str, step: int, steps: int) -> float:
    """The share of a head's weight that counts in a step, never 0, so that its loss can be read off the weighted one.

    Args:
        schedule: "constant", "ramp_up" (1 at the last step) or "decay" (1 at the first). step: counted from 0.
    """
    return {"constant": 1.0, "ramp_up": (step + 1) / steps, "decay": 1 - step / steps}[schedule]


def require_a_batch(examples: Sequence[Encoded], batch_size: int) -> None:
    """Raises a `UserError` if there are too few examples for one optimizer batch."""
    if len(examples) < batch_size:
        raise UserError(
            f"The training data must hold at least one batch. Received: {len(examples)} examples for "
            f"training.batch_size={batch_size}. Lower training.batch_size or give more data."
        )
