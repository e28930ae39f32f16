"""Each test process runs on one backend, KERAS_BACKEND; it is chosen here, before a test imports Keras."""

import gc
import os
from pathlib import Path

from keras_mtp import backend

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
# Compiling is most of JAX's time: what is compiled is shared by the processes of a run, and kept for the next run.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Most of compiling is LLVM's, for code that a tiny model runs through a few times. What XLA makes of a program is untouched.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if backend.select() == "tensorflow":
    # Likewise: a fifth of the time of tests that train went into making graphs faster that run a few times. Those of the commands
    # that tests start are made faster as ever.
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
gc.disable()  # until everything is imported


def pytest_collection_finish():
    """As `backend.first_imports` does: a test of many small steps took twice its time for garbage collection."""
    gc.freeze()
    gc.enable()
