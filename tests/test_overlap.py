import pytest

from keras_mtp.data.example import Example
from keras_mtp.errors import UserError
from keras_mtp.tasks.gsm8k import GSM8K
from keras_mtp.tasks.overlap import refuse_overlap

pytestmark = pytest.mark.any_backend


def _task(train: list[tuple[str, str]], test: list[tuple[str, str]]) -> GSM8K:
    splits = {"train": train, "test": test}
    return GSM8K(
        {
            split: [Example(id=f"{split}/{i}", prompt=q, answer=a) for i, (q, a) in enumerate(pairs)]
            for split, pairs in splits.items()
        },
        source="here",
    )


def test_test_items_that_were_trained_on_are_counted_and_the_first_is_named():
    task = _task(
        [("a", "1"), ("b  c", "2\n#### 2"), ("d", "4")], [("x", "0"), (" b c", "2 #### 2"), ("d", "4")]
    )
    with pytest.raises(UserError) as error:
        refuse_overlap(task)
    title = "6 problems in GSM8K's format (not GSM8K, which has 8,792)"
    assert f"Received: {title}, where 2 are: the first is test/1, the same as train/1." in str(error.value)


def test_the_same_question_with_another_answer_is_another_example():
    refuse_overlap(_task([("a", "1"), ("a", "1")], [("a", "2"), ("A", "1")]))
