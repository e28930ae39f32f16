"""A table of a recipe: fields that are documented where they are defined, and check the values that they get."""

import dataclasses
import math
import re
from typing import Any, ClassVar

from keras_mtp.errors import UserError
from keras_mtp.recipe.spelling import closest

_TYPES: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


def field(default: Any, doc: str, **limits: Any) -> Any:
    """A recipe's field: default, documentation, and `choices`, `minimum`, `above`, `maximum` or `pattern`."""
    return dataclasses.field(default=default, metadata={"doc": doc, **limits})


def _check(key: str, value: Any, spec: dataclasses.Field) -> None:
    """Type, choices and range of one value."""
    limits = spec.metadata
    received = f"Received: {key}={value!r:.80}."
    if type(value) is not spec.type:  # exactly: a bool is no int here
        wanted = _TYPES.get(spec.type, "a table")
        raise UserError(f"`{key}` must be {wanted}. {received}")
    if spec.type is float and not math.isfinite(value):
        raise UserError(f"`{key}` must be finite. {received}")
    if "choices" in limits and value not in limits["choices"]:
        raise UserError(
            f"`{key}` must be {' or '.join(limits['choices'])}. {received}{closest(value, limits['choices'])}"
        )
    if "minimum" in limits and value < limits["minimum"]:
        raise UserError(f"`{key}` must be at least {limits['minimum']}. {received}")
    if "above" in limits and value <= limits["above"]:
        raise UserError(f"`{key}` must be above {limits['above']}. {received}")
    if "maximum" in limits and value > limits["maximum"]:
        raise UserError(f"`{key}` must be at most {limits['maximum']}. {received}")
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        raise UserError(f"`{key}` must be letters, digits, `-`, `_` and `.` only. {received}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a recipe; checks its values however it was made, from TOML or in Python."""

    _path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.type is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, spec.name, value)
            _check(self._path + spec.name, value, spec)
