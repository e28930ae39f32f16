"""CoQA: reading its official files, the hub's rows and TFDS', and the official score."""

import doctest
import json
import random
import re
import string

import numpy as np
import pytest

import keras_mtp.tasks.coqa
from keras_mtp.tasks import load_task
from keras_mtp.tasks.coqa import CoQA, exact_match, over_references, token_f1
from keras_mtp.tasks.dialogue import Dialogue, Turn
from tests.test_sources import ask_offline, write_cache

pytestmark = pytest.mark.any_backend

PASSAGE = "Jo has a red cat and a dog."
QUESTIONS = ("Which pets has Jo?", "What colour is the first?", "And the dog?")
ANSWERS = (("a cat and a dog", "cat and dog"), ("red", "Red."), ("unknown", "unknown"))


def turns(texts) -> list[dict]:
    return [{"input_text": text, "turn_id": number} for number, text in enumerate(texts, start=1)]


def story(id="s1", *, further=0, passage=PASSAGE, **changes) -> dict:
    """A story as the official files have it, with so many further human answers."""
    first, second = zip(*ANSWERS, strict=True)
    row = {
        "source": "mctest",
        "id": id,
        "filename": "x.txt",
        "story": passage,
        "questions": turns(QUESTIONS),
        "answers": [
            {**turn, "span_start": 0, "span_end": 2, "span_text": "Jo", "bad_turn": "true"}
            for turn in turns(first)
        ],
        "name": "x.txt",
    }
    if further:
        row["additional_answers"] = {str(n): turns(second) for n in range(further)}
    return row | changes


def write(folder, train, dev, names=("train.json", "dev.json")):
    for name, stories in zip(names, (train, dev), strict=True):
        (folder / name).write_text(json.dumps({"version": "1.0", "data": stories}), "utf-8")
    return folder


def test_the_docstrings_examples():
    assert doctest.testmod(keras_mtp.tasks.coqa).failed == 0


@pytest.mark.parametrize(
    "names", [("train.json", "dev.json"), ("coqa-train-v1.0.json", "coqa-dev-v1.0.json")]
)
def test_a_conversation_is_learnt_whole_and_tested_turn_by_turn(tmp_path, names):
    task = CoQA.from_folder(
        write(tmp_path, [story("a")], [story("b", further=3, passage="Jo has pets.")], names)
    )
    (training,) = task.examples("train")
    assert [message.content for message in training.messages] == [
        f"{PASSAGE}\n\n{QUESTIONS[0]}", "a cat and a dog", QUESTIONS[1], "red", QUESTIONS[2], "unknown",
    ]  # fmt: skip
    assert (training.id, training.source) == ("a", "mctest")
    items = {item.id: item for item in task.examples("test")}
    assert sorted(items) == ["b/1", "b/2", "b/3"]
    first, second = items["b/1"], items["b/2"]
    assert first.messages[0].content == f"Jo has pets.\n\n{QUESTIONS[0]}" and not first.history
    assert second.messages == (*first.messages, ("user", QUESTIONS[1]), ("assistant", "red"))
    assert second.references == ("Red.",) * 3 and items["b/3"].source == "mctest"


def test_test_items_come_in_an_order_that_is_no_files(tmp_path):
    dev = [story(f"{n}", passage=f"{n} cats.") for n in range(40)]
    orders = []
    for stories in (dev, dev[::-1]):
        task = CoQA.from_folder(write(tmp_path, [story("train")], stories))
        orders.append([item.id for item in task.examples("test")])
    assert orders[0] == orders[1]
    assert len({id.partition("/")[0] for id in orders[0][:30]}) > 15  # else 10


def test_a_part_is_called_a_sample(tmp_path):
    task = CoQA.from_folder(
        write(tmp_path, [story("a"), story("b")], [story("c", passage="Pets.", further=3)])
    )
    assert task.title == "a sample of CoQA (3 of 7,699 conversations)" and not task.is_benchmark
    assert "2 of 7,199 training conversations; the test items are the 3 turns of 1 of 500" in task.note
    assert "Scored as officially" in task.note
    assert (task.source, task.revision) == (str(tmp_path), None)


def dialogues(count, further=3) -> list[Dialogue]:
    turn = Turn(question="What?", answer="that", references=("this",) * further)
    return [Dialogue(id=f"{n}", passage=f"{n}", turns=(turn,)) for n in range(count)]


@pytest.mark.parametrize(
    ("train", "test", "further", "title", "is_benchmark"),
    [
        (7199, 500, 3, "CoQA", True),
        (7199, 500, 0, "CoQA with one human answer a turn", False),
        (7199, 499, 3, "a sample of CoQA (7,698 of 7,699 conversations)", False),
        (7200, 500, 3, "7,700 conversations in CoQA's format (not CoQA, which has 7,699)", False),
    ],
)
def test_only_the_whole_with_all_its_answers_is_called_coqa(train, test, further, title, is_benchmark):
    task = CoQA({"train": dialogues(train), "test": dialogues(test, further)}, source="here")
    assert (task.title, task.is_benchmark) == (title, is_benchmark)
    assert ("lower than official ones" in task.note) == (not further)


def test_a_turn_that_says_nothing_is_left_out(tmp_path):
    gap = story("b", passage="Pets.", questions=turns([QUESTIONS[0], " ", QUESTIONS[2]]))
    task = CoQA.from_folder(write(tmp_path, [story("a")], [gap]))
    last = max(task.examples("test"), key=lambda item: len(item.history))
    assert [m.content for m in last.messages[1:]] == ["a cat and a dog", QUESTIONS[2], "unknown"]


