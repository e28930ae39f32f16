"""CoQA: questions about a passage, each of which may refer to those before it. Read and scored here.

Reddy, Chen, Manning 2019, "CoQA: A Conversational Question Answering Challenge" (TACL 7, arXiv 1808.07042). The score is
the official one: `_compute_turn_score` in `evaluate-v1.0.py` of stanfordnlp/coqa-baselines, with the human answers as the
dialogue so far, as is usual. An unanswerable question is one whose answer is "unknown", to be said like any other.

A conversation to train on is one example with a history (see `dialogue`): every answer is learnt once, given the passage
and the turns before it, which is what an example for each turn would teach, at a fifteenth of the cost, since the passage
is read once; and what is held out shares no passage with what is trained on. A test item is one turn.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from keras_mtp.data.example import Example
from keras_mtp.data.json_lines import read_json
from keras_mtp.data.sources import Rows, load_hub, load_tfds
from keras_mtp.errors import UserError
from keras_mtp.tasks.dialogue import Dialogue, Turn
from keras_mtp.tasks.mixed_order import rank
from keras_mtp.tasks.task import SPLITS, Split, Task

OFFICIAL_SIZES: dict[Split, int] = {
    "train": 7199,
    "test": 500,
}  # conversations; the test is the development set
FILES: dict[Split, tuple[str, str]] = {
    "train": ("train.json", "coqa-train-v1.0.json"),
    "test": ("dev.json", "coqa-dev-v1.0.json"),
}
HUB_NAME, HUB_CONFIG, HUB_SPLITS = "stanfordnlp/coqa", "default", {"train": "train", "test": "validation"}
TFDS_NAME = "coqa"
ADDRESS = "https://nlp.stanford.edu/data/coqa/coqa-dev-v1.0.json"
OTHER_WAYS = (
    "Use a folder with CoQA's train.json and dev.json (--data DIR) or generated dialogues (--data builtin)."
)
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space: the official rule, in the official order.

    >>> normalised("  The end, a well-known one.")
    'end wellknown one'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(answer: str, completion: str) -> float:
    """1.0 if both are the same text, normalised; else 0.0.

    >>> exact_match("The barn", "barn."), exact_match("barn", "in the barn")
    (1.0, 0.0)
    """
    return float(normalised(answer) == normalised(completion))


def token_f1(answer: str, completion: str) -> float:
    """Harmonic mean of precision and recall of the words, normalised; where one text has none, whether both have none.

    >>> token_f1("in the barn", "a red barn")
    0.5
    """
    wanted, said = normalised(answer).split(), normalised(completion).split()
    if not wanted or not said:
        return float(wanted == said)
    shared = (Counter(wanted) & Counter(said)).total()
    return 2 * shared / (len(wanted) + len(said))


def over_references(
    measure: Callable[[str, str], float], references: Sequence[str], completion: str
) -> float:
    """The official score of a turn: the best over the human answers, with each of them left out in turn, on average.

    So the model meets as many answers as a human does who is compared with the others. A single answer is not left out.
    """
    scores = [measure(reference, completion) for reference in references]
    if len(scores) == 1:
        return scores[0]
    return sum(max(scores[:i] + scores[i + 1 :]) for i in range(len(scores))) / len(scores)


class CoQA(Task):
    """The benchmark, from its official files, from the hub or from TensorFlow Datasets; or a part of it.

    Only the official development file has the further human answers with which CoQA's scores are made.

    Args:
        dialogues: the conversations of each split.
        source: where they came from.
        revision: the hub's commit, or TFDS' version.

    Example:

    ```python
    task = CoQA.from_folder("data/coqa")  # holds train.json and dev.json
    len(task.examples("train")), len(task.examples("test"))  # (7199, 7983): conversations, turns
    ```
    """

    name = "coqa"
    metric = "token_f1"
    licence = "by source: gutenberg and wikipedia CC BY-SA 4.0, mctest MSR-LA, cnn Apache-2.0, race its own, for research only"

    def __init__(
        self, dialogues: Mapping[Split, Sequence[Dialogue]], *, source: str, revision: str | None = None
    ):
        self._examples = {
            "train": [dialogue.whole() for dialogue in dialogues["train"]],
            "test": sorted((turn for d in dialogues["test"] for turn in d.turn_by_turn()), key=rank),
        }
        self.source, self.revision = source, revision
        sizes = {split: len(dialogues[split]) for split in SPLITS}
        alone = sum(not example.references for example in self._examples["test"])
        self.is_benchmark = sizes == OFFICIAL_SIZES and not alone
        self.title = _title(sizes, bool(alone))
        self.note = _note(sizes, len(self._examples["test"]), alone)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self:
        """Reads the official files, by their official names or as `train.json` and `dev.json`.

        Raises:
            UserError: a file is missing or is not in CoQA's format; names the file and the story.
        """
        dialogues: dict[Split, list[Dialogue]] = {}
        places: dict[str, str] = {}
        for split, names in FILES.items():
            path = _found(Path(folder), names)
            stories = _need(read_json(path), "data", list, str(path))
            placed = [(f"{path}, story {number}", story) for number, story in enumerate(stories, start=1)]
            dialogues[split] = [_from_story(story, place, places) for place, story in placed]
            _refuse_empty(dialogues[split], str(path))
        return cls(dialogues, source=str(folder))

    @classmethod
    def from_hub(cls) -> Self:
        """Reads `stanfordnlp/coqa` through `datasets`, or its copy in the cache.

        Raises:
            UserError: there is neither; names the other ways to get examples.
        """
        rows = {s: load_hub(HUB_NAME, HUB_CONFIG, HUB_SPLITS[s], other_ways=OTHER_WAYS) for s in SPLITS}
        return cls._from_rows(rows, HUB_NAME, source="hub")

    @classmethod
    def from_tfds(cls) -> Self:
        """Reads TensorFlow Datasets' `coqa`: the hub's rows, in another order.

        Raises:
            UserError: see `load_tfds`.
        """
        rows = {s: load_tfds(TFDS_NAME, s, address=ADDRESS, other_ways=OTHER_WAYS) for s in SPLITS}
        return cls._from_rows(rows, f"TFDS' {TFDS_NAME}", source="tfds")

    @classmethod
    def _from_rows(cls, rows: Mapping[Split, Rows], origin: str, *, source: str) -> Self:
        dialogues = {}
        for split, (of_split, _) in rows.items():
            place = f"{origin} ({split})"
            dialogues[split] = [
                _from_row(row, f"coqa/{split}/{index}", f"{place}, row {index}")
                for index, row in enumerate(of_split)
            ]
            _refuse_empty(dialogues[split], place)
        return cls(dialogues, source=source, revision=rows["test"].revision)

    def examples(self, split: Split) -> list[Example]:
        return self._examples[split]

    def score(self, example: Example, completion: str) -> float:
        return over_references(token_f1, (example.answer, *example.references), completion)

    def further_scores(self, example: Example, completion: str) -> dict[str, float]:
        answers = (example.answer, *example.references)
        return {"exact_match": over_references(exact_match, answers, completion)}


def _title(sizes: Mapping[Split, int], answered_once: bool) -> str:
    """What reports call the data: CoQA's name alone stands for all of it, scored as officially."""
    if sizes == OFFICIAL_SIZES:
        return "CoQA with one human answer a turn" if answered_once else "CoQA"
    count, official = sum(sizes.values()), sum(OFFICIAL_SIZES.values())
    if any(sizes[split] > OFFICIAL_SIZES[split] for split in SPLITS):
        return f"{count:,} conversations in CoQA's format (not CoQA, which has {official:,})"
    return f"a sample of CoQA ({count:,} of {official:,} conversations)"


