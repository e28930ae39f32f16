"""The user's own conversations; what is refused in them is in test_bad_data.py."""

import doctest
import json

import pytest

import keras_mtp.tasks.jsonl
from keras_mtp.data.example import Message
from keras_mtp.tasks import load_task
from keras_mtp.tasks.jsonl import JsonLines, normalised_exact_match, split_test

pytestmark = pytest.mark.any_backend

CHAT = {
    "id": "chat",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "And 1 more?"},
        {"role": "assistant", "content": "3"},
    ],
}


def pairs(numbers) -> list[dict]:
    return [{"prompt": f"{n} + 1?", "response": f"{n + 1}"} for n in numbers]


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_docstrings_examples():
    assert doctest.testmod(keras_mtp.tasks.jsonl).failed == 0


def test_both_kinds_of_row_are_read(tmp_path):
    write(tmp_path / "train.jsonl", [*pairs([1]), CHAT, {"id": 7, **pairs([2])[0]}])
    write(tmp_path / "test.jsonl", pairs([3]))
    task = load_task("jsonl", str(tmp_path))
    train = task.examples("train")
    assert [example.id for example in train] == ["train.jsonl:1", "chat", "7"]
    assert [(example.prompt, example.answer) for example in train] == [
        ("1 + 1?", "2"),
        ("And 1 more?", "3"),
        ("2 + 1?", "3"),
    ]
    assert train[1].messages == tuple(Message(**turn) for turn in CHAT["messages"])
    assert [example.id for example in task.examples("test")] == ["test.jsonl:1"]


def test_what_a_report_says_of_the_data(tmp_path):
    task = load_task("jsonl", write(tmp_path / "my.jsonl", pairs(range(40))))
    assert (task.title, task.source, task.is_benchmark) == ("my.jsonl", str(tmp_path / "my.jsonl"), False)
    assert task.note == "Test split: 4 of the file's 40 examples, chosen by their content"
    assert "own" in task.licence
    before = task.revision
    assert load_task("jsonl", task.source).revision == before
    write(tmp_path / "my.jsonl", pairs(range(41)))
    assert load_task("jsonl", task.source).revision != before


def test_the_test_split_depends_on_content_alone(tmp_path):
    rows = pairs(range(200))
    one = JsonLines.from_path(write(tmp_path / "a.jsonl", rows))
    other = JsonLines.from_path(write(tmp_path / "b.jsonl", rows[::-1]))
    splits = [
        {e.prompt for e in task.examples(split)} for task in (one, other) for split in ("train", "test")
    ]
    assert splits[0] == splits[2] and splits[1] == splits[3]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 200 and len(splits[1]) == 20
    assert [e.prompt for e in one.examples("test")] == [e.prompt for e in other.examples("test")]
    assert [e.id for e in one.examples("train")] == sorted(
        (e.id for e in one.examples("train")), key=lambda id: int(id.partition(":")[2])
    )


def test_a_larger_file_keeps_most_of_its_test_split():
    def test_prompts(count):
        rows = [keras_mtp.tasks.jsonl._example(row, f"{i}") for i, row in enumerate(pairs(range(count)))]
        return {example.prompt for example in split_test(rows, "here")[1]}

    assert len(test_prompts(100) & test_prompts(110)) >= 8


def test_examples_that_say_the_same_are_never_split(tmp_path):
    rows = [row for row in pairs(range(30)) for _ in range(3)]
    task = load_task("jsonl", write(tmp_path / "my.jsonl", rows))  # would refuse
    assert len(task.examples("test")) == 9 and len(task.examples("train")) == 81


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("Paris", 1.0),
        (" paris\n", 1.0),
        ("PARIS", 1.0),
        ("Paris.", 0.0),
        ("Par is", 0.0),
        ("", 0.0),
        ("\uff30aris", 1.0),
    ],
)
def test_score(completion, score):
    assert normalised_exact_match("Paris", completion) == score


def test_the_last_turn_is_scored(tmp_path):
    rows = [
        {**CHAT, "id": f"{n}", "messages": [*CHAT["messages"][:-1], {"role": "assistant", "content": f"{n}"}]}
        for n in range(3)
    ]
    task = load_task("jsonl", write(tmp_path / "my.jsonl", rows))
    (example,) = task.examples("test")
    assert task.score(example, example.answer) == 1.0 and task.score(example, "2") == float(
        example.answer == "2"
    )
