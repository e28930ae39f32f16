"""Which backend Keras runs on, and the environment that it reads when it is imported.

Keras reads KERAS_BACKEND once, when it is first imported. `select` therefore runs before anything that imports Keras,
and itself imports neither Keras nor a backend.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

from keras_mtp.backend.allocator import keep_freed_memory
from keras_mtp.errors import UserError

BACKENDS = ("jax", "tensorflow", "torch")  # in the order of preference where nobody chose


def select(name: str | None = None) -> str:
    """Decides the backend and sets the environment that Keras and the backend read when they are imported.

    Args:
        name: one of `BACKENDS`; None means KERAS_BACKEND, else the first that is installed.

    Returns:
        The backend's name.

    Raises:
        UserError: unknown, not installed, or Keras already runs on another one.
    """
    name = chosen(name)
    if importlib.util.find_spec(name) is None:
        raise UserError(f'The backend {name} is not installed. Run: pip install "keras_mtp[{name}]"')
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != name:
        raise UserError(
            f"Keras already runs on {running} and cannot change to {name}. Set KERAS_BACKEND={name}, or choose the "
            "backend, before Keras is imported."
        )
    os.environ["KERAS_BACKEND"] = name
    _set_defaults(name)
    if name != "tensorflow":
        keep_freed_memory()
    return name


def chosen(name: str | None = None) -> str:
    """The backend that `select` would take; it need not be installed if it was named.

    Raises:
        UserError: unknown.
    """
    name, origin = (name, "--backend") if name else (os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND")
    name = name or _first_installed()
    if name not in BACKENDS:
        raise UserError(f"`{origin}` must be one of {', '.join(BACKENDS)}. Received: {origin}={name}.")
    return name


def _first_installed() -> str:
    for name in BACKENDS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError(
        'No backend is installed. Run: pip install "keras_mtp[jax]" (or [tensorflow], or [torch]).'
    )


def _set_defaults(name: str) -> None:
    """Environment defaults; whatever the user has set stays."""
    defaults = {"TF_CPP_MIN_LOG_LEVEL": "2"}  # keras-hub may import TensorFlow on any backend
    if name == "torch":
        # Threads that spin while they wait make a step take six times as long when the machine is busy.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    if name == "jax":
        defaults["JAX_COMPILATION_CACHE_DIR"] = str(_cache_folder() / "jax")
        defaults["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
        if simulated := re.search(
            r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
        ):
            # By default there are as many threads as devices. A step begins before the last one has ended, and where one
            # of its devices waits for a thread that another step's has, both wait for ever.
            defaults["PJRT_NPROC"] = str(8 * int(simulated[1]))
    for key, value in defaults.items():
        os.environ.setdefault(key, value)


def _cache_folder() -> Path:
    if sys.platform == "darwin":
        parent = "~/Library/Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(parent)) / "keras_mtp"
