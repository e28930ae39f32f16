"""Which devices and processes train one model together: decided once for a run, and asked from anywhere.

    [distribution]
    data = 4        devices, each with its own rows of every batch; each has all weights, or
    model = 2       ... so many devices together have them (JAX)

Whatever the devices are, a batch is the same examples in the same order, and its loss the same sum: the result is that of
one device but for rounding. Starting the processes is the user's, by each backend's own means (README, "Several
devices"); all of them run the same command.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_mtp import backend
from keras_mtp.backend.group import Group
from keras_mtp.errors import UserError

_active = [Group()]


def active() -> Group:
    """The devices that this process trains with; one alone where nobody began anything else."""
    return _active[-1]


@contextlib.contextmanager
def begun(data: int, model: int) -> Iterator[Group]:
    """Joins the processes that were started together. In the block the model is made, trained and judged.

    Args:
        data, model: `distribution.data` and `distribution.model` of the recipe.

    Raises:
        UserError: there are not so many devices, or the backend cannot; or another process of the run has gone.
    """
    group = backend.join(data, model)
    _active.append(group)
    failed = True
    try:
        with group.scope():
            yield group
        failed = False
    except Exception as error:
        explained = group.explained(error)
        if explained is error:
            raise
        raise explained from error
    finally:
        _active.pop()
        group.leave(failed=failed)


def by_chief(decide: Callable[[], str]) -> str:
    """What the chief decides, in all processes.

    Raises:
        UserError: the chief's; in all processes.
    """
    group, said, error = active(), "", ""
    if group.is_chief:
        try:
            said = decide()
        except UserError as refused:
            error = str(refused)
    said, error = json.loads(group.from_chief(json.dumps([said, error]).encode()))
    if error:
        raise UserError(error)
    return said


@contextlib.contextmanager
def own_folder(folder: Path, claimed: Callable[[Path], contextlib.AbstractContextManager]) -> Iterator[Path]:
    """Where this process may write: the chief in `folder`, the others in one that goes with the block.

    Args:
        claimed: a context in which nobody else writes in a folder.

    Raises:
        UserError: the chief's, where it cannot be claimed.
    """
    with contextlib.ExitStack() as stack:

        def claim() -> str:
            stack.enter_context(claimed(folder))
            return str(folder)

        by_chief(claim)
        yield folder if active().is_chief else Path(stack.enter_context(tempfile.TemporaryDirectory()))
