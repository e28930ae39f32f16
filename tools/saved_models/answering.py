"""Lets one system answer the questions, a batch at a time; what has been answered is kept, and not asked again.

python -m tools.saved_models.answering JOB.json
"""

import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from keras_mtp.journal import Journal
from tools.saved_models.systems import Ids, System, batched, opened

EVERY = 8  # batches between two lines that say how far it has come


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a system made of the questions.

    Args:
        prompts: the questions as token ids. answers: the new tokens, without the stop token.
    """

    prompts: Ids
    answers: Ids

    def first(self, count: int) -> "Answered":
        return Answered(prompts=self.prompts[:count], answers=self.answers[:count])


@dataclass(frozen=True, kw_only=True)
class Job:
    """Some questions to one system.

    Args:
        system: its name. run, export: where it is read from. about: whatever else the answers depend on.
        batches: numbers of questions asked together, and how many of the questions are asked so. new_tokens: of the longest answer.
        folder: where answers are kept.
    """

    system: str
    run: str
    export: str
    about: str
    questions: list[str]
    batches: list[tuple[int, int]]
    new_tokens: int
    folder: str

    def file(self, batch: int, ending: str) -> Path:
        return Path(self.folder) / f"{self.system}-by-{batch}.{ending}"

    def answered(self, batch: int) -> Answered:
        """What `main` left."""
        return Answered(**json.loads(self.file(batch, "json").read_text()))


def main(path: str) -> None:
    job = Job(**json.loads(Path(path).read_text()))
    # Only where something has not been answered yet: it takes long.
    system = functools.cache(lambda: opened(job.system, Path(job.run), Path(job.export)))
    for batch, count in job.batches:
        found = answer(job, batch, count, system)
        job.file(batch, "json").write_text(json.dumps(asdict(found)))


def answer(job: Job, batch: int, count: int, system: Callable[[], System]) -> Answered:
    """The first `count` questions, `batch` at a time."""
    journal = Journal(job.file(batch, "jsonl"), json.dumps([job.about, job.system, batch, job.new_tokens]))
    found, began, asked = Answered(prompts=[], answers=[]), time.monotonic(), 0

    def ask(questions: Sequence[str]) -> tuple[Ids, Ids]:
        nonlocal asked
        asked += len(questions)
        prompts = [system().encoded(question) for question in questions]
        return prompts, system().answers(prompts, job.new_tokens)

    for number, questions in enumerate(batched(job.questions[:count], batch)):
        prompts, answers = journal.piece(questions, functools.partial(ask, questions))
        found.prompts.extend(prompts)
        found.answers.extend(answers)
        if asked and number % EVERY == 0:
            seconds = time.monotonic() - began
            print(
                f"{job.system} by {batch}: {len(found.answers)} of {count}, {asked} in {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
