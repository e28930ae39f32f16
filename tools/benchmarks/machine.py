"""What the machine can do: its matrix-product peak, and how much memory a process took."""

import contextlib
import ctypes
import gc
import importlib
import os
import platform
import time
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from keras_mtp import memory

REPEATS = 3


def describe(packages: Iterable[str]) -> dict[str, str]:
    """The processor, the date and the versions that numbers belong to."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "date": date.today().isoformat(),
        **{name: version(name) for name in packages},
    }


def matmul_peak(shapes: Sequence[tuple[int, int, int]], dtype: str) -> float:
    """FLOP/s of the best matrix product among `shapes` (n, a, b): (n, a) times (a, b), the latter stored either way."""
    from keras import ops

    from keras_mtp import backend

    def product(left, right):
        return ops.matmul(left, right)

    def transposed(left, right):
        return ops.einsum("na,ba->nb", left, right)

    best = 0.0
    for rows, inner, outer in shapes:
        left = ops.cast(ops.ones((rows, inner)), dtype)
        for function, shape in ((product, (inner, outer)), (transposed, (outer, inner))):
            right = ops.cast(ops.ones(shape), dtype)
            seconds = _best_seconds(backend.compiled(function, ()), left, right)
            best = max(best, 2 * rows * inner * outer / seconds)
    return best


def give_back() -> None:
    """Gives the system back what memory is freed but kept by the allocator."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Forgets this process' peak of resident memory so far, where the system allows it."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(backend: str, resident_before: int) -> int:
    """On a GPU what the backend's allocator took at most; else the peak of resident memory above `resident_before`."""
    return _device_peak_bytes(backend) or max(memory.peak_resident_bytes() - resident_before, 0)


def available_bytes() -> int | None:
    """Memory that can still be had, where the system tells."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def _best_seconds(function, *arguments) -> float:
    """The fastest of a few runs, the first left out."""
    found = []
    for _ in range(1 + REPEATS):
        begun = time.perf_counter()
        _wait(function(*arguments))
        found.append(time.perf_counter() - begun)
    return min(found[1:])


def _wait(result) -> None:
    """Until it is there: a backend may return before."""
    from keras import ops

    ops.convert_to_numpy(ops.cast(result[:1, :1], "float32"))


def _device_peak_bytes(backend: str) -> int:
    if backend == "tensorflow":
        tf = importlib.import_module("tensorflow")
        gpus = tf.config.list_logical_devices("GPU")
        return tf.config.experimental.get_memory_info(gpus[0].name)["peak"] if gpus else 0
    if backend == "torch":
        torch = importlib.import_module("torch")
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    stats = importlib.import_module("jax").devices()[0].memory_stats()
    return (stats or {}).get("peak_bytes_in_use", 0)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
