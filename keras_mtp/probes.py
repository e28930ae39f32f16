"""What every head asks of the weights that all heads share, looked at while training goes on.

    norm      of the gradient of a head's loss with respect to all trained weights outside the heads: the prefix, as a rule
    cosine    between that gradient and head_1's: 1 the same way, 0 no relation, below 0 against it

The loss is a head's own, nats per answer token of the step's batch, without its weight: norms then say what a head would
do at weight 1 and compare from run to run. What acts on the shared weights is the norm times the head's weight (times what
`heads.schedule` makes of it in that step); a cosine does not depend on it. The gradient is taken before the step is made,
on the step's own batch. A detached head's is 0, and so is its cosine.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.data.batches import Batches
from keras_mtp.losses import LinearCrossEntropy
from keras_mtp.metrics import cosine_column, norm_column


class GradientProbe:
    """Measures the heads' gradients in the first step and in every so-many-th one, and changes nothing.

    It costs a forward pass and, for every head, a backward pass.

    Args:
        view: the model, its outputs the hidden states of `batches.heads`.
        losses: by head. batches: what the stage is fed. weights: what to take the gradients with respect to.
        every: optimizer steps between two measurements.
    """

    def __init__(
        self,
        view: keras.Model,
        losses: Mapping[str, LinearCrossEntropy],
        batches: Batches,
        weights: Sequence[keras.Variable],
        every: int,
    ):
        self.view, self.losses, self.batches, self.every = view, losses, batches, every
        self._differentiated = backend.gradients(self._values, weights, view.variables)

    def __call__(self, step: int) -> dict[str, float]:
        """By column of `metrics.csv`; nothing in a step that is passed over.

        Args:
            step: the optimizer step that is about to be made, counted from 1.
        """
        if step != 1 and step % self.every:
            return {}
        found = self._gradients(step - 1)
        norms = {name: np.sqrt(_dot(gradient, gradient)) for name, gradient in found.items()}
        row = {norm_column(name): float(norm) for name, norm in norms.items()}
        for name in self.batches.heads[1:]:
            lengths = norms[name] * norms["head_1"]
            row[cosine_column(name)] = float(_dot(found[name], found["head_1"]) / lengths) if lengths else 0.0
        return row

    def _gradients(self, step: int) -> dict[str, list[Any]]:
        """Of every head's loss over the whole optimizer batch of a step, counted from 0; a tensor for every weight."""
        count = self.batches.accumulation
        group = distribution.active()
        total = self._differentiated(*group.distributed(self.batches[step * count]))
        for micro_batch in range(step * count + 1, (step + 1) * count):
            more = self._differentiated(*group.distributed(self.batches[micro_batch]))
            total = keras.tree.map_structure(ops.add, total, more)
        # The weights of a head sum to this over the batch, so that without it the loss is nats per token.
        scales = {name: count * self.batches.weight(name, step) for name in self.batches.heads}
        return {
            name: [gradient / scales[name] for gradient in group.summed(gradients)]
            for name, gradients in zip(self.batches.heads, total, strict=True)
        }

    def _values(self, token_ids, targets, weights) -> list[Any]:
        states = self.view(token_ids)
        return [self.losses[name](targets[name], states[name], weights[name]) for name in self.batches.heads]


def _dot(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The inner product of two lists of tensors, each list taken as one long vector."""
    products = [ops.sum(ops.cast(x, "float32") * ops.cast(y, "float32")) for x, y in zip(a, b, strict=True)]
    return float(sum(float(ops.convert_to_numpy(product)) for product in products))
