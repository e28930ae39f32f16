"""What a backend really keeps of a part: factors, measured by `tools/measure_memory.py`."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FACTORS = Path(__file__).with_name("factors.toml")


def weighed(
    phases: Mapping[str, Mapping[str, float]], factors: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """What was counted, as a backend will really have it."""
    return {
        name: {"program": factors["program"]} | {part: factors[part] * size for part, size in parts.items()}
        for name, parts in phases.items()
    }


@cache
def _tables() -> dict:
    return tomllib.loads(FACTORS.read_text("utf-8"))


def factors(backend: str, dtype: str, *, accelerator: bool = False) -> Mapping[str, float]:
    """The measured factors of a backend with a compute dtype, "float32" or "mixed_bfloat16".

    All were measured on a CPU. An accelerator gets those of float32 for bfloat16 too: it multiplies in bfloat16, where a CPU
    may first make float32 of what it multiplies.
    """
    return _tables()[backend]["float32" if accelerator else dtype]
