"""Which token every head is to predict at every position, and how much it counts.

`head_k` at position t has target `token[t + k]`. The one convention of the whole package:

    ids      = [ 5, 6, 7, 8, 9]        the answer starts at 7
    head_1   = [ 6, 7, 8, 9, _]  w = [0, 1, 1, 1, 0]
    head_2   = [ 7, 8, 9, _, _]  w = [1, 1, 1, 0, 0]

Gloeckle et al. 2024, arXiv 2404.19737, equation 2.
"""

from collections.abc import Sequence

import numpy as np

from keras_mtp.data.encoding import Encoded, encode_example
from keras_mtp.data.example import Example
from keras_mtp.data.tokenizer import Tokenizer

Arrays = dict[str, np.ndarray]


def head_targets(
    ids: np.ndarray, is_answer: np.ndarray, heads: Sequence[str], target: str = "further"
) -> tuple[Arrays, Arrays]:
    """Targets and weights of the named heads.

    Args:
        ids: int array (B, T), padded on the right.
        is_answer: bool array (B, T), True at answer tokens; False on prompt and padding.
        heads: names such as ("head_1", "head_3"): the number says how many places ahead.
        target: "further", or "next" to give every head the target of head_1 (a placebo).

    Returns:
        `(targets, weights)`, dicts `{"head_1": (B, T), ...}` of int32 and float32. A weight is 1 where the target is an
        answer token, else 0; where there is no token k places ahead the target is 0 and so is the weight.

    Example:

    >>> ids, is_answer = np.array([[5, 6, 7, 8, 9]]), np.array([[False, False, True, True, True]])
    >>> targets, weights = head_targets(ids, is_answer, ("head_1", "head_2"))
    >>> targets["head_1"], weights["head_1"]
    (array([[6, 7, 8, 9, 0]], dtype=int32), array([[0., 1., 1., 1., 0.]], dtype=float32))
    >>> targets["head_2"], weights["head_2"]
    (array([[7, 8, 9, 0, 0]], dtype=int32), array([[1., 1., 1., 0., 0.]], dtype=float32))
    """
    targets, weights = {}, {}
    for name in heads:
        k = 1 if target == "next" else int(name.removeprefix("head_"))
        targets[name] = _ahead(ids, k, "int32")
        weights[name] = _ahead(is_answer, k, "float32")
    return targets, weights


def pad(items: Sequence[Encoded], tokens: int, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Stacks examples, padded on the right with id 0 to `tokens` columns and, with empty ones, to `rows` rows.

    Returns:
        `(ids, is_answer)`: int32 and bool arrays (B, T).
    """
    ids = np.zeros((rows or len(items), tokens), "int32")
    is_answer = np.zeros(ids.shape, bool)
    for row, item in enumerate(items):
        ids[row, : len(item.ids)] = item.ids
        is_answer[row, : len(item.ids)] = item.is_answer
    return ids, is_answer


def training_arrays(
    examples: Sequence[Example], tokenizer: Tokenizer, num_heads: int
) -> tuple[np.ndarray, Arrays, Arrays]:
    """Examples as `(x, y, sample_weight)` for `model.fit`.

    Args:
        examples: prompts with their answers.
        tokenizer: the one `load_backbone` returned.
        num_heads: number of outputs of the model, K = 1 + len(heads).

    Returns:
        `x`: int32 (B, T) token ids. `y`: {"head_k": int32 (B, T)}. `sample_weight`: {"head_k": float32 (B, T)}, 1
        where the target is an answer token, else 0: compile the losses with `reduction="mean_with_sample_weight"`, or Keras will
        divide by the prompt's and the padding's positions too.

    Example:

    ```python
    examples = [keras_mtp.Example(id="1", prompt="What is 2 + 2?", answer="4")]
    x, y, w = keras_mtp.training_arrays(examples, tokenizer, num_heads=2)
    model.fit(x, y, sample_weight=w)
    ```
    """
    encoded = [encode_example(example, tokenizer) for example in examples]
    ids, is_answer = pad(encoded, max(len(item.ids) for item in encoded))
    return ids, *head_targets(ids, is_answer, [f"head_{k}" for k in range(1, num_heads + 1)])


def _ahead(values: np.ndarray, k: int, dtype: str) -> np.ndarray:
    """`values[:, t + k]` at t, zero past the end."""
    shifted = np.zeros(values.shape, dtype)
    shifted[:, : max(values.shape[1] - k, 0)] = values[:, k:]
    return shifted
