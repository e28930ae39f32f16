"""A first import of Keras or of a backend: without greetings, without what is not needed, without a GPU's whole memory.

And a backend itself, for what Keras has no word for.
"""

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps TensorFlow's greetings out of a first import of Keras; everything else on standard error gets through.

    TensorFlow 2.21 logs before its logging is set up, so that TF_CPP_MIN_LOG_LEVEL does not reach these lines.
    """
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(
                    (b"I0000 ", b"WARNING: All log messages before absl::InitializeLog()")
                ):
                    os.write(2, line)


@contextlib.contextmanager
def first_imports() -> Iterator[None]:
    """Where a command imports Keras for the first time: quietly, and but for TensorFlow in two thirds of the time."""
    if "keras" in sys.modules:
        yield
        return
    with quiet_imports(), _uncollected(), _without_tensorflow():
        yield


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keeps Python's garbage collector from what is imported, which stays until the process ends.

    Keras, keras-hub and a backend are half a million objects. Looking through them takes 0.3 s, many times while they are
    imported and again each time that a model is built or traced.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextlib.contextmanager
def _without_tensorflow() -> Iterator[None]:
    """On another backend, keeps keras-hub 0.32 from importing TensorFlow, for tokenizers and converters that are not used
    here: a second and 600 MB. Whoever imports TensorFlow itself, later, gets it."""
    if os.environ["KERAS_BACKEND"] == "tensorflow" or "tensorflow" in sys.modules:
        yield
        return
    sys.modules["tensorflow"] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        yield
    finally:
        del sys.modules["tensorflow"]


def share_tensorflow() -> None:
    """Before TensorFlow reads data beside another backend: with its first operation it would take a GPU's whole memory."""
    tf = tensorflow()
    if os.environ.get("KERAS_BACKEND") != "tensorflow":
        with contextlib.suppress(RuntimeError):  # it has begun already; too late to change
            tf.config.set_visible_devices([], "GPU")


def tensorflow():
    """TensorFlow itself, for what only it can do: `export/` writes and reads its file format. Keras need not be there."""
    with quiet_imports():
        import tensorflow as tf
    return tf


def torch():
    """PyTorch itself, for what only it can do: `export/` traces a graph with it, and asks Hugging Face's libraries."""
    import torch

    return torch


def saved_model_signatures(content: bytes) -> dict:
    """The signatures in a `saved_model.pb`, protocol buffers by name."""
    with quiet_imports():
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    return dict(SavedModel.FromString(content).meta_graphs[0].signature_def)
