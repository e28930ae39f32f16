"""Amounts of memory and speeds, as people write them: "24GB", "22.5GiB", "300TFLOPS"."""

import math
import re

from keras_mtp.errors import UserError

_THOUSANDS = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_BINARY = {f"{letter}i": 1024.0**power for power, letter in enumerate("kmgt", start=1)}
_AMOUNT = r"\s*(\d+(?:\.\d+)?)\s*"


def bytes_of(text: str) -> float:
    """`bytes_of("24GB")` and `bytes_of("24G")` are 24e9; `bytes_of("1GiB")` is 2**30."""
    found = re.fullmatch(_AMOUNT + r"([kmgt]i?)b?", text, re.IGNORECASE)
    return _above_zero(found, _THOUSANDS | _BINARY, "--memory", "24GB or 22.5GiB", text)


def flops_per_second(text: str) -> float:
    """`flops_per_second("300TFLOPS")` is 3e14."""
    found = re.fullmatch(_AMOUNT + r"([kmgtp])flop(?:s|/s)?", text, re.IGNORECASE)
    return _above_zero(found, _THOUSANDS, "--speed", "300TFLOPS or 400GFLOPS", text)


def _above_zero(
    found: re.Match | None, units: dict[str, float], option: str, example: str, text: str
) -> float:
    amount = float(found[1]) * units[found[2].lower()] if found else 0.0
    if not 0 < amount < math.inf:
        raise UserError(f"`{option}` must be an amount above 0, such as {example}. Received: {text!r:.80}.")
    return amount


def duration(seconds: float) -> str:
    """Hours, minutes or seconds, whichever reads best."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def scaled(value: float, unit: str) -> str:
    """With the prefix that reads best: `scaled(2.1e13, "FLOP")` is "21 TFLOP"."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
