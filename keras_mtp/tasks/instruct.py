"""instruct-v3: instructions of nine sources with their responses. Read and scored here.

`mosaicml/instruct-v3` on the Hugging Face hub: `prompt`, `response`, `source`. A prompt is an instruction in the form of
Alpaca ("Below is an instruction that describes a task. ..."); it becomes the user's turn as it stands. Free text has no
right answer: the held-out loss, which the report shows for each source, says most. The score is ROUGE-L (Lin 2004,
"ROUGE: A Package for Automatic Evaluation of Summaries"), words in common with one response in the same order.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from keras_mtp.data.example import Example
from keras_mtp.data.json_lines import read_jsonl
from keras_mtp.data.sources import load_hub
from keras_mtp.errors import UserError
from keras_mtp.tasks.mixed_order import rank
from keras_mtp.tasks.task import SPLITS, Split, Task

HUB_NAME, HUB_CONFIG = "mosaicml/instruct-v3", "default"
OTHER_WAYS = (
    "Use a folder with train.jsonl and test.jsonl, whose rows have prompt, response and source (--data DIR)."
)
WORD = re.compile(r"[a-z0-9]+")
NO_JUDGEMENT = (
    "ROUGE-L counts words in common with one response, in the same order: it is no judgement of quality"
)


def rouge_l(answer: str, completion: str) -> float:
    """F-measure of the longest common subsequence of words, as the package rouge-score has it without stemming.

    >>> rouge_l("The cat sat on the mat.", "the cat lay on a mat")
    0.6666666666666666
    """
    wanted, said = WORD.findall(answer.lower()), WORD.findall(completion.lower())
    shared = _longest_common_subsequence(wanted, said)
    return 2 * shared / (len(wanted) + len(said)) if shared else 0.0


def _longest_common_subsequence(first: list[str], second: list[str]) -> int:
    """Its length, by the rows of the usual table."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = lengths[place]
            lengths[place] = diagonal + 1 if word == other else max(above, lengths[place - 1])
            diagonal = above
    return lengths[-1]


class Instruct(Task):
    """Instructions from the hub, or rows in the same format from a folder.

    Args:
        examples: the examples of each split.
        title: what reports call them.
        source: where they came from. revision: the hub's commit.
        note: what was left out.

    Example:

    ```python
    task = Instruct.from_folder("data/instruct")  # holds train.jsonl and test.jsonl
    {example.source for example in task.examples("train")}
    ```
    """

    name = "instruct"
    metric = "rouge_l"
    is_benchmark = False  # there is no official score

    def __init__(
        self,
        examples: Mapping[Split, list[Example]],
        *,
        title: str,
        licence: str,
        source: str,
        revision: str | None = None,
        note: str = "",
    ):
        self._examples = {"train": examples["train"], "test": sorted(examples["test"], key=rank)}
        self.title, self.licence, self.source, self.revision = title, licence, source, revision
        self.note = ". ".join(filter(None, (note, NO_JUDGEMENT)))

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads `train.jsonl` and `test.jsonl`, a row on each line.

        Raises:
            UserError: a file is missing, or a line is no such row; names the file and the line.
        """
        examples = {}
        for split in SPLITS:
            path = Path(folder) / f"{split}.jsonl"
            examples[split] = [
                _example(row, f"{path.name}:{line}", f"{path}, line {line}") for line, row in read_jsonl(path)
            ]
            _refuse_empty(examples[split], str(path))
        title = "rows in instruct-v3's format, not instruct-v3"
        return cls(examples, title=title, licence="not stated (a folder's rows)", source=str(folder))

    @classmethod
    def from_hub(cls) -> Self:
        """Reads `mosaicml/instruct-v3` through `datasets`, or its copy in the cache.

        Nobody can mend its rows, so those without a text, and training rows that are test rows too, are left out.

        Raises:
            UserError: there is neither; names the other ways to get examples.
        """
        examples, revision, blank = {}, None, 0
        for split in SPLITS:
            rows, revision = load_hub(HUB_NAME, HUB_CONFIG, split, other_ways=OTHER_WAYS)
            filled = [(index, row) for index, row in enumerate(rows) if _is_filled(row)]
            blank += len(rows) - len(filled)
            place = f"{HUB_NAME} ({split})"
            examples[split] = [
                _example(row, f"instruct/{split}/{index}", f"{place}, row {index}") for index, row in filled
            ]
            _refuse_empty(examples[split], place)
        examples["train"], shared = _apart(examples["train"], examples["test"])
        note = f"Left out: {blank} rows without a text, {shared} training rows that are in the test split as well"
        return cls(
            examples,
            title="instruct-v3",
            licence="of its sources, CC BY-SA 3.0 for the largest; see the card of mosaicml/instruct-v3",
            source="hub",
            revision=revision,
            note=note if blank or shared else "",
        )

    def examples(self, split: Split) -> list[Example]:
        return self._examples[split]

    def score(self, example: Example, completion: str) -> float:
        return rouge_l(example.answer, completion)


def _apart(training: Iterable[Example], test: Iterable[Example]) -> tuple[list[Example], int]:
    """The training examples that are no test item, and how many are."""
    training, asked = list(training), {example.normalised for example in test}
    kept = [example for example in training if example.normalised not in asked]
    return kept, len(training) - len(kept)


def _is_filled(row: Mapping[str, Any]) -> bool:
    return all(key not in row or str(row[key] or "").strip() for key in ("prompt", "response"))


def _refuse_empty(examples: list[Example], origin: str) -> None:
    if not examples:
        raise UserError(f"A split must have at least one example. Received: {origin}, which is empty.")


def _example(row: Mapping[str, Any], id: str, place: str) -> Example:
    for key in ("prompt", "response", "source"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(
                f"Every row must have a text under '{key}'. Received: {place}, with the keys {', '.join(sorted(row))}. "
                "Rows look like {'prompt': '...', 'response': '...', 'source': 'dolly'}."
            )
    return Example(id=id, prompt=row["prompt"], answer=row["response"], source=row["source"])
