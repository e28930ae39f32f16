"""What a preset's HDF5 files hold, told before Keras reads a weight from them.

HDF5 can do much that weights never need, and each of it was a way to attack: links to other files, datasets whose bytes
lie in another file, or nowhere (a matrix of a terabyte in a file of a kilobyte), compression. Files as Keras writes them
have none of it, so here a dataset is refused unless all of its bytes stand in the file, once, as they are.

Reference: The HDF5 file format; Keras, `saving/saving_lib.py`, `H5IOStore`.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

Shapes = dict[str, tuple[int, ...]]
_DEEPEST, _MOST = 10, 1 << 17  # groups in groups; groups and datasets in a file: many times what Llamas have


def read_shapes(paths: list[Path], refuse: Callable[[str], NoReturn]) -> Shapes:
    """The shape of every tensor in some HDF5 files, by its path in the file.

    Args:
        refuse: raises the preset's own error for a reason.
    """
    import h5py

    shapes: Shapes = {}
    for path in paths:
        try:
            with h5py.File(path, "r") as file:
                for name, dataset in _datasets(file, ""):
                    if problem := _problem(dataset):
                        refuse(f"tensor {name!r:.120} in {path.name} {problem}")
                    if name in shapes:
                        refuse(f"tensor {name!r:.120} is in two files")
                    shapes[name] = dataset.shape
        except _Unusual as error:
            refuse(f"{path.name} holds {error}")
        except (
            OSError,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # whatever h5py makes of HDF5's
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            refuse(f"{path.name} is damaged or cut short: {reason:.200}; download it again")
    return shapes


class _Unusual(Exception):
    """Something that Keras does not write."""


def _datasets(group: Any, above: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every dataset with its path. h5py's own walk passes over links and follows a group into itself."""
    import h5py

    if depth > _DEEPEST or len(group) > _MOST:
        raise _Unusual(f"groups that are nested too deep or too large, at {above!r:.120}")
    for key in group:
        name = f"{above}/{key}" if above else key
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise _Unusual(f"a link, {name!r:.120}, which may lead to another file")
        item = group[key]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, name, depth + 1)
        elif isinstance(item, h5py.Dataset):
            yield name, item
        else:
            raise _Unusual(f"a type of its own, {name!r:.120}")


def _problem(dataset: Any) -> str | None:
    """Why a dataset is not one that Keras wrote, in words."""
    if dataset.external or dataset.is_virtual:
        return "has its values in another file"
    if dataset.id.get_create_plist().get_nfilters():
        return "is compressed"
    kind = dataset.dtype
    is_bfloat16 = kind.kind == "V" and kind.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16"
    if kind.kind != "f" and not is_bfloat16:
        return f"holds {kind!s:.40}, not floating-point numbers"
    if dataset.shape is None or dataset.id.get_storage_size() != math.prod(dataset.shape) * kind.itemsize:
        return f"is not all there: {dataset.id.get_storage_size()} bytes for shape {dataset.shape}"
    return None
