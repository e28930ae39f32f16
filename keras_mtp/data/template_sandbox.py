"""Jinja2's sandbox with a budget: whatever a template says, rendering it takes bounded time and memory.

Jinja2's own sandbox keeps a template away from the interpreter, not from the machine: `'a' * 10**10`, a few nested
loops, or a list that holds itself twice, fifty times over, stop a process. Here a template pays for what it makes:

    loops            every item they go over
    text             every character, whenever it is joined, repeated, replaced or put out
    lists, dicts     all that they hold; what they hold twice, twice
    calls            a fixed price each

out of one budget for each rendering. What has no price is not there: only the filters and methods that chat templates
use exist. A deadline stands behind the budget, for what is cheap but slow.
"""

import itertools
import json
import time
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

SECONDS = 10.0
LARGEST_NUMBER = 2**63
WIDEST_INDENT = 64

FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent", "int"),
    *("items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace"),
    *("reverse", "round", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)  # fmt: skip
METHODS: dict[type, tuple[str, ...]] = {
    str: (
        *("capitalize", "count", "endswith", "find", "index", "isalpha", "isdigit", "isspace", "join", "lower"),
        *("lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip"),
        *("split", "splitlines", "startswith", "strip", "title", "upper"),
    ),
    dict: ("get", "items", "keys", "values"),
    list: ("count", "index"),
    tuple: ("count", "index"),
}  # fmt: skip
GLOBALS = ("dict", "namespace", "range")
FREE = ("count", "d", "default", "first", "items", "last", "length")  # filters that make nothing new
GROWING = ("indent", "join", "replace")  # whose result may be as large as value times argument
_COUNTED, _JOINED, _WEIGHED = "loop over", "joined by ~", "pay for"  # names that no template can write
CALL, ITEM = 100, 10  # units of a call, and of an item in a loop: what they cost in time


class TooMuch(jinja2.TemplateError):
    """A template took more than its budget."""


