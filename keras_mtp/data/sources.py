"""Where rows come from: a JSON Lines file or the Hugging Face hub. What they mean is the task's business."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from keras_mtp.errors import UserError

HUB_TIMEOUT_SECONDS = 5.0


class HubRows(NamedTuple):
    """The rows of one split, and the commit of the data set they belong to."""

    rows: list[dict[str, Any]]
    revision: str | None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields `(line number from 1, object)` of a JSON Lines file in UTF-8; blank lines are skipped.

    Raises:
        UserError: there is no such file, or a line is not a JSON object; names the file and the line.

    Example:

    ```python
    for line, row in read_jsonl("train.jsonl"):
        print(line, row["question"])
    ```
    """
    try:
        with open(path, "rb") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _parse(text, f"{path}, line {line}")
    except OSError as error:
        raise UserError(
            f"The data must be a file that can be read. Received: {path} ({error.strerror}). Check the path."
        ) from error


def load_hub(name: str, config: str, split: str, *, other_ways: str) -> HubRows:
    """Rows of a data set on the Hugging Face hub, read by `datasets`; offline, of its copy in the cache.

    Args:
        name: the data set, `"openai/gsm8k"`.
        config: which of its configurations, `"main"`.
        split: which of its splits.
        other_ways: a sentence on what to do without the hub, for the error.

    Raises:
        UserError: `datasets` is not installed, or the data set is neither within reach nor in the cache.
            Comes within seconds: there are no retries.

    Example:

    ```python
    rows, revision = load_hub("openai/gsm8k", "main", "test", other_ways="Use a folder: --data DIR.")
    ```
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"`datasets` must be installed to read {name} from the Hugging Face hub. Received: {error}. "
            f"{other_ways}"
        ) from error
    unreachable = _why_unreachable(name)
    try:
        with _offline(unreachable is not None):
            builder = datasets.load_dataset_builder(name, config)
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split).to_list()
    except Exception as error:  # from any of the packages below `datasets`; there is no common class
        raise UserError(
            f"{name} must be within reach on the Hugging Face hub or in its cache. "
            f"Received: {type(unreachable or error).__name__}. {other_ways}"
        ) from error
    return HubRows(rows, builder.hash)


def _parse(text: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"Every line must be a JSON object. Received: {place} ({error}). Mend it.") from error
    if not isinstance(row, dict):
        raise UserError(
            f"Every line must be a JSON object. Received: {place}, which is a {type(row).__name__}. Mend it."
        )
    return row


def _why_unreachable(name: str) -> Exception | None:
    """Asks the hub once. Left alone, `datasets` asks six times over 23 s even where there is no network."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except Exception as error:
        return error
    return None


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    """Sends `datasets` straight to its cache, as HF_HUB_OFFLINE=1 does where it is set before the import."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
