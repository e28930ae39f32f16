"""The template language: what a step computes and how it is written."""

from fractions import Fraction

import pytest

from keras_mtp.tasks.problem_template import Noun, Number, Template, evaluate

pytestmark = pytest.mark.any_backend

TEMPLATE = Template(
    name="hats",
    numbers={"boxes": range(2, 9), "each": range(2, 9), "share": range(2, 4)},
    words={"hat": (Noun("hat"),)},
    question="{name} has {boxes} boxes of {each} {hat.many} and sells {share.part}. How many are left?",
    solution="{name} has [all = boxes * each] {hat.many}.\nFor {left} that is [$left = (all - 2) / share].",
)


def numbers(**values):
    return {name: Number(value) for name, value in values.items()}


def test_steps_are_computed_and_annotated():
    drawn = numbers(boxes=4, each=5, share=2)
    results = TEMPLATE.solve(drawn)
    assert results == {"all": 20, "left": 9}
    question, answer = TEMPLATE.tell(drawn, results, {"name": "Maya", "hat": Noun("hat")})
    assert question == "Maya has 4 boxes of 5 hats and sells half. How many are left?"
    assert answer == (
        "Maya has 4 * 5 = <<4*5=20>>20 hats.\nFor 9 that is (20 - 2) / 2 = $<<(20-2)/2=9>>9.\n#### 9"
    )


@pytest.mark.parametrize("drawn", [numbers(boxes=4, each=5, share=4), numbers(boxes=2, each=2, share=2)])
def test_broken_and_small_results_are_not_told(drawn):
    assert TEMPLATE.solve(drawn) is None  # 18 / 4 and 2 / 2


def test_evaluation_is_exact():
    assert evaluate("a / 3 * 3", {"a": 10}) == 10
    assert evaluate("a - b * 2 / (b + 1)", {"a": 1, "b": 2}) == Fraction(-1, 3)


@pytest.mark.parametrize("expression", ["a ** 2", "a // 2", "1.5", "-a", "abs(a)"])
def test_other_arithmetic_is_refused(expression):
    with pytest.raises(ValueError, match="whole numbers and"):
        evaluate(expression, {"a": 3})
