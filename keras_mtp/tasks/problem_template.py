"""Text with slots whose arithmetic is computed: what a generated word problem is told from.

    question   {name} bakes {trays} trays of cookies with {each} on each tray ...
    solution   {name} bakes [baked = trays * each] cookies.
    becomes    Maya bakes 4 * 12 = <<4*12=48>>48 cookies.

The annotations are those of Cobbe et al. 2021, arXiv 2110.14168: what a calculator is asked, and its answer.
"""

import ast
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

SMALLEST = 2  # of all numbers and results: "1 cookies" cannot happen
STEP = re.compile(r"\[(?P<dollar>\$?)(?P<result>\w+) = (?P<expression>[^]]+)\]")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Number(int):
    """A number with the words that English has for it.

    >>> three = Number(3)
    >>> f"{three} {three.times} {three.part}"
    '3 three times a third'
    """

    @property
    def times(self) -> str:
        return {2: "twice", 3: "three times", 4: "four times", 5: "five times"}[self]

    @property
    def part(self) -> str:
        return {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[self]


class Noun(str):
    """A word and its plural: "-s" is added, unless it is given after a slash.

    >>> Noun("tulip").many, Noun("pansy/pansies").many, Noun("pansy/pansies")
    ('tulips', 'pansies', 'pansy')
    """

    many: str

    def __new__(cls, text: str) -> "Noun":
        one, _, many = text.partition("/")
        noun = super().__new__(cls, one)
        noun.many = many or f"{one}s"
        return noun


@dataclass(frozen=True, kw_only=True)
class Template:
    """One kind of problem.

    Args:
        name: tells templates apart.
        numbers: the values each drawn number can take.
        words: the nouns each slot can take.
        question: text with slots for what is drawn, `"{name} bakes {trays} trays."`.
        solution: text with slots and steps, `"{name} bakes [baked = trays * each] cookies."`. A step computes
            with numbers and earlier results, in dollars if written `[$paid = ...]`; the last is the answer.
    """

    name: str
    numbers: Mapping[str, range]
    words: Mapping[str, tuple[Noun, ...]]
    question: str
    solution: str

    def solve(self, numbers: Mapping[str, Number]) -> dict[str, Number] | None:
        """The result of every step, in order; None if one is broken or below `SMALLEST`."""
        results: dict[str, Number] = {}
        for step in STEP.finditer(self.solution):
            value = evaluate(step["expression"], {**numbers, **results})
            if value.denominator != 1 or value < SMALLEST:
                return None
            results[step["result"]] = Number(value)
        return results

    def tell(
        self, numbers: Mapping[str, Number], results: Mapping[str, Number], words: Mapping[str, str]
    ) -> tuple[str, str]:
        """Question and answer. `results` are what `solve` found; the question sees none of them."""
        values = {**numbers, **results}
        solution = STEP.sub(lambda step: _annotated(step, values), self.solution)
        *_, final = results.values()
        return self.question.format(**numbers, **words), f"{solution.format(**values, **words)}\n#### {final}"


def evaluate(expression: str, values: Mapping[str, int]) -> Fraction:
    """The exact value of an expression in names, whole numbers, + - * / and parentheses.

    >>> evaluate("total * percent / 100", {"total": 30, "percent": 15})
    Fraction(9, 2)
    """

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Name(id=name):
                return Fraction(values[name])
            case ast.Constant(value=int(number)):
                return Fraction(number)
        raise ValueError(f"A step must be made of names, whole numbers and + - * /. Received: {expression}")

    return value(_parsed(expression))


@cache
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression, mode="eval").body


def _annotated(step: re.Match[str], values: Mapping[str, int]) -> str:
    """`[$paid = count * price]` as `3 * 4 = $<<3*4=12>>12`."""
    spelled = re.sub(r"[a-z]\w*", lambda name: str(values[name[0]]), step["expression"])
    result = values[step["result"]]
    return f"{spelled} = {step['dollar']}<<{spelled.replace(' ', '')}={result}>>{result}"
