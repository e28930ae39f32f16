"""The one door to the disk for whatever must be whole after a crash: all of it is there, or none.

    write      into a folder beside the place, `.partial`, that nobody reads
    sync       every file and the folder itself
    rename     into place, which the file system does at once or not at all
    sync       the folder above, so that the new name survives a power cut

Every single write, sync, rename and removal goes through `DISK`. The tests and tools/crashtest.py put another in its place, which
stops the process, fills the disk or breaks it at any of them.
"""

import contextlib
import errno
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mtp.errors import UserError

if TYPE_CHECKING:
    import numpy as np

PARTIAL = ".partial"  # ends the name of what is being written


class Disk:
    """What is done to the disk, one step at a time."""

    def write(self, path: Path, data: bytes) -> None:
        """Makes a file."""
        path.write_bytes(data)

    def append(self, path: Path, data: bytes) -> None:
        """Adds to a file, or makes it."""
        with path.open("ab") as file:
            file.write(data)

    def write_tensors(self, path: Path, arrays: "Mapping[str, np.ndarray]") -> None:
        """Makes a safetensors file, without a second copy of it in memory.

        Raises:
            OSError: whatever the disk says.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file  # here, since `keras-mtp --help` does not need it

        try:
            save_file(dict(arrays), path)
        except SafetensorError as error:  # its name for whatever the disk says
            raise OSError(errno.EIO, str(error), str(path)) from error

    def sync(self, path: Path) -> None:
        """Makes sure that a file or folder survives a power cut."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """Moves a file over another, or a folder to where there is none."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """Removes a file or an empty folder."""
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


DISK = Disk()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write files into that becomes `folder` when the block ends well, and goes otherwise.

    Raises:
        UserError: the disk does not take it. Nothing of it is left then, and an older `folder` is untouched.
    """
    temporary = folder.with_name(folder.name + PARTIAL)
    try:
        remove_tree(temporary)
        temporary.mkdir(parents=True)
        yield temporary
        for path in (*sorted(temporary.iterdir()), temporary):
            DISK.sync(path)
        old = _moved_aside(folder)  # a rename cannot take the place of a folder that holds something
        try:
            DISK.rename(temporary, folder)
        except OSError:
            with contextlib.suppress(OSError):
                DISK.rename(old, folder)
            raise
        DISK.sync(folder.parent)
        remove_tree(old)
    except OSError as error:
        _clear(temporary)
        raise UserError(
            f"The checkpoint must be written to {folder.parent}. Received: {error.strerror or error}. Make room there, or make it "
            "writable, and run again: what was written before is still there."
        ) from error
    except BaseException:
        _clear(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + PARTIAL)
    data = text.encode()
    try:
        DISK.write(temporary, data)
        DISK.sync(temporary)
        DISK.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: null instead, in lists and objects too."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_whole(folder: Path) -> None:
    """Removes a folder, if it is there, so that nobody ever sees a part of it."""
    remove_tree(_moved_aside(folder))


def remove_tree(folder: Path) -> None:
    """Removes a folder and all in it, links and not what they lead to; the folder need not be there."""
    if folder.is_dir() and not folder.is_symlink():
        for path in sorted(folder.iterdir()):
            remove_tree(path)
    if folder.exists() or folder.is_symlink():
        DISK.remove(folder)


def _moved_aside(folder: Path) -> Path:
    """Where a folder is after its name was made free; it may be that there is none."""
    aside = folder.with_name(f"{folder.name}.old{PARTIAL}")
    remove_tree(aside)
    if folder.is_dir():
        DISK.rename(folder, aside)
    return aside


def _clear(temporary: Path) -> None:
    with contextlib.suppress(OSError):
        remove_tree(temporary)
