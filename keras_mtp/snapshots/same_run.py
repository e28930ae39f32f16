"""What must be the same for a run to go on: its recipe, and the examples that it is trained on."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keras_mtp.data.encoding import Encoded
from keras_mtp.errors import UserError
from keras_mtp.recipe import Recipe, flat, load_recipe
from keras_mtp.run_folder import RECIPE


def require_same(recipe: Recipe, folder: Path) -> None:
    """Raises a `UserError` if the run in a folder was begun by another recipe; see `lasting`."""
    begun, wanted = (dict(lasting(each)) for each in (load_recipe(folder / RECIPE), recipe))
    for key, value in wanted.items():
        if value != begun[key]:
            raise UserError(
                f"The run in {folder} was cut off and can go on only by its own recipe. Received: {key}={value!r:.80}, and there it is "
                f"{begun[key]!r:.80}. Give it so, or give another folder."
            )


def lasting(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """The recipe's fields that shape the result."""
    return (
        (key, value)
        for key, value in flat(asdict(recipe))
        if not key.startswith(("training.snapshot", "distribution."))
    )


def sha256(examples: Sequence[Encoded]) -> str:
    """Of what is trained on: the examples' tokens, and which of them are learnt."""
    digest = hashlib.sha256()
    for item in examples:
        digest.update(item.ids.tobytes() + item.is_answer.tobytes() + b"/")
    return digest.hexdigest()