ROW = {
    "source": "cnn",
    "story": PASSAGE,
    "questions": list(QUESTIONS),
    "answers": {"input_text": [a for a, _ in ANSWERS], "answer_start": [0] * 3, "answer_end": [1] * 3},
}
LOAD = """
from keras_mtp.errors import UserError
from keras_mtp.tasks import load_task
try:
    task = load_task("coqa", "hub")
except UserError as error:
    print(error)
else:
    training = task.examples("train")
    print(len(training), training[1].id, training[1].messages[3], sep="|")
    print(len(task.examples("test")), task.title, task.source, task.revision, task.is_benchmark, sep="|")
"""


def write_hub(home, row) -> None:
    splits = {"train": [ROW, row], "validation": [{**ROW, "story": "Jo has pets."}]}
    write_cache(home, splits, owner="stanfordnlp", name="coqa", config="default")


def test_rows_of_the_hub(tmp_path):
    write_hub(tmp_path, ROW)
    assert ask_offline(tmp_path, LOAD).splitlines() == [
        "2|coqa/train/1|Message(role='assistant', content='red')",
        "3|a sample of CoQA (3 of 7,699 conversations)|hub|c0ffee|False",
    ]


def test_a_bad_row_of_the_hub_is_named(tmp_path):
    write_hub(tmp_path, ROW | {"answers": {**ROW["answers"], "input_text": ["a cat"]}})
    said = ask_offline(tmp_path, LOAD)
    assert "stanfordnlp/coqa (train), row 1, with 3 questions and 1 answers" in said and said.count("\n") == 1


def test_rows_of_tfds(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    text = tfds.features.Text()
    answers = {"input_text": text, "answer_start": np.int32, "answer_end": np.int32}
    with tfds.core.registered.skip_registration():

        class Coqa(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                sequences = {
                    "questions": tfds.features.Sequence(text),
                    "answers": tfds.features.Sequence(answers),
                }
                features = tfds.features.FeaturesDict({"source": text, "story": text, **sequences})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": enumerate([ROW]), "test": enumerate([{**ROW, "story": "Jo has pets."}])}

            def _generate_examples(self):
                raise NotImplementedError

    tfds.disable_progress_bar()
    Coqa(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = load_task("coqa", "tfds")
    (training,) = task.examples("train")
    assert [m.content for m in training.messages][1::2] == ["a cat and a dog", "red", "unknown"]
    assert (len(task.examples("test")), task.source, task.revision) == (3, "tfds", "1.0.0")


# The official script again, written from its description and apart from the code under test.


def plain_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return [
        word for word in re.split(r"\s+", re.sub(r"\b(?:an|a|the)\b", " ", kept, flags=re.UNICODE)) if word
    ]


def plain_f1(gold: str, said: str) -> float:
    left, same = plain_words(gold), 0
    if not left or not plain_words(said):
        return 1.0 if left == plain_words(said) else 0.0
    for word in plain_words(said):
        if word in left:
            left.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(plain_words(said)), same / len(plain_words(gold))
    return 2 * precision * recall / (precision + recall)


def plain_turn_score(golds: list[str], said: str) -> tuple[float, float]:
    """(F1, exact match), over the sets of human answers that leave one human out."""
    if len(golds) == 1:
        sets = [golds]
    else:
        sets = [[gold for j, gold in enumerate(golds) if j != i] for i in range(len(golds))]
    f1 = [max(plain_f1(gold, said) for gold in golds) for golds in sets]
    exact = [max(float(plain_words(gold) == plain_words(said)) for gold in golds) for golds in sets]
    return sum(f1) / len(sets), sum(exact) / len(sets)


def test_the_score_is_that_of_the_official_script(tmp_path):
    words = [
        "the",
        "a",
        "An",
        "barn.",
        "in",
        "Barn",
        "red-brown",
        "don't",
        "$5",
        "unknown",
        "é",
        "!",
        "\u2019",
        "then",
    ]
    rng = random.Random(0)

    def text():
        return " ".join(rng.choices(words, k=rng.randint(0, 5)))

    for _ in range(2000):
        golds, said = [text() for _ in range(rng.randint(1, 4))], text()
        f1, exact = plain_turn_score(golds, said)
        assert over_references(token_f1, golds, said) == pytest.approx(f1, abs=1e-12)
        assert over_references(exact_match, golds, said) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("said", "f1", "exact"),
    [
        ("The cat and a dog!", 1.0, 1.0),
        ("cat", 0.5, 0.0),  # of "cat and dog" one word of three
        ("a", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_score_of_an_item(tmp_path, said, f1, exact):
    task = CoQA.from_folder(write(tmp_path, [story("a")], [story("b", further=3, passage="Pets.")]))
    item = next(item for item in task.examples("test") if item.id == "b/1")
    assert task.score(item, said) == pytest.approx(f1)
    assert task.further_scores(item, said) == {"exact_match": pytest.approx(exact)}


def test_an_answer_of_one_human_alone_counts_for_less():
    golds = ["yes", "no", "no", "no"]
    assert over_references(exact_match, golds, "yes") == 0.75  # not where that human is the one left out
    assert over_references(exact_match, golds, "no") == 1.0
    assert over_references(exact_match, ["yes"], "yes") == 1.0


def test_unanswerable_turns_are_to_be_said_unknown(tmp_path):
    task = CoQA.from_folder(write(tmp_path, [story("a")], [story("b", further=3, passage="Pets.")]))
    item = next(item for item in task.examples("test") if item.id == "b/3")
    assert task.score(item, "Unknown.") == 1.0 and task.score(item, "brown") == 0.0
