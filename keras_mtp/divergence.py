"""Training that came to nothing: which step, which losses, which examples, written down before the run ends."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from keras_mtp.disk import write_text
from keras_mtp.errors import Diverged
from keras_mtp.run_folder import DIVERGED


@contextlib.contextmanager
def written_down(folder: Path) -> Iterator[None]:
    """Writes `diverged.json` into a run's folder if the block ends with `Diverged`: stage, step, losses by head as text (JSON has
    no "nan" and no "inf"), and the ids of the batch's examples."""
    try:
        yield
    except Diverged as error:
        content = {
            "stage": error.stage,
            "step": error.step,
            "losses": {name: str(loss) for name, loss in error.losses.items()},
            "examples": error.examples,
        }
        write_text(folder / DIVERGED, json.dumps(content, indent=2) + "\n")
        raise
