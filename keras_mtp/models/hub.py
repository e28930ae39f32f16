"""Downloads models from the Hugging Face hub and from Kaggle, by these hubs' own clients.

Only data files that are known by name are fetched: no code, no pickles. The clients keep the user's tokens to
themselves, and an error here tells what kind it was and never the client's own text, which may hold a whole request.
"""

import functools
import re
from pathlib import Path
from typing import NoReturn

from keras_mtp.errors import UserError

HUGGING_FACE, KAGGLE = "hf://", "kaggle://"
TIMEOUT_SECONDS = 10.0
REPOSITORY = r"[\w.-]+/[\w.-]+"  # of the Hugging Face hub
_HUGGING_FACE_FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "chat_template.jinja", "model.safetensors", "model-*.safetensors"),
    *("model.safetensors.index.json", "README.md", "LICENSE*", "LICENCE*"),
    # A keras-hub preset uploaded to this hub.
    *("model.weights.h5", "model_*.weights.h5", "model.weights.json", "assets/tokenizer/*"),
]


def from_hugging_face(name: str) -> Path:
    """The folder of a repository on the Hugging Face hub; offline, its copy in the cache.

    Args:
        name: "hf://org/name", or "hf://org/name@revision" for a branch, tag or commit.

    Raises:
        UserError: not such a name, no such repository, no permission, or out of reach.
    """
    match = re.fullmatch(rf"hf://({REPOSITORY})(?:@([\w./-]+))?", name)
    if match is None:
        raise UserError(
            f"A model on the Hugging Face hub must be hf://org/name or hf://org/name@revision. Received: {name}. "
            "Mend the name."
        )
    repository, revision = match.groups()
    try:
        return _snapshot(repository, revision)
    except Exception as error:  # of the hub, its HTTP library or the disk; there is no common class
        try:
            return _cached_snapshot(repository, revision)
        except Exception:
            _refuse(
                name,
                error,
                f"accept the model's terms on huggingface.co/{repository} and log in with `hf auth login`",
            )


def _snapshot(repository: str, revision: str | None) -> Path:
    import huggingface_hub

    # Asked first, once and with a limit: it tells at once whether the hub can be reached.
    huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
    # By the name that the user gave, not by the commit: offline the cache finds what was asked for by the same name.
    return Path(
        huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=_HUGGING_FACE_FILES)
    )


def _cached_snapshot(repository: str, revision: str | None) -> Path:
    import huggingface_hub

    return Path(
        huggingface_hub.snapshot_download(
            repository, revision=revision, allow_patterns=_HUGGING_FACE_FILES, local_files_only=True
        )
    )


def from_kaggle(name: str, handle: str) -> Path:
    """The folder of a keras-hub preset on Kaggle; a version that was downloaded before comes from the cache.

    Args:
        name: what the user called it.
        handle: Kaggle's name, "keras/llama3/keras/llama3.2_1b/1".

    Raises:
        UserError: quantised, no such preset, no permission, or out of reach.
    """
    import kagglehub

    if "_int8" in handle:
        raise UserError(
            f"A preset must hold floating-point weights. Received: {name}, which is quantised to int8. "
            f"Use {name.replace('_int8', '')}."
        )
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:  # of the client, its HTTP library or the disk; there is no common class
        _refuse(name, error, "accept the model's terms on kaggle.com and log in with `kagglehub.login()`")


@functools.cache
def presets() -> dict[str, str]:
    """Kaggle's handle for every Llama that keras-hub knows by name."""
    import keras_hub

    known = keras_hub.models.LlamaBackbone.presets
    return {name: preset["kaggle_handle"].removeprefix(KAGGLE) for name, preset in known.items()}


def preset_of(handle: str) -> str | None:
    """The name under which keras-hub knows a handle of Kaggle's, whatever its version."""
    kind = handle.split("/")[:4]
    return next((name for name, known in presets().items() if known.split("/")[:4] == kind), None)


def _refuse(name: str, error: Exception, log_in: str) -> NoReturn:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        reason = f"it does not exist, or you may not read it (HTTP {status}). Check the spelling, or {log_in}"
    elif isinstance(error, OSError) and error.filename:  # of the disk, not of the network
        reason = f"{error.strerror}: {error.filename}"
    else:
        reason = (
            f"its hub cannot be reached and it is not in the cache ({type(error).__name__}). Check the network, or "
            "give the path of a model's folder or GGUF file"
        )
    raise UserError(f"{name} cannot be downloaded: {reason}.") from error
