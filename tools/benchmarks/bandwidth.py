"""The ceiling of decoding: how fast memory can be read at all.

A pass reads every weight once and does little with it, so no decoder is faster than its weights can be read.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

THREADS = 2
BYTES = 1 << 30
ENOUGH = 10  # sums, of which the best is the ceiling


class ReadBandwidth:
    """Sums 1 GiB of integers in two threads, far more than any cache holds; writes nothing."""

    def __init__(self) -> None:
        # int64 adds with the least arithmetic per byte of what NumPy sums; its float32 sum is as fast, uint8 is not.
        self.parts = np.array_split(np.ones(BYTES // 8, "int64"), THREADS)
        self.threads = ThreadPoolExecutor(THREADS)

    def measure(self) -> float:
        """Bytes per second of one sum."""
        begun = time.perf_counter()
        list(self.threads.map(np.sum, self.parts))
        return BYTES / (time.perf_counter() - begun)
