"""What ends a command in an orderly way: a mistake that the user can mend, training that came to nothing, a signal.

The command line shows each as a single line: exit code 2 for a mistake, 3 for a run that diverged, 128 and the signal's number for
one that was stopped.
"""

import signal
from collections.abc import Mapping, Sequence


class UserError(ValueError):
    """A mistake in what the user gave: a recipe, a file, an option, an argument. In Python a `ValueError` like Keras' own."""


class Diverged(ArithmeticError):
    """A training loss that is no finite number: every step after it would be in vain.

    Args:
        stage: "warmup", "joint" or "heads". step: the optimizer step, counted from 1. losses: of that step, by head.
        examples: ids of the step's batch.
    """

    def __init__(self, *, stage: str, step: int, losses: Mapping[str, float], examples: Sequence[str]):
        self.stage, self.step, self.losses, self.examples = stage, step, dict(losses), list(examples)
        found = ", ".join(f"{name} {loss}" for name, loss in self.losses.items())
        super().__init__(
            f"The loss must be a finite number. Received: {found}, in step {step} of the stage {stage}. The batch is in diverged.json, "
            "and the last good weights in the newest snapshot. Lower training.learning_rate or heads.learning_rate, in a run of its "
            "own, or see what is wrong with these examples."
        )


class Interrupted(KeyboardInterrupt):
    """A run that a signal ended between two steps, with all kept that it needs to go on.

    Args:
        message: how to go on. number: of the signal.
    """

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number
