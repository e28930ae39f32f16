"""The table `[heads]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadsRecipe(Table):
    """The heads beyond head_1 (the model's own next-token prediction). With count=0 the rest but purpose is ignored.

    What is said here of the prefix holds for whatever tuning.method trains.
    """

    _path: ClassVar[str] = "heads."
    count: int = field(1, "How many: with 1 there is head_2, which predicts two tokens ahead.", minimum=0)
    kind: str = field(
        "transformer",
        "transformer: a decoder block. sequential: the same, and it sees the token before the one it "
        "predicts: when it drafts, the draft before its own. linear: a square matrix. Where they stand: heads.attach.",
        choices=("transformer", "sequential", "linear"),
    )
    purpose: str = field(
        "quality",
        "What the heads are for. quality: with them the prefix is to become better. speed: they are to draft well when text "
        "is decoded; training.steps then train the heads alone, all of them, and neither the prefix (start.run brings one "
        "that is trained) nor head_1 changes. There is no warm-up then, and heads.weight, heads.schedule and heads.detach mean "
        "nothing.",
        choices=("quality", "speed"),
    )
    start: str = field(
        "last_block",
        "What a head starts as: last_block, a copy of the last block (linear heads, having no block: as zero); random numbers; or "
        "zero: it adds nothing at first to the state that it reads, the rest of a block being that copy.",
        choices=("last_block", "random", "zero"),
    )
    attach: str = field(
        "default",
        "Which state of the trunk the heads read: last_block, what the last block gives; before_last_block, what it is given, "
        "so that heads run beside it; or default: before_last_block for transformer and sequential heads, last_block for linear ones.",
        choices=("default", "last_block", "before_last_block"),
    )
    weight: float = field(0.1, "Weight of head_2's loss beside head_1's, whose weight is 1.", minimum=0)
    decay: float = field(1.0, "Each further head weighs this times the one before it.", minimum=0)
    schedule: str = field(
        "constant",
        "How these weights change while the prefix is trained: constant, ramp_up (from nothing to their value at the last "
        "step, linearly) or decay (from their value to nothing).",
        choices=("constant", "ramp_up", "decay"),
    )
    target: str = field(
        "further",
        "What a head learns to predict: further, the token as many places ahead as its number says; or next, the token that "
        "head_1 predicts too: a placebo, which tells what a further token does from what any second loss does.",
        choices=("further", "next"),
    )
    warmup_steps: int = field(
        80, "Optimizer steps for the heads alone, before the prefix is trained.", minimum=0
    )
    warmup_patience: int = field(
        0,
        "End the warm-up after so many evaluations in a row that brought the heads' held-out loss down by less than 1 %; "
        "heads.warmup_steps is then the most, and the rate stays at its peak. 0: always all steps, the rate falls to 0.",
        minimum=0,
    )
    freeze: bool = field(
        True, "Keep the heads as they are after the warm-up; false trains them on with the prefix."
    )
    detach: bool = field(
        False, "Cut the heads' gradient before it reaches the prefix: the control arm of an experiment."
    )
    learning_rate: float = field(
        3e-3,
        "Peak learning rate of the heads. At 2e-4 a head has hardly warmed up after 40 steps, and teaches the prefix nonsense.",
        minimum=0,
    )
    draft_vocabulary: int = field(
        4096,
        "With purpose=speed: among how many tokens the heads choose their drafts, the most frequent in the training data. "
        "Fewer make a draft cheaper, and some tokens are never drafted; the text stays the same. 0: among all.",
        minimum=0,
    )
