import subprocess
import sys

import pytest

from keras_mtp import run_folder
from keras_mtp.errors import UserError

pytestmark = pytest.mark.any_backend

HOLD = """
import sys, time
from pathlib import Path
from keras_mtp import run_folder
with run_folder.claimed(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def other(tmp_path):
    """Another process at work in `tmp_path/run`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_folder_in_use_is_refused_at_once_and_left_alone(other, tmp_path):
    with pytest.raises(UserError, match="in use by another process"), run_folder.claimed(tmp_path / "run"):
        raise AssertionError("both are in")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [run_folder.LOCK]
    assert other.poll() is None


def test_the_lock_of_a_killed_process_is_free_again(other, tmp_path):
    other.kill()
    other.wait()
    assert (tmp_path / "run" / run_folder.LOCK).exists()  # nobody tidied up
    with run_folder.claimed(tmp_path / "run"):
        pass


def test_what_is_left_afterwards(tmp_path):
    with run_folder.claimed(tmp_path / "a/b"):
        (tmp_path / "a/b/kept").touch()
        assert (tmp_path / "a/b/.lock").exists()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["kept"]
    with pytest.raises(KeyError), run_folder.claimed(tmp_path / "c/d"):
        raise KeyError
    assert not (tmp_path / "c").exists()
    (tmp_path / "mine").mkdir()
    with run_folder.claimed(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()  # made by somebody else


def test_the_holder_may_claim_again(tmp_path):
    with run_folder.claimed(tmp_path / "run"):
        with run_folder.claimed(tmp_path / "run"):
            pass
        assert (tmp_path / "run/.lock").exists()  # still out of bounds for others
        (tmp_path / "run/kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]


@pytest.mark.parametrize("name", ["checkpoint", "report.json"])
def test_a_used_folder_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"must be a new one.*holds `{name}`"):
        run_folder.require_new(tmp_path)


def test_a_run_that_was_cut_off_may_go_on(tmp_path):
    for name in ("checkpoint", "snapshots"):
        (tmp_path / name).mkdir()
    run_folder.require_new(tmp_path)
    (tmp_path / "report.json").touch()  # killed just before the end
    run_folder.require_new(tmp_path)
    (tmp_path / "snapshots").rmdir()
    with pytest.raises(UserError, match="must be a new one"):
        run_folder.require_new(tmp_path)


@pytest.mark.parametrize("path", ["file", "file/run", "file/a/b"])
def test_no_folder_can_be_made_of_a_file(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be a folder that can be made"):
        run_folder.require_new(tmp_path / path)