def _note(sizes: Mapping[Split, int], turns: int, alone: int) -> str:
    note = (
        f"{sizes['train']:,} of {OFFICIAL_SIZES['train']:,} training conversations; the test items are the {turns:,} turns "
        f"of {sizes['test']:,} of {OFFICIAL_SIZES['test']:,} development conversations, in mixed order, each asked after "
        "the human answers before it"
    )
    if not alone:
        return f"{note}. Scored as officially, against all human answers of a turn"
    return (
        f"{note}. {alone:,} of these turns come with one human answer, not with CoQA's further ones, so the scores are "
        "lower than official ones would be"
    )


def _found(folder: Path, names: Sequence[str]) -> Path:
    paths = [folder / name for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise UserError(
        f"A folder of CoQA must hold {' or '.join(names)}. Received: {folder}, which holds neither. Check the path."
    )


def _refuse_empty(dialogues: Sequence[Dialogue], origin: str) -> None:
    if not dialogues:
        raise UserError(f"A split must have at least one conversation. Received: {origin}, which has none.")


def _need(row: Any, key: str, kind: type, place: str) -> Any:
    """The value of a key, checked to be of a type."""
    if not isinstance(row, dict):
        raise UserError(f"An object must stand here. Received: {place}, which is a {type(row).__name__}.")
    value = row.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = (
            f"a {type(value).__name__}" if key in row else f"missing: the keys are {', '.join(sorted(row))}"
        )
        raise UserError(
            f"'{key}' must be a {kind.__name__}. Received: {place}, where it is {what:.200}. The files are CoQA's own, "
            "unchanged: see https://stanfordnlp.github.io/coqa."
        )
    return value


def _from_story(story: Any, place: str, places: dict[str, str]) -> Dialogue:
    """A conversation of the official files. `places` has every id seen before, and where."""
    id = _need(story, "id", str, place)
    if id in places:
        raise UserError(f"'id' must be unique. Received: {place}, with {id!r}, which {places[id]} has too.")
    places[id] = place
    place = f"{place} ({id})"
    answers = {"answers": _texts(story, "answers", place)}
    if "additional_answers" in story:
        further = _need(story, "additional_answers", dict, place)
        answers |= {
            f"answers of {name}": _texts(further, name, f"{place}, additional_answers") for name in further
        }
    questions = _texts(story, "questions", place)
    return _dialogue(id, story, questions=questions, answers=answers, place=place)


def _from_row(row: Mapping[str, Any], id: str, place: str) -> Dialogue:
    """A conversation as the hub and TFDS have it: one list for each thing."""
    given = _need(_need(row, "answers", dict, place), "input_text", list, place)
    return _dialogue(
        id, row, questions=_need(row, "questions", list, place), answers={"answers": given}, place=place
    )


def _texts(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    """The texts of a list of turns, which are numbered from 1."""
    texts = []
    for number, entry in enumerate(_need(row, key, list, place), start=1):
        turn = f"{place}, turn {number} of '{key}'"
        texts.append(_need(entry, "input_text", str, turn))
        if (turn_id := _need(entry, "turn_id", int, turn)) != number:
            raise UserError(
                f"'turn_id' must count the turns from 1. Received: {turn}, where it is {turn_id}."
            )
    return texts


def _dialogue(
    id: str, row: Mapping[str, Any], *, questions: list[str], answers: Mapping[str, list[str]], place: str
) -> Dialogue:
    """Puts a conversation together; `answers` has the list to learn first. A turn that says nothing is left out."""
    passage = _need(row, "story", str, place)
    if not passage.strip():
        raise UserError(f"'story' must be a passage. Received: {place}, where it is empty.")
    for key, given in answers.items():
        if len(given) != len(questions):
            raise UserError(
                f"Every question must have an answer. Received: {place}, with {len(questions)} questions and {len(given)} {key}."
            )
    turns = [
        Turn(question=question, answer=answer, references=tuple(references))
        for question, answer, *references in zip(questions, *answers.values(), strict=True)
        if question.strip() and answer.strip()
    ]
    if not turns:
        raise UserError(
            f"A conversation must have at least one question with its answer. Received: {place}, which has none."
        )
    return Dialogue(id=id, passage=passage, turns=tuple(turns), source=_need(row, "source", str, place))
