"""Cross-entropy straight from hidden states: the logits of all positions never exist at once.

Full logits are the memory problem of multi-token training: every head makes an N x V matrix, and its gradient another.
Here logits are made a chunk of rows at a time, and the gradient with respect to the hidden states is made in the same
pass, so that nothing is recomputed and nothing V-wide is kept (Liger Kernel, Hsu et al. 2024, arXiv 2410.10989,
section 3.2; Cut Cross-Entropy, arXiv 2411.09009). Rows with weight 0 (prompt, padding) are never reached
(labelled_rows.py). N = B*T rows, C of them in a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Callable

import keras
from keras import ops

from keras_mtp import backend, distribution
from keras_mtp.at_once import CHUNK_ROWS, CHUNK_ROWS_ON_ACCELERATOR
from keras_mtp.labelled_rows import Chunk, LabelledRows, as_rows
from keras_mtp.quantised import is_quantised
from keras_mtp.unembedding import made_after, unembedding_kernel, unembedding_parts


class LinearCrossEntropy(keras.losses.Loss):
    """Sparse cross-entropy of hidden states under an unembedding, in nats.

    Equals `SparseCategoricalCrossentropy(from_logits=True)` on the logits, with the same `sample_weight` and reduction.

    Args:
        unembedding: the backbone's `token_embedding`, a built Keras `ReversibleEmbedding`, tied or not.
        trained: whether this loss trains the unembedding. Only `head_1`'s may, and only if the trunk is trained. One that is
            quantised is never trained.
        chunk_rows: int. Rows whose logits exist at the same time; None for 128 on a CPU, 1,024 on an accelerator.
        reduction: "sum" (weights are normalised already, as `keras_mtp.data.batches` does) or
            "mean_with_sample_weight" (weighted sum over the sum of the weights).

    Call arguments:
        y_true: int tensor (B, T), the target token of every position.
        y_pred: float tensor (B, T, D), hidden states after the final norm.
        sample_weight: float tensor (B, T), or None for all ones. Positions with weight 0 cost nothing.

    Returns:
        Float32 scalar.

    Raises:
        ValueError: another reduction, or `chunk_rows` below 1.

    Example:

    ```python
    view = model.training_view()
    view.compile("adam", loss={"head_1": keras_mtp.LinearCrossEntropy(model.backbone.token_embedding)})
    ```

    Reference: arXiv 2410.10989, section 3.2.
    """

    def __init__(
        self,
        unembedding: keras.layers.Layer,
        *,
        trained: bool = False,
        chunk_rows: int | None = None,
        reduction: str = "sum",
        name: str = "linear_cross_entropy",
    ):
        if reduction not in ("sum", "mean_with_sample_weight"):
            raise ValueError(
                f'`reduction` must be "sum" or "mean_with_sample_weight". Received: {reduction!r}'
            )
        if chunk_rows is not None and chunk_rows < 1:
            raise ValueError(f"`chunk_rows` must be at least 1. Received: chunk_rows={chunk_rows}")
        super().__init__(name=name, reduction=reduction)
        self.unembedding = unembedding
        self.trained = trained
        self.chunk_rows = chunk_rows or default_chunk_rows()

    def __call__(self, y_true, y_pred, sample_weight=None):
        # `Loss.__call__` is overridden, not `call`: the rows to skip are known by their weights, and Keras would
        # apply those only afterwards. It would also cast the token ids to float.
        if sample_weight is None:
            sample_weight = ops.ones_like(y_true, dtype="float32")
        sample_weight = ops.cast(sample_weight, "float32")
        if self.reduction == "mean_with_sample_weight":
            sample_weight = ops.divide_no_nan(sample_weight, ops.sum(sample_weight))
        return distribution.active().by_rows(self._sum, summed=True)(y_true, y_pred, sample_weight)

    def _sum(self, y_true, y_pred, sample_weight):
        hidden, targets, weights = as_rows(y_true, y_pred, sample_weight)
        parts, make = unembedding_parts(self.unembedding, hidden.dtype)
        tied = self.unembedding.tie_weights
        trained = self.trained and not is_quantised(self.unembedding)
        return _weighted_nats(hidden, parts, make, targets, weights, tied, trained, self.chunk_rows)


def score_rows(y_true, y_pred, sample_weight, unembedding, chunk_rows: int | None = None):
    """Nats and top-1 hits of every position, chunk by chunk and without gradients: what evaluation adds up.

    Args:
        y_true: int tensor (B, T). y_pred: float tensor (B, T, D). sample_weight: float tensor (B, T).
        unembedding: as in `LinearCrossEntropy`.

    Returns:
        `(nats, hits)`, float32 tensors (B, T): 0 where the weight is 0; hits are 1 where the largest logit is the
        target's.
    """

    def score(y_true, y_pred, sample_weight):
        return _scores(y_true, y_pred, sample_weight, unembedding, chunk_rows or default_chunk_rows())

    return distribution.active().by_rows(score)(y_true, y_pred, sample_weight)


def _scores(y_true, y_pred, sample_weight, unembedding, chunk_rows: int):
    hidden, targets, weights = as_rows(y_true, y_pred, sample_weight)
    kernel, tied = unembedding_kernel(unembedding, hidden.dtype), unembedding.tie_weights
    rows = LabelledRows(hidden, targets, weights, chunk_rows)

    def body(i, found):
        chunk = rows.chunk(i)
        logits = _logits(chunk, kernel, tied)
        likeliest = ops.cast(ops.argmax(logits, axis=-1), "int32")
        hits = ops.cast(ops.equal(likeliest, chunk.targets), "float32")
        nats, _, _ = _softmax(logits, chunk.targets)
        return tuple(chunk.put(old, new) for old, new in zip(found, (nats, hits), strict=True))

    start = ops.zeros_like(weights), ops.zeros_like(weights)
    nats, hits = ops.fori_loop(0, rows.chunks, body, start)
    scored = ops.cast(weights > 0, "float32")
    return tuple(ops.reshape(values * scored, ops.shape(y_true)) for values in (nats, hits))


def default_chunk_rows() -> int:
    """How many rows' logits exist at the same time where nobody says."""
    return CHUNK_ROWS_ON_ACCELERATOR if backend.on_accelerator() else CHUNK_ROWS


