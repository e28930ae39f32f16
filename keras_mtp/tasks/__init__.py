"""Tasks by name. `load_task("gsm8k", "builtin")` is how the rest of the package gets one."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from keras_mtp.errors import UserError
from keras_mtp.tasks.gsm8k import GSM8K
from keras_mtp.tasks.task import Split, Task
from keras_mtp.tasks.word_problems import WordProblems

__all__ = ["TASKS", "Split", "Task", "load_task"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The three places a task's examples can come from, each a function that reads and checks all of them."""

    hub: Callable[[], Task]
    folder: Callable[[Path], Task]
    builtin: Callable[[], Task]


TASKS = {
    "gsm8k": Sources(hub=GSM8K.from_hub, folder=GSM8K.from_folder, builtin=WordProblems),
}


def load_task(name: str, data: str) -> Task:
    """Reads a task's examples.

    Args:
        name: the task, a key of `TASKS`.
        data: `"hub"`, `"builtin"` or a folder with the task's files (`./hub` if that is its name).

    Returns:
        The task, its examples read and checked: what is wrong with the data shows here, not in mid-run.

    Raises:
        UserError: there is no such task or folder, or its data cannot be read.

    Example:

    >>> load_task("gsm8k", "builtin").title
    'generated word problems (not GSM8K)'
    """
    if name not in TASKS:
        raise UserError(
            f"`task` must be one of: {', '.join(TASKS)}. Received: {name!r}.{_did_you_mean(name, TASKS)}"
        )
    sources = TASKS[name]
    if data == "hub":
        return sources.hub()
    if data == "builtin":
        return sources.builtin()
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"`data` must be 'hub', 'builtin' or a folder that exists. Received: {data!r}."
            f"{_did_you_mean(data, ('hub', 'builtin'))}"
        )
    return sources.folder(folder)


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
