"""The user's own conversations: JSON Lines, an example on each line. Read and scored here.

    {"prompt": "2 + 2?", "response": "4"}
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"},
                  {"role": "assistant", "content": "4"}]}

Each may have an "id" of its own. Every turn of the assistant is learnt. Any other key is refused rather than passed over:
what a model should see must not be lost for its spelling.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from keras_mtp.data.example import Example, Message
from keras_mtp.data.json_lines import read_jsonl
from keras_mtp.errors import UserError
from keras_mtp.tasks.mixed_order import rank
from keras_mtp.tasks.task import SPLITS, Split, Task
from keras_mtp.untrusted import open_plain

TEST_SHARE, LARGEST_TEST = 0.1, 500  # of a single file
FORMAT = (
    'A row is {"prompt": "...", "response": "..."} or {"messages": [{"role": "user", "content": "..."}, ...]}, '
    'with an "id" if you like.'
)


def normalised_exact_match(answer: str, completion: str) -> float:
    """1.0 if the two are the same but for case, white space and how Unicode spells them; else 0.0.

    >>> normalised_exact_match("The Eiffel\\n Tower", " the eiffel tower"), normalised_exact_match("4", "4.")
    (1.0, 0.0)
    """
    return float(_normalised(answer) == _normalised(completion))


class JsonLines(Task):
    """Conversations from one file, or from a folder with `train.jsonl` and `test.jsonl`.

    The score compares the last turn of each test conversation, given all turns before it, with what the model says: a
    strict measure, made for short answers. For free text look at the held-out loss and at `answers.jsonl`.

    Args:
        examples: the examples of each split.
        path: where they came from.
        note: how they were split, if the task had to do it.

    Example:

    ```python
    task = JsonLines.from_path("my.jsonl")
    task.examples("train")[0].messages
    ```
    """

    name = "jsonl"
    metric = "normalised_exact_match"
    licence = "not stated (the user's own data)"
    is_benchmark = False

    def __init__(self, examples: Mapping[Split, list[Example]], *, path: Path, note: str = ""):
        self._examples = examples
        self.title, self.source, self.note = path.name, str(path), note
        self.revision = _digest([path] if path.is_file() else [path / f"{split}.jsonl" for split in SPLITS])

    @classmethod
    def from_path(cls, path: str | Path) -> Self:
        """Reads a file or a folder. A file's test split is taken out of it, by content: the same rows each time.

        Raises:
            UserError: what is wrong with the data, with file and line.
        """
        path = Path(path)
        if path.is_dir():
            files: dict[Split, Path] = {split: path / f"{split}.jsonl" for split in SPLITS}
            places: dict[str, str] = {}
            return cls({split: _read(file, places) for split, file in files.items()}, path=path.absolute())
        examples = _read(path, {})
        training, test = split_test(examples, str(path))
        note = f"Test split: {len(test)} of the file's {len(examples)} examples, chosen by their content"
        return cls({"train": training, "test": test}, path=path.absolute(), note=note)

    def examples(self, split: Split) -> list[Example]:
        return self._examples[split]

    def score(self, example: Example, completion: str) -> float:
        return max(normalised_exact_match(a, completion) for a in (example.answer, *example.references))


def split_test(examples: Iterable[Example], origin: str) -> tuple[list[Example], list[Example]]:
    """Takes a tenth of the examples, at most 500 different ones, as the test split.

    Their contents alone decide: the order of the file does not matter, and examples that say the same stay together.

    Returns:
        `(training, test)`: training in the order of the file, test in an order as good as random.
    """
    examples = list(examples)
    ranks = {example.normalised: rank(example) for example in examples}
    if len(ranks) < 3:
        raise UserError(
            "A file must hold at least 3 different examples: to train on, to follow the training, and to test. "
            f"Received: {origin}, which holds {len(ranks)}. Give more."
        )
    count = min(max(round(len(ranks) * TEST_SHARE), 1), LARGEST_TEST)
    chosen = set(sorted(ranks, key=ranks.__getitem__)[:count])
    test = [example for example in examples if example.normalised in chosen]
    test.sort(key=lambda example: ranks[example.normalised])
    return [example for example in examples if example.normalised not in chosen], test


def _read(path: Path, places: dict[str, str]) -> list[Example]:
    """The examples of a file. `places` has every id seen before, and where."""
    examples = []
    for line, row in read_jsonl(path):
        place = f"{path}, line {line}"
        try:
            example = _example(row, f"{path.name}:{line}")
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if example.id in places:
            raise UserError(
                f"{place}: `id` must be unique. Received: {example.id!r}, which {places[example.id]} has too. "
                "Change one of them, or leave ids out."
            )
        places[example.id] = place
        examples.append(example)
    if not examples:
        raise UserError(f"A file must hold at least one example. Received: {path}, which is empty. {FORMAT}")
    return examples


def _example(row: Mapping[str, Any], default_id: str) -> Example:
    id_ = row.get("id", default_id)
    if not isinstance(id_, (str, int)) or isinstance(id_, bool) or id_ == "":
        raise UserError(
            f"`id` must be a text or a whole number. Received: id={id_!r}. Change it, or leave it out."
        )
    keys = set(row) - {"id"}
    if keys == {"prompt", "response"}:
        return Example.from_messages(
            str(id_), [Message("user", row["prompt"]), Message("assistant", row["response"])]
        )
    if keys == {"messages"}:
        return Example.from_messages(str(id_), _messages(row["messages"]))
    raise UserError(
        f"A row must have the keys prompt and response, or messages. Received: {', '.join(sorted(row)) or 'none'}. "
        f"{FORMAT} Rename or remove others: they would not be used."
    )


def _messages(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"`messages` must be a list of turns. Received: {messages!r:.60}. {FORMAT}")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            keys = (
                f"the keys {', '.join(sorted(message))}" if isinstance(message, dict) else f"{message!r:.60}"
            )
            raise UserError(
                f"A turn must have role and content, and nothing else. Received: {keys} in turn {number}."
            )
    return [Message(**message) for message in messages]


def _normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open_plain(path) as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return f"sha256 {digest.hexdigest()[:16]}"
