"""Two systems' answers to the same prompts, token for token, and what the model thinks of the places where they part."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.partings import Logits, Parting, parting
from tools.saved_models.answering import Answered


@dataclass(frozen=True, kw_only=True)
class Row:
    """How two systems compare.

    Args:
        run: its folder's name. trained_on: the backend. a, b: the systems. batches: of each.
        prompts: how many. tokens: compared, stop tokens included, until answers part. encoded_otherwise: prompts of which the
            two do not make the same token ids. partings: of the answers.
        allowed: margins below it are ties, which rounding may decide. 0 where there may be no difference at all.
    """

    run: str
    trained_on: str
    a: str
    b: str
    batches: tuple[int, int]
    prompts: int
    tokens: int
    encoded_otherwise: int
    partings: list[Parting] = field(default_factory=list)
    allowed: float

    @property
    def largest_margin(self) -> float | None:
        return max((parting.margin for parting in self.partings), default=None)

    @property
    def holds(self) -> bool:
        return not self.encoded_otherwise and all(parting.margin < self.allowed for parting in self.partings)

    def __str__(self) -> str:
        margin = "" if self.largest_margin is None else f"{self.largest_margin:.1e}"
        pair = (f"{name} by {batch}" for name, batch in zip((self.a, self.b), self.batches, strict=True))
        return (
            f"{self.run:<14} {self.trained_on:<10} {' - '.join(pair):<34} {self.prompts:>7} {self.tokens:>7} "
            f"{len(self.partings):>6} {margin:>8}  {'yes' if self.holds else 'NO'}"
        )


HEADING = f"{'run':<14} {'trained on':<10} {'compared':<34} {'prompts':>7} {'tokens':>7} {'differ':>6} {'margin':>8}"


def compared(
    a: Answered, b: Answered, *, new_tokens: int, stop_ids: Sequence[int], logits: Logits
) -> tuple[int, int, list[Parting]]:
    """`(tokens, encoded_otherwise, partings)`, as `Row` has them.

    Args:
        new_tokens: of the longest answer: a shorter one has ended by a stop token. stop_ids: what these may be.
        logits: of the reference, asked only where answers part.
    """
    tokens, otherwise, partings = 0, 0, []
    pairs = zip(a.prompts, b.prompts, a.answers, b.answers, strict=True)
    for question, (prompt, same_prompt, ours, others) in enumerate(pairs):
        if prompt != same_prompt:
            otherwise += 1
            continue
        found = parting(question, prompt, (ours, others), stop_ids=stop_ids, logits=logits)
        tokens += min(len(ours) + 1, new_tokens) if found is None else found.place + 1
        partings += [] if found is None else [found]
    return tokens, otherwise, partings
