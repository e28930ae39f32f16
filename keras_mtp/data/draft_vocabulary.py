"""Which tokens heads that draft choose among: those that the text at hand is made of.

Naming a draft reads the unembedding, which in a small model is a fifth of all weights; most of its tokens the heads
would never name. What `head_1` says is chosen among all tokens, so the text does not depend on it: a token that is left
out here is never drafted. Zhao et al. 2025, "FR-Spec" (arXiv 2502.14856, section 3).
"""

from collections.abc import Sequence

import numpy as np

from keras_mtp.data.encoding import Encoded


def most_frequent(examples: Sequence[Encoded], count: int) -> list[int]:
    """The tokens that occur most often in examples, prompts included: answers repeat much of them.

    Args:
        count: at most so many; 0 for no choice.

    Returns:
        Token ids in ascending order; among equally frequent ones the smaller id comes first.
    """
    occurrences = np.bincount(np.concatenate([item.ids for item in examples]))
    seen = np.argsort(-occurrences, kind="stable")[: np.count_nonzero(occurrences)]
    return np.sort(seen[:count]).tolist()
