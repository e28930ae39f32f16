"""What tools call a run in folders that they share among runs: two of the same name are not the same run."""

import json
from pathlib import Path


def weights_of(run: Path) -> str:
    """The SHA-256 by which a run's checkpoint is known."""
    return json.loads((run / "checkpoint" / "checkpoint.json").read_text(encoding="utf-8"))["sha256"]


def own_name(run: Path) -> str:
    """Its folder's name and the beginning of that."""
    return f"{run.name}-{weights_of(run)[:8]}"
