"""Each test process runs on one backend, KERAS_BACKEND; it is chosen here, before a test imports Keras."""

import gc
import os
from pathlib import Path

import pytest

from keras_mtp import backend

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
# Compiling is most of JAX's time: what is compiled is shared by the processes of a run, and kept for the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
backend.select()


@pytest.fixture(autouse=True, scope="module")
def memory_given_back():
    """What a file leaves goes back: Python seldom looks for cycles among so many objects, and TensorFlow's graphs are some.

    Two processes grew to 12 GB each without it.
    """
    yield
    gc.collect()
