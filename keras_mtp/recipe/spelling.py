"""What a misspelt word was meant to be."""

import difflib
from collections.abc import Mapping, Sequence


def closest(word: str, known: Sequence[str] | Mapping[str, str]) -> str:
    """A question whether something known was meant, if it is spelt nearly the same."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    if not close:
        return ""
    return f" Did you mean `{known[close[0]] if isinstance(known, Mapping) else close[0]}`?"
