"""What one rendering of a template may use: a number of units, roughly characters, and a deadline behind it."""

import itertools
import time
from collections.abc import ItemsView, Iterator, KeysView, Sized, ValuesView
from typing import Any

import jinja2
from jinja2.sandbox import SecurityError

SECONDS = 10.0
UNITS_PER_LOOK = 10_000  # between two looks at the clock, which takes a microsecond
LARGEST_NUMBER = 2**63
MOST_DIGITS = 20  # that a number is rounded to; its power of ten is computed in one go, which nothing can end
GROWING = ("indent", "join", "replace")  # calls whose result may be as large as value times argument
# Calls that may look at all of an argument for each item of the value.
SEARCHING = ("reject", "rejectattr", "select", "selectattr")


class TooMuch(jinja2.TemplateError):
    """A template took more than its budget."""


class Budget:
    """What one rendering may still use.

    Args:
        units: roughly characters.
    """

    def __init__(self, units: int):
        self.left = units
        self._look_at = units - UNITS_PER_LOOK
        self._deadline = time.thread_time() + SECONDS  # of computing: a busy machine changes nothing

    def spend(self, units: int) -> None:
        """Raises `TooMuch` where there are not so many left, or time is over."""
        self.left -= max(units, 0)
        if self.left < 0:
            raise TooMuch("it makes too much text, or loops too often")
        if self.left < self._look_at:
            self._look_at = self.left - UNITS_PER_LOOK
            if time.thread_time() > self._deadline:
                raise TooMuch(f"it computes for longer than {SECONDS:.0f} seconds")

    def weigh(self, value: Any) -> int:
        """Spends what a value weighs, all that it holds included, and says how much that was."""
        before, waiting = self.left, [value]
        self.spend(1)
        while waiting:
            item = waiting.pop()
            if isinstance(item, (str, range)):
                self.spend(len(item))
            elif isinstance(item, dict):
                self.spend(2 * len(item))
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, KeysView, ValuesView, ItemsView)):
                self.spend(len(item))
                waiting += item
            elif isinstance(item, int):
                if abs(item) > LARGEST_NUMBER:
                    raise TooMuch("its numbers grow too large")
            elif item is not None and not isinstance(item, (float, jinja2.Undefined)):
                raise SecurityError(f"a {type(item).__name__} cannot be part of a text or a list")
        return before - self.left

    def pay_for_call(self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """For what a call is given, and in advance for a result that may be much larger."""
        parts = (*args, *kwargs.values())
        weight, weights = self.weigh(value), [self.weigh(part) for part in parts]
        if name in GROWING:
            sizes = [
                abs(part) if isinstance(part, int) else size
                for part, size in zip(parts, weights, strict=True)
            ]
            self.spend(weight * max(sizes, default=1))
        if name == "round" and any(isinstance(part, int) and abs(part) > MOST_DIGITS for part in parts):
            raise TooMuch(f"it rounds to more than {MOST_DIGITS} digits")
        if name in SEARCHING and isinstance(value, Sized):
            self.spend(len(value) * sum(weights))

    def pay_for_result(self, result: Any) -> Any:
        """For what a call gave; an iterator becomes a list."""
        if isinstance(result, Iterator):
            result = list(itertools.islice(result, self.left + 1))
        self.weigh(result)
        return result
