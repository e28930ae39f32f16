"""How much memory and time a run takes beyond what importing its libraries takes."""

import resource
import sys
import time
from pathlib import Path


class Clock:
    """Started once everything is imported; read at the end.

    Attributes:
        earlier: seconds that the run took before it was cut off, if it was.
    """

    def __init__(self) -> None:
        self.earlier = 0.0
        self.begun = time.monotonic()
        self.resident_bytes = resident_bytes()

    @property
    def seconds(self) -> float:
        """Since the start, and before it."""
        return self.earlier + time.monotonic() - self.begun

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of the process, less what was resident at the start."""
        return max(peak_resident_bytes() - self.resident_bytes, 0)


def resident_bytes() -> int:
    """Resident memory now; where the system does not tell, the peak so far."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident memory of this process. `getrusage` counts kilobytes on Linux and bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
