"""Files that others wrote: only plain files are opened, and only those that lie in the folder that was named.

A model, a data set or a run may come from anywhere. A pipe in its place would keep a reader waiting for ever, a device
would never end, and a link to `~/.ssh/id_rsa` that calls itself LICENSE would be copied into every run and every export.
So what is opened is a plain file, and a folder whose links lead out of it is refused.

One kind of link is expected: the Hugging Face cache keeps `snapshots/COMMIT/config.json` as a link to `blobs/HASH` two folders
up. From a folder in `snapshots`, links may lead there, and nowhere else. A link that the user names himself, as a model
or as a file of data, is followed: he chose it.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from keras_mtp.errors import UserError

_LONGEST_NAME = 255  # bytes; more is an error of the system wherever the name is used
_SUBFOLDERS = (Path(), Path("assets"), Path("assets", "tokenizer"))  # all that is ever read from


def open_plain(path: str | Path) -> BinaryIO:
    """Opens a file for reading bytes.

    Raises:
        OSError: no such file, no permission, or no plain file: a folder, a pipe, a device.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe or a device, not a plain file", str(path))


def is_plain_name(name: str) -> bool:
    """Whether a name that stands in a file can only be that of a file in its own folder."""
    size = len(name.encode("utf-8", "surrogatepass"))  # half a surrogate pair is no name either, but no crash
    return name not in ("", "..") and Path(name).name == name and size <= _LONGEST_NAME


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a path that should lie in a folder is elsewhere once its links are followed."""
    try:
        root, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return True
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parent.parent / "blobs")
    return not any(target.is_relative_to(each) for each in roots)


def require_inside(folder: Path) -> None:
    """Raises a `UserError` if a link in a folder, or in its `assets`, leads out of it."""
    for path in _links(folder):
        if leads_out(path, folder):
            name = path.relative_to(folder)
            raise UserError(
                f"{folder.name} cannot be used: {str(name)!r:.80} is a link that leads out of the folder. Put the file itself there."
            )


def _links(folder: Path) -> Iterator[Path]:
    for subfolder in _SUBFOLDERS:
        place = folder / subfolder
        if place.is_dir():  # a link to a folder elsewhere was found as a link before
            yield from sorted(path for path in place.iterdir() if path.is_symlink())
