"""What a base model's licence asks of those who pass on something made from it.

A head that starts as a copy of the base's last block is a derivative. So a run carries the licence's name, its text
where the model's files have it, and the notice that the licence wants to be shown.

Reference: Llama 3.2 Community License Agreement, section 1.b (the earlier ones have the same section).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mtp.models.json_file import read_text

if TYPE_CHECKING:
    from keras_mtp.models.backbone import BaseInfo

UNKNOWN = "unknown"
FILE = "base_licence.txt"
# By the hub's names for the licences, which GGUF files use as well.
_NOTICES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.",
    "llama3": "Built with Meta Llama 3. Meta Llama 3 is licensed under the Meta Llama 3 Community License, "
    "Copyright © Meta Platforms, Inc. All Rights Reserved.",
    **{
        f"llama{version}": f"Built with Llama. Llama {version} is licensed under the Llama {version} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
        for version in ("3.1", "3.2", "3.3")
    },
}
_TEXT_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md")
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Licence:
    """A model's licence, as far as its files tell.

    Args:
        name: "apache-2.0", "llama3.2", ..., "unknown" where nothing states it.
        text: the licence itself, None where the model's files do not have it.
        notice: what the licence wants to be shown, None if nothing.
    """

    name: str = UNKNOWN
    text: str | None = None
    notice: str | None = None

    @classmethod
    def named(cls, name: str | None, text: str | None = None) -> "Licence":
        """A licence by its name on the Hugging Face hub."""
        key = (name or "").strip().lower()
        return cls(name=name or UNKNOWN, text=text, notice=_NOTICES.get(key))


def read_licence(folder: Path, name: str | None = None) -> Licence:
    """The licence that a model's folder states: the front matter of its README.md, and its licence file.

    Args:
        name: the licence's name where it is known already.
    """
    text = _first_text(folder / file for file in _TEXT_FILES)
    return Licence.named(name or _name_in_card(_first_text([folder / "README.md"]) or ""), text)


def write_licence(folder: Path, base: "BaseInfo") -> Path:
    """Puts what is known about the base's licence into a folder that holds something made from the base.

    Args:
        folder: of a run or an export.
        base: the pretrained model.

    Returns:
        The file written, `base_licence.txt`.
    """
    parts = [f"Base model: {base.name}\nLicence: {base.licence}", base.notice, base.licence_text]
    path = folder / FILE
    path.write_text("\n\n".join(part.strip() for part in parts if part) + "\n", encoding="utf-8")
    return path


def _first_text(paths: Iterable[Path]) -> str | None:
    return next((read_text(path, limit_bytes=_LIMIT_BYTES) for path in paths if path.is_file()), None)


def _name_in_card(card: str) -> str | None:
    """`license:` in the YAML between the first two lines of dashes; `license_name:` where that says "other"."""
    front = re.match(r"---[ \t\r]*\n(.*?)\n---", card, re.DOTALL)
    if front is None:
        return None
    fields = dict(re.findall(r"^(license|license_name):[ \t]*['\"]?([\w.+-]+)", front[1], re.MULTILINE))
    name = fields.get("license")
    return fields.get("license_name", name) if name == "other" else name
