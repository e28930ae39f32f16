"""The table `[prefix]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixRecipe(Table):
    """What stands in front of every text, where tuning.method has prefix or prefix_kv; else ignored."""

    _path: ClassVar[str] = "prefix."
    length: int = field(
        16, "Number of trained places; with tuning.method=prefix, 0 trains no prefix.", minimum=0
    )
    start: str = field(
        "text",
        "What they start from: the embeddings of prefix.text, of sampled vocabulary, or random numbers; with prefix_kv, the "
        "keys and values that the model makes of these.",
        choices=("text", "vocabulary", "random"),
    )
    text: str = field(
        "Solve the problem step by step, show each calculation, and give the final number at the end.",
        "The text to start from, repeated or cut to prefix.length tokens.",
    )
