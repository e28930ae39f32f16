"""instruct-v3: reading rows of a folder and of the hub, and ROUGE-L."""

import doctest
import json

import pytest

import keras_mtp.tasks.instruct
from keras_mtp.tasks import load_task
from keras_mtp.tasks.instruct import rouge_l
from tests.test_sources import ask_offline, write_cache

pytestmark = pytest.mark.any_backend


def row(number, source="dolly", **changes) -> dict:
    prompt = f"Below is an instruction.\n\n### Instruction:\nSay {number}.\n\n### Response:\n"
    return {"prompt": prompt, "response": f"{number}", "source": source} | changes


def write(folder, train, test):
    for name, rows in (("train.jsonl", train), ("test.jsonl", test)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_the_docstrings_examples():
    assert doctest.testmod(keras_mtp.tasks.instruct).failed == 0


def test_a_folders_rows_keep_their_prompts_and_sources(tmp_path):
    task = load_task("instruct", write(tmp_path, [row(1), row(2, "spider")], [row(3)]))
    train = task.examples("train")
    assert [(e.id, e.source, e.answer) for e in train] == [
        ("train.jsonl:1", "dolly", "1"), ("train.jsonl:2", "spider", "2"),
    ]  # fmt: skip
    assert train[0].prompt == row(1)["prompt"] and not train[0].history


def test_a_folder_is_never_called_instruct_v3(tmp_path):
    task = load_task("instruct", write(tmp_path, [row(1)], [row(2)]))
    assert task.title == "rows in instruct-v3's format, not instruct-v3"
    assert (task.source, task.is_benchmark) == (str(tmp_path), False)
    assert "no judgement of quality" in task.note


def test_the_first_test_items_are_of_all_sources(tmp_path):
    test = [
        row(number, source)
        for source in ("a", "b", "c")
        for number in range(100 * ord(source), 100 * ord(source) + 30)
    ]
    items = load_task("instruct", write(tmp_path, [row(1)], test)).examples("test")
    assert len(items) == 90 and {item.source for item in items[:15]} == {"a", "b", "c"}
    assert items == load_task("instruct", write(tmp_path, [row(1)], test)).examples("test")


def test_rows_of_the_hub_that_nobody_can_mend_are_left_out_and_counted(tmp_path):
    train = [row(1), row(2, response=" "), row(3), row(4), row(6, response=None)]
    write_cache(tmp_path, {"train": train, "test": [row(3), row(5)]}, "mosaicml", "instruct-v3", "default")
    code = """
from keras_mtp.tasks import load_task
task = load_task("instruct", "hub")
print(*(example.id for example in task.examples("train")))
print(task.title, task.source, task.revision, task.is_benchmark, sep="|")
print(task.note)
"""
    assert ask_offline(tmp_path, code).splitlines() == [
        "instruct/train/0 instruct/train/3",
        "instruct-v3|hub|c0ffee|False",
        "Left out: 2 rows without a text, 1 training rows that are in the test split as well. "
        "ROUGE-L counts words in common with one response, in the same order: it is no judgement of quality",
    ]


@pytest.mark.parametrize(
    ("answer", "completion", "score"),
    [  # as rouge-score 0.1.2 computes them, without its stemmer
        ("The cat sat on the mat.", "the cat lay on a mat", 2 / 3),
        ("Paris", "It is Paris.", 0.5),
        ("one two three four", "four three two one", 0.25),
        ("a b c d e", "a x b y c z", 0.5454545454545454),
        ("42 apples, 7 pears", "7 pears and 42 apples", 0.4444444444444445),
        ("na\u00efve caf\u00e9", "naive cafe", 0.0),
        ("the same", "The same!", 1.0),
        ("", "x", 0.0),
        ("x", "", 0.0),
    ],
)
def test_rouge_l_is_that_of_the_package(answer, completion, score):
    assert rouge_l(answer, completion) == pytest.approx(score, abs=1e-12)
