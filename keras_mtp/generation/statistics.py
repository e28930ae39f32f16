"""What a generation cost."""

from dataclasses import asdict, dataclass
from typing import Any

TRIAL = 32  # passes after which drafts must have paid
PAYS = 1.3  # tokens per pass: what running the heads and their unembedding costs, and a little


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts and times of one generation, all rows of the batch together.

    Args:
        tokens: new tokens, stop tokens included.
        histogram: passes of the model, per row and after the prompt was read (one over four rows that go on counts four):
            `histogram[n]` of them yielded n + 1 tokens.
        prompt_seconds: until the first token. seconds: from there to the end.
        speculated: whether drafts were used to the end; False if there were none, or if they did not pay.
    """

    tokens: int
    histogram: tuple[int, ...]
    prompt_seconds: float
    seconds: float
    speculated: bool

    @property
    def passes(self) -> int:
        """Of the model, per row."""
        return sum(self.histogram)

    @property
    def tokens_per_pass(self) -> float:
        """1.0 without drafts; at most K."""
        return self._yielded / max(self.passes, 1)

    @property
    def tokens_per_second(self) -> float:
        """After the prompt was read, the first token not counted."""
        return self._yielded / max(self.seconds, 1e-9)

    @property
    def _yielded(self) -> int:
        return sum(tokens * passes for tokens, passes in enumerate(self.histogram, start=1))

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        derived = ("passes", "tokens_per_pass", "tokens_per_second")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    def summary(self) -> str:
        """Two or three lines for a reader."""
        lines = [
            f"{self.tokens} tokens, {self.tokens_per_second:.1f} a second after {self.prompt_seconds:.2f} s for the prompt",
            f"{self.passes} passes, {self.tokens_per_pass:.2f} tokens a pass",
        ]
        if len(self.histogram) > 1:
            shares = (f"{n} in {passes}" for n, passes in enumerate(self.histogram, start=1))
            lines.append(
                f"tokens yielded: {', '.join(shares)}" + ("" if self.speculated else "; drafts were given up")
            )
        return "\n".join(lines)


def pays(passes, tokens_per_pass):
    """Whether drafts are to go on, by what they gave: numbers, or tensors of a graph."""
    return (passes < TRIAL) | (tokens_per_pass >= PAYS)
