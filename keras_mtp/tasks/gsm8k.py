"""GSM8K: grade-school word problems, solved in steps, `#### n` at the end. Read and scored here.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems" (arXiv 2110.14168). The score is the
official one: `extract_answer` and `is_correct` in `grade_school_math/dataset.py` of openai/grade-school-math. The number
after the first `#### ` counts, commas aside, as it is written: 18.0 is not 18, and neither is "18." with its full stop.

lm-eval's `exact_match,strict-match` reads the same number and takes a full stop off its end: there "18." is right, all else is
as here. Its `flexible-extract` looks for the last number in the text, `####` or not: another measure. test_gsm8k.py compares.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from keras_mtp.data.example import Example
from keras_mtp.data.json_lines import read_jsonl
from keras_mtp.data.sources import load_hub, load_tfds
from keras_mtp.errors import UserError
from keras_mtp.tasks.task import SPLITS, Split, Task

OFFICIAL_SIZES: dict[Split, int] = {"train": 7473, "test": 1319}
HUB_NAME, HUB_CONFIG = "openai/gsm8k", "main"
TFDS_NAME = "gsm8k"
ADDRESS = (
    "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/test.jsonl"
)
OTHER_WAYS = (
    "Use a folder with train.jsonl and test.jsonl (--data DIR) or generated word problems (--data builtin)."
)

FINAL_ANSWER = re.compile(r"#### (\-?[0-9\.\,]+)")


def extract_answer(text: str) -> str | None:
    """The number after the first `####`, its commas stripped, or None: the official rule, to the letter.

    >>> extract_answer("She pays 3*400 = $<<3*400=1200>>1200.\\n#### 1,200")
    '1200'
    >>> extract_answer("The answer is 1200.") is None
    True
    """
    match = FINAL_ANSWER.search(text)
    return match[1].replace(",", "") if match else None


def exact_match(answer: str, completion: str) -> float:
    """1.0 if the completion's final answer is the gold answer's, written the same way; else 0.0.

    >>> exact_match("#### 1,200", "So she pays\\n#### 1200"), exact_match("#### 1,200", "#### 1200.00")
    (1.0, 0.0)
    """
    predicted = extract_answer(completion)
    return float(predicted is not None and predicted == extract_answer(answer))


class GSM8K(Task):
    """The benchmark, from the hub, from TensorFlow Datasets or from its official files; or other problems in its format.

    Args:
        examples: the examples of each split.
        source: where they came from.
        revision: the hub's commit, or TFDS' version.

    Example:

    ```python
    task = GSM8K.from_folder("data/gsm8k")  # holds train.jsonl and test.jsonl
    len(task.examples("train")), len(task.examples("test"))  # (7473, 1319)
    ```
    """

    name = "gsm8k"
    metric = "exact_match"
    licence = "MIT (openai/gsm8k)"

    def __init__(self, examples: Mapping[Split, list[Example]], *, source: str, revision: str | None = None):
        self._examples = examples
        self.source = source
        self.revision = revision
        sizes = {split: len(examples[split]) for split in SPLITS}
        self.is_benchmark = sizes == OFFICIAL_SIZES
        count, official = sum(sizes.values()), sum(OFFICIAL_SIZES.values())
        other = f"{count:,} problems in GSM8K's format (not GSM8K, which has {official:,})"
        self.title = "GSM8K" if self.is_benchmark else other

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads `train.jsonl` and `test.jsonl` as OpenAI publishes them.

        Raises:
            UserError: a file is missing, or a line is not one of GSM8K's; names the file and the line.
        """
        examples = {}
        for split in SPLITS:
            path = Path(folder) / f"{split}.jsonl"
            placed = [(f"{path}, line {line}", row) for line, row in read_jsonl(path)]
            examples[split] = _read(placed, split, str(path))
        return cls(examples, source=str(folder))

    @classmethod
    def from_hub(cls) -> Self:
        """Reads `openai/gsm8k` through `datasets`, or its copy in the cache.

        Raises:
            UserError: there is neither; names the other ways to get examples.
        """
        examples, revision = {}, None
        for split in SPLITS:
            rows, revision = load_hub(HUB_NAME, HUB_CONFIG, split, other_ways=OTHER_WAYS)
            origin = f"{HUB_NAME} ({split})"
            placed = [(f"{origin}, row {index}", row) for index, row in enumerate(rows)]
            examples[split] = _read(placed, split, origin)
        return cls(examples, source="hub", revision=revision)

    @classmethod
    def from_tfds(cls) -> Self:
        """Reads TensorFlow Datasets' `gsm8k`, whose `answer` is the whole official one.

        The rows are the hub's in another order, so the held-out slice is another one as well.

        Raises:
            UserError: see `load_tfds`.
        """
        examples, version = {}, None
        for split in SPLITS:
            rows, version = load_tfds(TFDS_NAME, split, address=ADDRESS, other_ways=OTHER_WAYS)
            origin = f"TFDS' {TFDS_NAME} ({split})"
            placed = [(f"{origin}, row {index}", row) for index, row in enumerate(rows)]
            examples[split] = _read(placed, split, origin)
        return cls(examples, source="tfds", revision=version)

    def examples(self, split: Split) -> list[Example]:
        return self._examples[split]

    def score(self, example: Example, completion: str) -> float:
        return exact_match(example.answer, completion)


def _read(placed: Iterable[tuple[str, Mapping[str, Any]]], split: Split, origin: str) -> list[Example]:
    """Examples from `(place, row)` pairs; the place is for errors, the id counts the rows from 0."""
    examples = [_example(row, f"gsm8k/{split}/{index}", place) for index, (place, row) in enumerate(placed)]
    if not examples:
        raise UserError(f"A split must have at least one example. Received: {origin}, which is empty.")
    return examples


def _example(row: Mapping[str, Any], id: str, place: str) -> Example:
    for key in ("question", "answer"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(
                f"Every row must have a text under '{key}'. Received: {place}, with the keys {sorted(row)}. "
                "Rows look like {'question': 'How many ...?', 'answer': '... #### 42'}."
            )
    if extract_answer(row["answer"]) is None:
        raise UserError(
            f"Every answer must hold its result as '#### 42'. Received: {place}, whose answer ends with "
            f"{row['answer'][-40:]!r}. End it with a line such as '#### 42', or remove the row."
        )
    return Example(id=id, prompt=row["question"], answer=row["answer"])
