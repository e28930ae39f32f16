"""How much memory and time a run takes beyond what importing its libraries takes, and how much memory there is."""

import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Of the two versions of control groups, by the controllers that name them: the folder below the mount, and in a group's
# folder the file with its limit, that with what is used, and the entry of `memory.stat` for pages that can be dropped.
_VERSIONS = {
    "": (".", "memory.max", "memory.current", "inactive_file"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


class Clock:
    """Started once everything is imported; read at the end.

    Attributes:
        earlier, earlier_peak: seconds that the run took before it was cut off, if it was, and its peak of memory then.
    """

    def __init__(self) -> None:
        self.earlier, self.earlier_peak = 0.0, 0
        self.begun = time.monotonic()
        self.resident_bytes = resident_bytes()

    @property
    def seconds(self) -> float:
        """Since the start, and before it."""
        return self.earlier + time.monotonic() - self.begun

    @property
    def taken_bytes(self) -> int:
        """Resident memory now, less what was resident at the start."""
        return max(resident_bytes() - self.resident_bytes, 0)

    @property
    def peak_bytes(self) -> int:
        """Peak resident memory of the run, less what was resident at the start of each of its processes."""
        return max(peak_resident_bytes() - self.resident_bytes, self.earlier_peak)


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return psutil.Process().memory_info().rss


def peak_resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Peak resident memory of this process.

    Linux' own count is taken where there is one: `getrusage` says at least what the process had that started this one.
    Elsewhere `getrusage` it is, which counts kilobytes on Linux and bytes on macOS.
    """
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int:
    """Memory that this process can still get without swapping, from the machine and within its control groups."""
    return min([psutil.virtual_memory().available, *left_in_groups()])


def left_in_groups(
    memberships: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """What is left to every control group with a limit that this process is in, as a container is; Linux only."""
    if not memberships.is_file():
        return
    for line in memberships.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in _VERSIONS:
            below, *names = _VERSIONS[controllers]
            root = mount / below
            group = root / path.strip("/")
            # In a container the path is the host's, and what is mounted begins at the group itself.
            for folder in (group, *group.parents):
                if folder.is_relative_to(root) and (left := _left(folder, *names)) is not None:
                    yield left


def _left(folder: Path, limit: str, used: str, droppable: str) -> int | None:
    """The limit less what is used, pages aside that can be dropped; None where there is no limit."""
    try:
        allowed = (folder / limit).read_text().strip()
        taken = int((folder / used).read_text())
        pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no such group here, or no limit at the root
        return None
    return None if allowed == "max" else max(int(allowed) - taken + int(pages.get(droppable, 0)), 0)
