"""Which parts a `tokenizer.json` may be made of.

`tokenizers` runs whatever the file describes, and some of it stops a process: ten replacements that make ten characters of
one each make 10^10 of it, a part with an impossible argument ends in a panic of its Rust code. So only the parts that
Llamas' tokenizers are made of are accepted, each by name, and text may not grow much on its way through them.

Reference: `tokenizers`, `tokenizers/src/{normalizers,pre_tokenizers,decoders,processors}/mod.rs`.
"""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import tokenizers

from keras_mtp.models.json_file import parse_json

_PARTS: dict[str, tuple[str, ...]] = {
    "model": ("BPE", "Unigram"),
    "normalizer": (
        *(
            "Sequence",
            "Prepend",
            "Replace",
            "NFC",
            "NFD",
            "NFKC",
            "NFKD",
            "Lowercase",
            "Strip",
            "StripAccents",
        ),
        "ByteLevel",
    ),
    "pre_tokenizer": (
        *(
            "Sequence",
            "ByteLevel",
            "Digits",
            "Metaspace",
            "Punctuation",
            "Split",
            "UnicodeScripts",
            "Whitespace",
        ),
        "WhitespaceSplit",
    ),
    "decoder": ("Sequence", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Strip"),
    "post_processor": ("Sequence", "ByteLevel", "TemplateProcessing"),
}
_STEPS = ("normalizers", "pretokenizers", "decoders", "processors")  # what a "Sequence" has them in
_GROWTH = {
    "NFD": 4,
    "NFKD": 18,
    "NFKC": 18,
    "NFC": 3,
    "Lowercase": 3,
    "ByteLevel": 2,
}  # at most, in characters
_LARGEST_GROWTH, _LONGEST_TEXT, _LONGEST_PATTERN = 1000, 100, 4096  # Llama 3's pattern has 130 characters


def check_text(text: str, place: str, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses what must not even reach `tokenizers`: not JSON, and word marks, whose length in bytes it cuts off every merge.

    Cut inside a character its Rust code panics, and again while it tidies up, which ends the process.
    """
    model = parse_json(text, place).get("model")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if isinstance(model, dict) and model.get(key):
            refuse(f"`{key}` = {model[key]!r:.40} in {place} is not supported")


def check_parts(backend: tokenizers.Tokenizer, refuse: Callable[[str], NoReturn]) -> None:
    """Refuses a tokenizer with a part that Llamas have not, or in which text grows without reason.

    Args:
        refuse: raises the folder's own error for a reason.
    """
    for role, known in _PARTS.items():
        part = getattr(backend, role)
        if role == "model":
            steps = [{"type": type(part).__name__}]
        else:
            steps = list(_steps(json.loads(part.__getstate__()))) if part is not None else []
        for step in steps:
            if step["type"] not in known:
                refuse(f"a {role} of the type {step['type']!r:.40} is not supported")
            _check_texts(step, role, refuse)
        if role in ("normalizer", "decoder") and math.prod(map(_growth, steps)) > _LARGEST_GROWTH:
            refuse(f"its {role} makes text more than {_LARGEST_GROWTH} times as long")


def _steps(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A part, and if it is a sequence those it is made of."""
    yield part
    for key in _STEPS:
        for step in part.get(key, ()) if part["type"] == "Sequence" else ():
            yield from _steps(step)


def _check_texts(step: dict[str, Any], role: str, refuse: Callable[[str], NoReturn]) -> None:
    pattern = step.get("pattern")
    if len(_pattern(pattern)) > _LONGEST_PATTERN:
        refuse(f"a pattern in its {role} has more than {_LONGEST_PATTERN} characters")
    if any(len(step.get(key) or "") > _LONGEST_TEXT for key in ("content", "prepend")):
        refuse(f"its {role} writes more than {_LONGEST_TEXT} characters for one")


def _pattern(pattern: Any) -> str:
    return next(iter(pattern.values())) if isinstance(pattern, dict) else pattern or ""


def _growth(step: dict[str, Any]) -> int:
    """How many characters a step can make of one, at most."""
    if step["type"] != "Replace":
        return _GROWTH.get(step["type"], 1)
    found = step["pattern"].get("String", "")  # a regular expression may match at a single place
    return max(1, math.ceil(len(step["content"]) / len(found))) if found else len(step["content"]) + 1
