"""Data sets that others publish, by name: the Hugging Face hub, TensorFlow Datasets. What rows mean is the task's business.

Both packages retry for minutes where there is no network, so the network is asked once first.
"""

import contextlib
import os
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_mtp import backend
from keras_mtp.errors import UserError

TIMEOUT_SECONDS = 5.0


class Rows(NamedTuple):
    """The rows of one split, and the version of the data set they belong to."""

    rows: list[dict[str, Any]]
    revision: str | None


def load_hub(name: str, config: str, split: str, *, other_ways: str) -> Rows:
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
            f"Received: {_cause(unreachable, error)}. {other_ways}"
        ) from error
    return Rows(rows, builder.hash)


def load_tfds(name: str, split: str, *, address: str, other_ways: str) -> Rows:
    """Rows of a data set of TensorFlow Datasets: of its copy in TFDS_DATA_DIR, or downloaded.

    What is downloaded is stored as ArrayRecord, which needs no TensorFlow to be read. A copy stored as TFRecord, the
    default of TFDS, is read by TensorFlow, kept away from the GPU unless Keras runs on it.

    Args:
        name: the data set, `"gsm8k"`.
        split: which of its splits.
        address: a URL that TFDS would download, asked first.
        other_ways: a sentence on what to do without, for the error.

    Returns:
        The rows in TFDS' own order, texts as `str`, and the data set's version, `"1.0.0"`.

    Raises:
        UserError: `tensorflow-datasets` is not installed, or there is neither a copy nor a network.

    Example:

    ```python
    rows, version = load_tfds("gsm8k", "test", address="https://...", other_ways="Use a folder: --data DIR.")
    ```
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"`tensorflow-datasets` must be installed to read {name} from TFDS. Received: {error}. "
            f'Run: pip install "keras_mtp[tfds]". {other_ways}'
        ) from error
    tfds.disable_progress_bar()
    unreachable: Exception | None = None
    try:
        builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
        if not builder.is_prepared():
            unreachable = _why_no_answer(address)
            if unreachable is not None:
                raise unreachable
            builder.download_and_prepare(file_format="array_record")
        rows = [_texts(row) for row in _tfds_rows(tfds, builder, split)]
    except Exception as error:  # from any of the packages below it; there is no common class
        raise UserError(
            f"{name} must be within reach of TFDS, or a copy of it in TFDS_DATA_DIR. "
            f"Received: {' '.join(str(unreachable or error).split()) or type(error).__name__:.200}. {other_ways}"
        ) from error
    return Rows(rows, str(builder.version))


def _tfds_rows(tfds: Any, builder: Any, split: str) -> Iterator[dict[str, Any]]:
    if {form.value for form in builder.info.available_file_formats()} & {"array_record", "parquet"}:
        return iter(builder.as_data_source(split=split))
    backend.share_tensorflow()
    return iter(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))


def _texts(value: Any) -> Any:
    """TFDS' bytes as texts, its arrays as lists, however deep."""
    if isinstance(value, dict):
        return {key: _texts(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_texts(inner) for inner in value]
    return value.decode() if isinstance(value, bytes) else value


def _cause(unreachable: Exception | None, error: Exception) -> str:
    """Why there are no rows. Of what hinders the hub's client only the kind is told: its text may hold a whole request."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    if unreachable is None:
        return said
    missing = isinstance(error, ConnectionError)  # as `datasets` says where its cache has no copy
    return type(unreachable).__name__ + ("" if missing else f", and of the copy in the cache {said}")


def _why_no_answer(address: str) -> Exception | None:
    try:
        urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT_SECONDS
        ).close()
    except Exception as error:
        return error
    return None


def _why_unreachable(name: str) -> Exception | None:
    """Asks the hub once. Left alone, `datasets` asks six times over 23 s even where there is no network."""
    import huggingface_hub

    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=TIMEOUT_SECONDS)
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