class Budget:
    """What one rendering may still use.

    Args:
        units: roughly characters.
    """

    def __init__(self, units: int):
        self.left = units
        self._deadline = time.monotonic() + SECONDS

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuch("it makes too much text, or loops too often")
        if time.monotonic() > self._deadline:
            raise TooMuch(f"it takes longer than {SECONDS:.0f} seconds")

    def weigh(self, value: Any) -> int:
        """Spends what a value weighs, all that it holds included, and says how much that was."""
        before, waiting = self.left, [value]
        while waiting:
            item = waiting.pop()
            self.spend(1)
            if isinstance(item, str):
                self.spend(len(item))
            elif isinstance(item, dict):
                self.spend(len(item))
                waiting += [*item.keys(), *item.values()]
            elif isinstance(item, (list, tuple, KeysView, ValuesView, ItemsView)):
                self.spend(len(item))
                waiting += item
            elif isinstance(item, range):
                self.spend(len(item))
            elif isinstance(item, (int, float)):
                if isinstance(item, int) and abs(item) > LARGEST_NUMBER:
                    raise TooMuch("its numbers grow too large")
            elif item is not None and not isinstance(item, jinja2.Undefined):
                raise SecurityError(f"a {type(item).__name__} cannot be part of a text or a list")
        return before - self.left


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment chat templates are compiled and rendered in. `budget` is set anew for each rendering."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any):
        # Not optimised: the optimiser would compute constants when compiling, before there is a budget.
        super().__init__(**options, optimized=False, finalize=_put_out)
        self.budget = Budget(0)
        self.globals = {name: self.globals[name] for name in GLOBALS}
        self._plain = ImmutableSandboxedEnvironment()
        self.filters = {name: self._priced(name) for name in FILTERS}
        self.filters |= {"tojson": _to_json, _COUNTED: _counted, _JOINED: _joined, _WEIGHED: _weighed}

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> jinja2.Template:
        """Compiles a template whose parts pay."""
        tree = _Pricing().visit(self.parse(source))
        tree.set_environment(self)
        return super().from_string(tree, *arguments, **options)

    def _priced(self, name: str) -> Callable[..., Any]:
        """A filter of Jinja2's that pays for what it is given and what it makes."""

        @jinja2.pass_context
        def priced(context: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            if name in FREE:
                return self._plain.call_filter(name, value, args, kwargs, context=context)
            _pay(self.budget, name, value, args, kwargs)
            return _paid(self.budget, self._plain.call_filter(name, value, args, kwargs, context=context))

        return priced

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.budget.spend(CALL)
        if isinstance(function, (Macro, jinja2.Undefined)):
            return super().call(context, function, *args, **kwargs)
        owner, name = (
            getattr(function, "__self__", None),
            getattr(function, "__name__", type(function).__name__),
        )
        if isinstance(owner, LoopContext) and name in ("changed", "cycle"):
            return super().call(context, function, *args, **kwargs)
        if function not in self.globals.values() and not any(
            isinstance(owner, kind) and name in names for kind, names in METHODS.items()
        ):
            raise SecurityError(f"{name}() is not available")
        _pay(self.budget, name, "" if owner is None else owner, args, kwargs)
        result = super().call(context, function, *args, **kwargs)
        return result if function is self.globals["namespace"] else _paid(self.budget, result)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.spend(1)
        if operator == "+":
            self.budget.weigh(left)
            self.budget.weigh(right)
        elif operator == "*":
            for repeated, times in ((left, right), (right, left)):
                if isinstance(repeated, (str, list, tuple)) and isinstance(times, int):
                    self.budget.spend(self.budget.weigh(repeated) * max(times, 0))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if right * left.bit_length() > LARGEST_NUMBER.bit_length():
                raise TooMuch("its numbers grow too large")
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not available")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int):
            self.budget.weigh(result)
        return result


class _Pricing(NodeTransformer):
    """Sends whatever makes something without a call or an operator through a filter that has it paid for."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise jinja2.TemplateSyntaxError(
                "a recursive loop is not available in chat templates", node.lineno
            )
        self.generic_visit(node)
        node.iter = _through(_COUNTED, node.iter)
        return node

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Const:
        return nodes.Const(node.data, lineno=node.lineno)  # put out like a value, so paid for like one

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _through(_JOINED, nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _through(_WEIGHED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _through(_WEIGHED, node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Name(self, node: nodes.Name) -> nodes.Name:
        if node.name in ("varargs", "kwargs", "self", "super"):
            self.refuse(node)
        return node

    def refuse(self, node: nodes.Node) -> NoReturn:
        what = node.name if isinstance(node, nodes.Name) else type(node).__name__.lower()
        raise jinja2.TemplateSyntaxError(f"{what!r} is not available in chat templates", node.lineno)

    visit_Block = visit_Extends = visit_FromImport = visit_Import = visit_Include = refuse
    visit_ScopedEvalContextModifier = visit_EvalContextModifier = refuse


def _through(name: str, node: Any) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _pay(budget: Budget, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """For what a call is given, and in advance for a result that may be much larger."""
    parts = (*args, *kwargs.values())
    weight, weights = budget.weigh(value), [budget.weigh(part) for part in parts]
    if name in GROWING:
        sizes = [part if isinstance(part, int) else size for part, size in zip(parts, weights, strict=True)]
        budget.spend(weight * max(sizes, default=1))


def _paid(budget: Budget, result: Any) -> Any:
    if isinstance(result, Iterator):
        result = list(itertools.islice(result, budget.left + 1))
    budget.weigh(result)
    return result


@jinja2.pass_context
def _put_out(context: Any, value: Any) -> Any:
    context.environment.budget.weigh(value)
    return value


@jinja2.pass_context
def _counted(context: Any, items: Any) -> list[Any]:
    budget = context.environment.budget
    items = list(itertools.islice(items, budget.left + 1))
    budget.spend(ITEM * len(items))
    return items


@jinja2.pass_context
def _joined(context: Any, parts: list[Any]) -> str:
    context.environment.budget.weigh(parts)
    return str_join(parts)


@jinja2.pass_context
def _weighed(context: Any, value: Any) -> Any:
    context.environment.budget.weigh(value)
    return value


@jinja2.pass_context
def _to_json(
    context: Any,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers has it: Jinja2's own filter escapes characters for HTML, which would change the prompt."""
    budget = context.environment.budget
    budget.weigh(value)
    if isinstance(indent, int) and indent > WIDEST_INDENT:
        raise TooMuch(f"it indents by more than {WIDEST_INDENT}")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    chunks = []
    for chunk in encoder.iterencode(value):
        budget.spend(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)
