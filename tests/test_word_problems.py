"""Every generated problem is checked: its arithmetic, its format, its English as far as a program can see."""

import re
from fractions import Fraction
from functools import cache

import pytest

from keras_mtp.errors import UserError
from keras_mtp.tasks.problem_template import SMALLEST, STEP
from keras_mtp.tasks.word_problems import WordProblems, generate, templates

pytestmark = pytest.mark.any_backend

ANNOTATION = re.compile(r"([^=\n]*) = \$?<<([^=>]*)=([^>]*)>>(\S+?)(?=[.,:]?(?:\s|$))")
BRACKETS = re.compile(r"\(([^()]*)\)")


@cache
def default_task():
    return WordProblems()


def all_examples():
    return default_task().examples("train") + default_task().examples("test")


def calculate(expression):
    """The exact value of `2*(30+4)-10/5`; written apart from the code under test."""
    while bracket := BRACKETS.search(expression):
        expression = expression.replace(bracket[0], str(calculate(bracket[1])))
    total = Fraction(0)
    for sign, product in re.findall(r"([+-]?)([^+-]+)", expression):
        first, *rest = re.split(r"([*/])", product)
        value = Fraction(first)
        for symbol, number in zip(rest[::2], rest[1::2], strict=True):
            value = value * Fraction(number) if symbol == "*" else value / Fraction(number)
        total += -value if sign == "-" else value
    return total


def test_sizes_and_ids():
    train, test = default_task().examples("train"), default_task().examples("test")
    assert (len(train), len(test)) == (2000, 400)
    assert [example.id for example in test[:2]] == ["word_problems/test/0", "word_problems/test/1"]


def test_all_annotations_are_right():
    assert calculate("2*(30+4)-10/5") == 66
    for example in all_examples():
        steps = ANNOTATION.findall(example.answer)
        assert 2 <= len(steps) == example.answer.count("<<") <= 5, example
        for spelled, expression, value, shown in steps:
            assert spelled.replace(" ", "").endswith(expression), example
            assert calculate(expression) == Fraction(value) == Fraction(shown) > 0, example
        assert example.answer.endswith(f"\n#### {steps[-1][2]}"), example
        assert default_task().score(example, example.answer) == 1.0


def test_no_problem_comes_twice():
    questions = [example.prompt for example in all_examples()]
    assert len(set(questions)) == len(questions)


def test_train_and_test_share_no_numbers_whatever_their_seeds():
    """Without names and things, which is more than different texts: the arithmetic is new."""

    def arithmetic(examples):
        return {tuple(re.findall(r"<<.*?>>", example.answer)) for example in examples}

    assert not arithmetic(generate("train", 2000, seed=5)) & arithmetic(generate("test", 400, seed=6))


def test_the_seed_decides():
    assert generate("train", 50, seed=3) == generate("train", 50, seed=3)
    assert generate("train", 50, seed=3) == generate("train", 80, seed=3)[:50]
    other = {example.prompt for example in generate("train", 50, seed=4)}
    assert not other & {example.prompt for example in generate("train", 50, seed=3)}


def test_more_than_the_templates_hold_is_refused():
    with pytest.raises(UserError, match="test_size"):
        generate("test", 100_000)


def test_it_never_calls_itself_gsm8k():
    task = WordProblems(seed=7, train_size=1, test_size=1)
    assert (task.name, task.title) == ("gsm8k", "generated word problems (not GSM8K)")
    assert (task.source, task.revision, task.is_benchmark) == ("builtin", "seed 7", False)
    assert "GSM8K" not in task.licence


def test_english():
    """No slot left over, no "1 cookies", no "a apple", no double space; questions ask, sentences end."""
    wrong_article = re.compile(r"\b[Aa] ([aeio]|8|11\b|18\b)|\b[Aa]n (?!hour)[^aeiou]")
    for example in all_examples():
        text = f"{example.prompt} {example.answer}"
        assert not re.search(r"[{}\[\]]", text), example
        assert not re.search(r"\b1 [a-z]+s\b", text), example
        assert not wrong_article.search(text), example
        assert "  " not in text, example
        assert example.prompt.endswith("?"), example
        assert all(re.match(r"[A-Z].*\.$", line) for line in example.answer.splitlines()[:-1]), example


@pytest.mark.parametrize("template", templates(), ids=lambda template: template.name)
def test_templates(template):
    asked = set(re.findall(r"\{(\w+)", template.question))
    told = set(re.findall(r"\{(\w+)", template.solution))
    steps = list(STEP.finditer(template.solution))
    results = {step["result"] for step in steps}
    used = set(re.findall(r"[a-z]\w*", " ".join(step["expression"] for step in steps)))
    assert asked >= set(template.numbers), "the question must give every number"
    assert not asked & results, "the question must not give a result away"
    assert asked | told >= set(template.words), "every list of words must be told"
    assert set(template.numbers) <= used, "the solution must need every number"
    assert 2 <= len(steps) == len(results) <= 5
    assert min(min(values) for values in template.numbers.values()) >= SMALLEST


def test_there_are_many_templates_and_all_are_used():
    def shape(text):
        return re.sub(r"\d+", "#", " ".join(re.findall(r"<<(.*?)=", text)))

    assert len(templates()) >= 24
    shapes = {shape(example.answer) for example in all_examples()}
    assert len(shapes) >= 24