def _logits(chunk: Chunk, kernel, tied: bool):
    """Logits (C, V) of one chunk, in float32."""
    return ops.cast(backend.matmul(chunk.hidden, kernel, transpose_b=tied), "float32")


def _softmax(logits, targets):
    """Nats (C,), unnormalised probabilities (C, V) and their sums (C, 1); `logits` (C, V) are not to be used again."""
    largest = ops.max(logits, axis=-1, keepdims=True)
    target = ops.take_along_axis(logits, ops.expand_dims(targets, -1), axis=-1)
    powers = backend.exp_of_difference(logits, largest)
    total = ops.sum(powers, axis=-1, keepdims=True)
    return ops.squeeze(ops.log(total) + largest - target, -1), powers, total


def _weighted_nats(
    hidden, parts: tuple, make: Callable, targets, weights, tied: bool, trained: bool, size: int
):
    """Sum of weight * nats, differentiable in `hidden` and, if `trained`, in the kernel, which is then the only part.

    A kernel that is made of its parts is made when the hidden states are there, and nothing holds it for the backward pass.

    The gradient with respect to the logits is weight * (softmax - one_hot(target)). For the hidden states its second
    part is never made: what it contributes is the target's own row of the kernel.
    """

    # Both tensors that gradients are for are arguments: on TensorFlow one captured by closure gets none, silently.
    @ops.custom_gradient
    def forward(hidden, *parts):
        kernel = made_after(hidden, parts, make)
        kernel_shape, kernel_dtype = kernel.shape, kernel.dtype
        rows = LabelledRows(hidden, targets, weights, size)

        def body(i, state):
            loss, d_hidden, d_kernel = state
            chunk = rows.chunk(i)
            nats, powers, total = _softmax(_logits(chunk, kernel, tied), chunk.targets)
            weight = ops.expand_dims(chunk.weights, -1)
            d_rows = backend.matmul(ops.cast(powers, kernel.dtype), kernel, transpose_b=not tied)
            target_rows = ops.take(kernel, chunk.targets, axis=0 if tied else 1)
            target_rows = ops.cast(target_rows if tied else ops.transpose(target_rows), "float32")
            d_rows = weight / total * ops.cast(d_rows, "float32") - weight * target_rows
            if trained:
                d_kernel = d_kernel + _kernel_gradient(chunk, powers / total, tied)
            return (
                loss + ops.sum(nats * chunk.new_weights),
                chunk.put(d_hidden, ops.cast(d_rows, hidden.dtype)),
                d_kernel,
            )

        start = (
            ops.zeros((), "float32"),
            ops.zeros_like(hidden),
            ops.zeros(kernel_shape if trained else (), "float32"),
        )
        loss, d_hidden, d_kernel = ops.fori_loop(0, rows.chunks, body, start)

        def gradient(*args, upstream=None):
            # torch passes `upstream` by name, after the inputs; JAX and TensorFlow pass it alone.
            if upstream is None:
                (upstream,) = args
            to_hidden = backend.scaled_once(d_hidden, ops.cast(upstream, d_hidden.dtype))
            if trained:
                return to_hidden, ops.cast(upstream * d_kernel, kernel_dtype)
            return to_hidden, *(None for _ in parts)

        return loss, gradient

    return forward(hidden, *parts)


def _kernel_gradient(chunk: Chunk, softmax, tied: bool):
    """One chunk's gradient for a trained unembedding, in float32 and the kernel's own shape."""
    hot = ops.one_hot(chunk.targets, softmax.shape[-1], dtype="float32")
    d_logits = (softmax - hot) * ops.expand_dims(chunk.new_weights, -1)
    hidden = ops.cast(chunk.hidden, "float32")
    return ops.einsum("nv,nd->vd" if tied else "nv,nd->dv", d_logits, hidden)
