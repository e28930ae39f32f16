"""Tasks by name. `load_task("gsm8k", "builtin")` is how the rest of the package gets one."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keras_mtp.errors import UserError
from keras_mtp.tasks.coqa import CoQA
from keras_mtp.tasks.gsm8k import GSM8K
from keras_mtp.tasks.instruct import Instruct
from keras_mtp.tasks.jsonl import JsonLines
from keras_mtp.tasks.overlap import refuse_overlap
from keras_mtp.tasks.task import Split, Task
from keras_mtp.tasks.told_stories import ToldStories
from keras_mtp.tasks.word_problems import WordProblems
from keras_mtp.untrusted import require_inside

__all__ = ["TASKS", "Split", "Task", "load_task"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The places a task's examples can come from; each is read and checked as a whole.

    Args:
        named: functions by what `--data` calls them.
        path: reads from a path. accepts: whether there is something to read at it. what: what that is, for errors.
    """

    named: Mapping[str, Callable[[], Task]]
    path: Callable[[Path], Task]
    accepts: Callable[[Path], bool]
    what: str


TASKS = {
    "gsm8k": Sources(
        named={"hub": GSM8K.from_hub, "tfds": GSM8K.from_tfds, "builtin": WordProblems},
        path=GSM8K.from_folder,
        accepts=Path.is_dir,
        what="a folder that exists",
    ),
    "coqa": Sources(
        named={"hub": CoQA.from_hub, "tfds": CoQA.from_tfds, "builtin": ToldStories},
        path=CoQA.from_folder,
        accepts=Path.is_dir,
        what="a folder with train.json and dev.json",
    ),
    "instruct": Sources(
        named={"hub": Instruct.from_hub},
        path=Instruct.from_folder,
        accepts=Path.is_dir,
        what="a folder with train.jsonl and test.jsonl (no examples are generated for it)",
    ),
    "jsonl": Sources(
        named={},
        path=JsonLines.from_path,
        accepts=Path.exists,
        what="a JSON Lines file that exists, or a folder with train.jsonl and test.jsonl",
    ),
}


def load_task(name: str, data: str) -> Task:
    """Reads a task's examples.

    Args:
        name: the task, a key of `TASKS`.
        data: one of the task's named sources, such as `"hub"` or `"builtin"`, or a path (`./hub` if that is its name).

    Returns:
        The task, its examples read and checked: what is wrong with the data shows here, not in mid-run.

    Raises:
        UserError: there is no such task or source, its data cannot be read, or test items are in the training data.

    Example:

    >>> load_task("gsm8k", "builtin").title
    'generated word problems (not GSM8K)'
    """
    if name not in TASKS:
        raise UserError(
            f"`task` must be one of: {', '.join(TASKS)}. Received: {name!r}.{_did_you_mean(name, TASKS)}"
        )
    sources, path = TASKS[name], Path(data).expanduser()
    if data in sources.named:
        task = sources.named[data]()
    elif sources.accepts(path):
        if path.is_dir():
            require_inside(path)
        task = sources.path(path)
    else:
        names = f"{', '.join(map(repr, sources.named))} or " if sources.named else ""
        raise UserError(
            f"`data` of the task {name} must be {names}{sources.what}. Received: {data!r}.{_did_you_mean(data, sources.named)}"
        )
    refuse_overlap(task)
    return task


def _did_you_mean(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
