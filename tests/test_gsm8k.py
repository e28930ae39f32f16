"""Reading GSM8K's official files, and the official score."""

import itertools
import json
from pathlib import Path

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
    assert task.source == str(tmp_path)


def test_only_all_of_it_is_called_gsm8k(tmp_path, monkeypatch):
    folder = write_folder(tmp_path)
    title = "3 problems in GSM8K's format (not GSM8K, which has 8,792)"
    assert (GSM8K.from_folder(folder).title, GSM8K.from_folder(folder).is_benchmark) == (title, False)
    monkeypatch.setattr("keras_mtp.tasks.gsm8k.OFFICIAL_SIZES", {"train": 2, "test": 1})
    assert (GSM8K.from_folder(folder).title, GSM8K.from_folder(folder).is_benchmark) == ("GSM8K", True)


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


# Answers of all shapes to "#### 1,200" and its like: `{}` is the right number as data have it, `{n}` without commas.
SHAPES = (
    "She earns 600*2 = <<600*2=1200>>1200.\n#### {}", "#### {n}", "#### {}.", "#### {n}.0", "#### {n}.00.", "#### ${n}",
    "####{n}", "###  {n}", "##### {n}", "#### -{n}", "#### +{n}", "#### {n}%", "#### {n} dollars", "#### {n}\n#### 7", "#### 7\n#### {n}",
    "#### \n{n}", "####  {n}", "#### {n},", "#### ,{n}", "#### .{n}", "#### {n}e0", "#### 0{n}", "#### {n}/1", "#### x={n}",
    "The answer is {}.", "The answer is ${n}", "{n}", "{n} #### ", "So 7 + 8 = 15\nIt is #### {n}, I think, or 9.", "\\boxed{{{n}}}",
    "", "   ", "####", "#### ", "#### none", "#### ,", "#### .", "#### -", "He has <<3+4=7>>7.\n#### 7", "#### \u0661\u0662\u0660\u0660",
    "#### {n}<|im_end|>", "#### {n}\r\n", "\t#### {n}", "#### {n}.\nQuestion: what is 2 + 2? #### 4", "#### 1{n}", "#### {n}1",
)  # fmt: skip
GOLD = ("1,200", "18", "7", "-3", "2.5", "0", "1,234,567", "540000")


def official(gold: str, text: str) -> bool:
    """`is_correct` of openai/grade-school-math, from its description: no regular expression, nothing of ours."""

    def final(text: str) -> str:
        for piece in text.split("#### ")[1:]:
            sign = "-" if piece.startswith("-") else ""
            number = "".join(itertools.takewhile(lambda char: char in "0123456789.,", piece[len(sign) :]))
            if number:
                return sign + number.replace(",", "")
        return "[invalid]"

    return final(text) == final(gold)


def texts() -> list[tuple[str, str]]:
    """(gold answer, what was said), every shape for every number, and some numbers that are wrong."""
    return [
        (f"So it is {gold}.\n#### {gold}", shape.format(said, n=said.replace(",", "")))
        for gold in GOLD
        for said in (gold, GOLD[0], "9")
        for shape in SHAPES
    ]


def test_the_score_is_the_official_one():
    scores = [(exact_match(gold, said), float(official(gold, said))) for gold, said in texts()]
    assert all(ours == theirs for ours, theirs in scores)
    assert 0.1 < sum(ours for ours, _ in scores) / len(scores) < 0.5


class Parrot:
    """Says what it was told to say, in the order of the questions."""

    rank, world_size = 0, 1

    def __init__(self, answers):
        self.answers = answers

    def generate_until(self, requests):
        return [self.answers[request.doc_id] for request in requests]


def test_the_score_is_lm_evals_strict_match_but_for_a_full_stop(tmp_path):
    lm_eval = pytest.importorskip(
        "lm_eval", reason="lm-eval is not installed: pip install 'keras_mtp[harness]'"
    )
    from keras_mtp import harness

    pairs = texts()[::5]  # every shape still
    rows = [{"question": f"{number}?", "answer": gold} for number, (gold, _) in enumerate(pairs)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    lines = (Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml").read_text("utf-8").splitlines()
    data = {"data_files": {"test": str(tmp_path / "test.jsonl")}, "cache_dir": str(tmp_path / "cache")}
    changed = {"dataset_path": "json", "num_fewshot": 0, "dataset_kwargs": data, "task": "gsm8k_here"}
    gone = (*changed, "dataset_name", "training_split", "fewshot_split")
    lines = [line for line in lines if line.partition(":")[0] not in gone]
    lines += [f"{key}: {json.dumps(value)}" for key, value in changed.items()]
    (tmp_path / "task.yaml").write_text("\n".join(lines), "utf-8")
    wish = harness.Wish(tasks=["gsm8k_here"], path=tmp_path)
    (result,) = harness.ask(Parrot([said for _, said in pairs]), wish)
    strict = {
        item["doc_id"]: item["exact_match"] for item in result.items if item["filter"] == "strict-match"
    }
    assert len(strict) == len(pairs)
    for number, (gold, said) in enumerate(pairs):
        ours = exact_match(gold, said)
        read = extract_answer(said) or ""
        without_stop = f"#### {read.removesuffix('.')}"
        assert strict[number] == (exact_match(gold, without_stop) if read.endswith(".") else ours), said
    assert sum(strict.values()) > sum(exact_match(gold, said) for gold, said in pairs)
