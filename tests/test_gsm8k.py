"""Reading GSM8K's official files, and the official score."""

import json

import pytest

from keras_mtp.errors import UserError
from keras_mtp.tasks.gsm8k import GSM8K, exact_match, extract_answer

pytestmark = pytest.mark.any_backend

ROWS = [
    {"question": "Tom has 3 hats and buys 4. How many?", "answer": "He has 3+4 = <<3+4=7>>7 hats.\n#### 7"},
    {
        "question": "Ann earns $600 twice. How much?",
        "answer": "She earns 600*2 = $<<600*2=1200>>1200.\n#### 1,200",
    },
]


def write_folder(folder, train=ROWS, test=ROWS[1:]):
    for name, rows in (("train.jsonl", train), ("test.jsonl", test)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_reads_both_splits_of_a_folder(tmp_path):
    task = GSM8K.from_folder(write_folder(tmp_path))
    train, test = task.examples("train"), task.examples("test")
    assert [example.id for example in train + test] == ["gsm8k/train/0", "gsm8k/train/1", "gsm8k/test/0"]
    assert [(example.prompt, example.answer) for example in train] == [
        (r["question"], r["answer"]) for r in ROWS
    ]
    assert (task.source, task.title, task.is_benchmark) == (str(tmp_path), "GSM8K", True)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("6*2 = <<6*2=12>>12\n#### 12", "12"),
        ("#### 1,234,567", "1234567"),
        ("#### -3", "-3"),
        ("#### 2.50", "2.50"),
        ("#### 5\n#### 6", "5"),
        ("#### 72.", "72."),  # the official pattern takes the full stop along
        ("the answer is 12", None),
        ("####12", None),
        ("#### $12", None),
        ("", None),
    ],
)
def test_extracts_what_the_official_pattern_does(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("She earns 1200.\n#### 1200", 1.0),
        ("#### 1,200", 1.0),
        ("#### 1200\n#### 7", 1.0),
        ("#### 7\n#### 1200", 0.0),
        ("#### 1200.0", 0.0),
        ("1200", 0.0),
        ("", 0.0),
    ],
)
def test_scores_by_the_official_rule(tmp_path, completion, score):
    task = GSM8K.from_folder(write_folder(tmp_path))
    assert task.score(task.examples("test")[0], completion) == score


def test_no_answer_is_never_right():
    assert exact_match("no result here", "none there either") == 0.0


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"question": "How many?"}, "'answer'"),
        ({"answer": "#### 1"}, "'question'"),
        ({"question": 7, "answer": "#### 1"}, "'question'"),
        ({"question": " ", "answer": "#### 1"}, "'question'"),
        ({"question": "How many?", "answer": "Seven."}, "#### 42"),
    ],
    ids=["no answer", "no question", "not a text", "blank", "no result"],
)
def test_a_bad_row_is_named_with_file_and_line(tmp_path, row, complaint):
    with pytest.raises(UserError, match=r"test\.jsonl, line 2\b.*") as error:
        GSM8K.from_folder(write_folder(tmp_path, test=[ROWS[0], row]))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"test\.jsonl"):
        GSM8K.from_folder(tmp_path)


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl, which is empty"):
        GSM8K.from_folder(write_folder(tmp_path, train=[]))
