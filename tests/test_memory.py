"""What is free, on the machine and within control groups as a container has them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from keras_mtp import memory

pytestmark = pytest.mark.any_backend


def _group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_container_has_what_its_group_and_the_groups_around_leave(tmp_path):
    """Version 2: the tightest of them is two levels up; file pages that nobody uses can be dropped."""
    memberships = tmp_path / "cgroup"
    memberships.write_text("0::/outer/inner\n")
    stat = "anon 10\ninactive_file 300\n"
    inner = {"memory__max": "max\n", "memory__current": "2000\n", "memory__stat": stat}
    _group(tmp_path / "fs/outer/inner", **inner)
    outer = {"memory__max": "5000\n", "memory__current": "4500\n", "memory__stat": stat}
    _group(tmp_path / "fs/outer", **outer)
    assert list(memory.left_in_groups(memberships, tmp_path / "fs")) == [800]


def test_the_older_version_of_groups_counts_too(tmp_path):
    memberships = tmp_path / "cgroup"
    memberships.write_text("5:cpu:/x\n4:memory:/x\n0::/\n")
    files = {"memory__limit_in_bytes": "9000", "memory__usage_in_bytes": "1000", "memory__stat": "cache 5\n"}
    _group(tmp_path / "fs/memory/x", **files)
    assert list(memory.left_in_groups(memberships, tmp_path / "fs")) == [8000]


def test_a_container_that_sees_only_its_own_group(tmp_path):
    """The path is the host's; what is mounted is the group itself."""
    memberships = tmp_path / "cgroup"
    memberships.write_text("0::/docker/0123\n")
    files = {"memory__max": "700", "memory__current": "900", "memory__stat": ""}
    _group(tmp_path / "fs", **files)
    assert list(memory.left_in_groups(memberships, tmp_path / "fs")) == [0]


def test_no_groups_no_limits(tmp_path):
    assert list(memory.left_in_groups(tmp_path / "none")) == []
    assert 0 < memory.available_bytes() <= psutil.virtual_memory().total


def test_what_a_clock_sees_taken_grows_with_what_is_allocated():
    clock = memory.Clock()
    block = np.ones(
        400_000_000, "uint8"
    )  # far more than what other tests have left to be given back meanwhile
    assert 200_000_000 < clock.taken_bytes < 1_000_000_000
    assert clock.peak_bytes >= clock.taken_bytes - 100_000_000 and block.all()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux' own count")
def test_a_process_has_not_the_peak_of_the_one_that_started_it():
    """`getrusage` says so, of a process that `subprocess` starts."""
    large = np.ones(400 << 20, "uint8")
    code = "from keras_mtp.memory import peak_resident_bytes as peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < large.nbytes <= memory.peak_resident_bytes()
