"""A folder that is there whole or not at all. No Keras here, so that a wrong one is refused before anything slow is imported."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_mtp.errors import UserError


def require_absent(folder: Path) -> Path:
    """`folder`, unless something is there already: then a `UserError`."""
    if folder.exists() or folder.is_symlink():
        raise UserError(f"`DIR` must not exist yet. Received: {folder}. Give another, or remove it.")
    return folder


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `folder` when the block ends well; else it goes, and the parents made for it."""
    require_absent(folder)
    made = [path for path in folder.parents if not path.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))  # for one's own eyes only
    try:
        inner = outer / folder.name
        inner.mkdir()
        yield inner
        require_absent(folder)
        inner.rename(folder)
    finally:
        shutil.rmtree(outer, ignore_errors=True)
        for path in made:
            with contextlib.suppress(OSError):  # not empty: it went well
                path.rmdir()
