"""A request's body: read up to a limit, parsed, its fields taken out one by one, each of the type it must have."""

import json
from typing import Any

from starlette.requests import Request

from keras_mtp.limits import Refused


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The object that a request's body is.

    Raises:
        Refused: it is too large, no JSON, or no object.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Refused(f"The body must have at most {max_bytes} bytes.", 413, code="body_too_large")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"The body must be JSON ({error}).", code="invalid_json") from error
    if not isinstance(value, dict):
        raise Refused(
            f"The body must be a JSON object. Received: {type(value).__name__}.", code="invalid_json"
        )
    return value


def integer(body: dict[str, Any], name: str, default: int | None, lowest: int, highest: int) -> int:
    """A whole number; null is as if it were not there."""
    value = body.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise Refused(
            f"`{name}` must be a whole number from {lowest} to {highest}. Received: {value!r:.80}.",
            param=name,
        )
    return value


def number(body: dict[str, Any], name: str, default: float, lowest: float, highest: float) -> float:
    """A number."""
    value = body.get(name)
    if value is None:
        return default
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (right and lowest <= value <= highest):
        raise Refused(
            f"`{name}` must be a number from {lowest} to {highest}. Received: {value!r:.80}.", param=name
        )
    return float(value)


def flag(body: dict[str, Any], name: str) -> bool:
    """True or false; false where it is not there."""
    value = body.get(name)
    if value not in (None, True, False) or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        raise Refused(f"`{name}` must be true or false. Received: {value!r:.80}.", param=name)
    return bool(value)


def token_ids(value: Any, vocabulary_size: int, param: str) -> list[int]:
    """A list of token ids, none of them unknown to the model."""
    if not isinstance(value, list) or any(isinstance(x, bool) or not isinstance(x, int) for x in value):
        raise Refused(f"`{param}` must be a list of token ids. Received: {value!r:.80}.", param=param)
    if unknown := next((x for x in value if not 0 <= x < vocabulary_size), None):
        raise Refused(
            f"`{param}` must hold token ids from 0 to {vocabulary_size - 1}. Received: {unknown}.",
            param=param,
        )
    return value
