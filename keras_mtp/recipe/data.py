"""The table `[data]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataRecipe(Table):
    """Where examples come from and how they are batched."""

    _path: ClassVar[str] = "data."
    source: str = field(
        "hub",
        "hub or tfds (downloaded), builtin (generated here, nothing to download), or a file or folder of the task's.",
    )
    template: str = field(
        "chat",
        "How a conversation becomes text: chat (the model's own chat template; plain lines if it has none), Jinja2 text, "
        "or the path of a .jinja file.",
    )
    answers: str = field(
        "gold",
        "What is learnt: gold, the data's answers; or model, those that the model gives to the same prompts before training, "
        "greedily: what a draft will be accepted for. Needs heads.purpose=speed. Held-out examples keep the data's.",
        choices=("gold", "model"),
    )
    max_tokens: int = field(384, "Longest example (prompt and answer, in tokens).", minimum=16)
    too_long: str = field(
        "skip",
        "What happens to longer ones: they are skipped, or truncated on the right. A report counts them.",
        choices=("skip", "truncate"),
    )
    special_text: str = field(
        "refuse",
        "What happens to examples that hold the text of one of the model's special tokens, such as <|im_end|>, which would "
        "be read as the token: the data are refused, or such examples are skipped. A report counts them.",
        choices=("refuse", "skip"),
    )
    buckets: int = field(
        0,
        "Batches are padded to one of this many lengths: more pads less but compiles more. 0: as few as keep padding "
        "under a tenth of the positions.",
        minimum=0,
    )
