"""Jinja2's sandbox with a budget: whatever a template says, rendering it takes bounded time and memory.

Jinja2's own sandbox keeps a template away from the interpreter, not from the machine: `'a' * 10**10`, a few nested
loops, or a list that holds itself twice, fifty times over, stop a process. Here a template pays for what it makes:

    loops            every item they go over, when its turn comes
    comparisons      all that is compared, and what is searched
    text             every character, whenever it is joined, repeated, replaced or put out
    lists, dicts     all that they hold; what they hold twice, twice
    calls            a fixed price each

out of one budget for each rendering. What has no price is not there: only the filters and methods that chat templates
use exist. A deadline stands behind the budget, for what is cheap but slow.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext, Macro, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.visitor import NodeTransformer

from keras_mtp.data.template_budget import LARGEST_NUMBER, Budget, TooMuch

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
# Names of filters that no template can write.
_COUNTED, _JOINED, _WEIGHED, _COMPARED = "loop over", "joined by ~", "pay for", "compare with"
CALL, ITEM = 100, 10  # units of a call, and of an item in a loop: what they cost in time


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
        self.filters |= {
            "tojson": _to_json,
            _COUNTED: _counted,
            _JOINED: _joined,
            _WEIGHED: _weighed,
            _COMPARED: _compared,
        }

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
            self.budget.pay_for_call(name, value, args, kwargs)
            return self.budget.pay_for_result(
                self._plain.call_filter(name, value, args, kwargs, context=context)
            )

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
        self.budget.pay_for_call(name, "" if owner is None else owner, args, kwargs)
        result = super().call(context, function, *args, **kwargs)
        return result if function is self.globals["namespace"] else self.budget.pay_for_result(result)

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

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _through(_COMPARED, node.expr)
        for operand in node.ops:
            operand.expr = _through(_COMPARED, operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Test:
        self.generic_visit(node)
        node.args = [_through(_COMPARED, part) for part in node.args]
        return node

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


@jinja2.pass_context
def _put_out(context: Any, value: Any) -> Any:
    context.environment.budget.weigh(value)
    return value


class _Items(list):
    """What a loop goes over; each item is paid for as it comes."""

    budget: Budget

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            self.budget.spend(ITEM)
            yield item


@jinja2.pass_context
def _counted(context: Any, items: Any) -> _Items:
    budget = context.environment.budget
    counted = _Items(itertools.islice(items, budget.left + 1))
    counted.budget = budget
    budget.spend(len(counted))
    return counted


@jinja2.pass_context
def _joined(context: Any, parts: list[Any]) -> str:
    context.environment.budget.weigh(parts)
    return str_join(parts)


@jinja2.pass_context
def _compared(context: Any, value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)):
        context.environment.budget.weigh(value)
    return value


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
