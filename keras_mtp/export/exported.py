"""What came of an export that another program has read back, and what every such folder holds besides the model."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keras_mtp.export.another_program import Agreement
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.licence import write_licence


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        folder: where. what: it is, in words. read_by: the programs that read it back.
        left_out: heads that it does not hold. megabytes: of all files, in 10^6 bytes.
        agreement: how what they say compares with what the model says.
    """

    folder: Path
    what: str
    read_by: str
    left_out: tuple[str, ...]
    megabytes: float
    agreement: Agreement

    def to_json(self) -> dict[str, Any]:
        """The fields, the folder as text."""
        return asdict(self) | {"folder": str(self.folder)}

    def summary(self) -> str:
        """Two lines for a reader."""
        agreement = self.agreement
        return (
            f"Exported to {self.folder}: {self.what}; {self.megabytes:.2g} MB. README.md there says how to load it.\n"
            f"Read back by {self.read_by}: the logits of {agreement.places} tokens within {agreement.logits_differ_by:.2g} of "
            f"the model's own, which go up to {agreement.logits_up_to:.2g}."
        )


def complete(folder: Path, base: BaseInfo, page: str, files: Sequence[Path]) -> float:
    """Puts the licence, the page and copies of files beside a model.

    Returns:
        Size of the folder, in 10^6 bytes.
    """
    write_licence(folder, base)
    (folder / "README.md").write_text(page, encoding="utf-8")
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
