"""What a generation cost."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts and times of one generation, all rows of the batch together.

    Args:
        tokens: new tokens, stop tokens included.
        passes: of the model, per row and after the prompt was read: a pass over four rows that go on counts four.
        histogram: `histogram[n]` of these passes yielded n + 1 tokens.
        prompt_seconds: until the first token. seconds: from there to the end.
        speculated: whether drafts were used to the end; False if there were none, or if they did not pay.
    """

    tokens: int
    passes: int
    histogram: tuple[int, ...]
    prompt_seconds: float
    seconds: float
    speculated: bool

    @property
    def tokens_per_pass(self) -> float:
        """1.0 without drafts; at most K."""
        yielded = sum((n + 1) * passes for n, passes in enumerate(self.histogram))
        return yielded / max(self.passes, 1)

    @property
    def tokens_per_second(self) -> float:
        """After the prompt was read, the first token not counted."""
        yielded = sum((n + 1) * passes for n, passes in enumerate(self.histogram))
        return yielded / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """The fields and what follows from them."""
        rates = {"tokens_per_pass": self.tokens_per_pass, "tokens_per_second": self.tokens_per_second}
        return asdict(self) | rates

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
