"""What glibc does with memory that was freed: kept within a phase of a run, returned to the system between two."""

import contextlib
import ctypes
import sys
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8  # malloc.h
_LARGE, _MANY = 2**24, 2**16  # bytes of a block, and how many of them


def keep_freed_memory() -> None:
    """Lets glibc reuse what was freed instead of returning it to the system.

    A training step on a CPU allocates and frees its whole working memory, gigabytes, and the system would clear every
    page of it again: up to a sixth of a step in JAX, a twentieth in torch. TensorFlow gains next to nothing.
    """
    _set({_M_MMAP_MAX: 0, _M_ARENA_MAX: 1, _M_TRIM_THRESHOLD: -1})


def return_large_blocks() -> None:
    """From now on, lets glibc return blocks of 16 MB and more as soon as they are freed.

    For a quantised trunk, whose matrices are made floating-point one at a time: they left holes that nothing else fitted. 8 steps of
    torch on SmolLM2 in int8 took 2.6 GB, and take 2.5 in the same time; with blocks of 1 MB 1.9, but a third longer.
    """
    _set({_M_MMAP_MAX: _MANY, _M_MMAP_THRESHOLD: _LARGE})


def return_freed_memory() -> None:
    """Gives the system what was freed, between two phases of a run.

    A phase asks for blocks of other sizes than the one before and hardly finds room among what that has freed: on JAX, a
    run that answers test items before it trains would keep what both have taken, the larger and the smaller.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _set(options: Mapping[int, int]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            for option, value in options.items():
                mallopt(option, value)
