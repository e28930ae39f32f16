"""What a run learns and is judged by: a task reads its examples *and* scores what the model says about them.

One file a task, as in nanochat's `tasks/`: who wonders what a score means finds the data's reading beside it.
"""

import abc
from typing import Literal, get_args

from keras_mtp.data.example import Example

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Task(abc.ABC):
    """Examples of two splits and a score for a completion.

    Attributes:
        name: what a recipe calls the task, `"gsm8k"`.
        title: what reports call the data, `"GSM8K"`.
        metric: what the mean of the scores is, `"exact_match"`.
        licence: of the data.
        source: where the examples came from: `"hub"`, `"tfds"`, `"builtin"`, or a path.
        revision: which version of the source, where it has versions.
        note: what a report should say about the data beyond that, such as how they were split.
        is_benchmark: whether a score may be called by the benchmark's name; False for generated examples.

    Example:

    ```python
    task = load_task("gsm8k", "builtin")
    example = task.examples("test")[0]
    task.score(example, example.answer)  # 1.0
    ```
    """

    name: str
    title: str
    metric: str
    licence: str
    source: str
    revision: str | None
    is_benchmark: bool
    note: str = ""

    @abc.abstractmethod
    def examples(self, split: Split) -> list[Example]:
        """The examples of a split, in the same order every time."""

    @abc.abstractmethod
    def score(self, example: Example, completion: str) -> float:
        """From 0.0 (wrong) to 1.0 (right). `completion` is the model's turn without its special tokens."""

    def further_scores(self, example: Example, completion: str) -> dict[str, float]:
        """Scores by other measures, by their names, the same for every example; a report shows their means as well."""
        return {}
