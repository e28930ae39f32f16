"""Whatever goes wrong at whichever step: all of the old is there, or all of the new."""

import os

import pytest

from keras_mtp import disk
from keras_mtp.errors import UserError
from tools.crashes.faulty_disk import FaultyDisk, broken, full, kill

pytestmark = pytest.mark.any_backend
OLD, NEW = {"a": b"old a", "b": b"old b"}, {"a": b"new a", "c": b"new c"}


def _write(folder, content):
    with disk.whole_folder(folder) as new:
        for name, data in content.items():
            disk.DISK.write(new / name, data)


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _counted(monkeypatch, action) -> list[str]:
    with monkeypatch.context() as patch:
        counting = FaultyDisk(None, kill)
        patch.setattr(disk, "DISK", counting)
        action()
    return counting.done


def test_what_a_save_does_to_the_disk(monkeypatch, tmp_path):
    done = _counted(monkeypatch, lambda: _write(tmp_path / "x", OLD))
    assert done == ["write", "write", "sync", "sync", "sync", "rename", "sync"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and _content(tmp_path / "x") == OLD


@pytest.mark.parametrize("fault", [full, broken])
def test_a_disk_that_does_not_take_it_at_any_step(monkeypatch, tmp_path, fault):
    steps = _counted(monkeypatch, lambda: _write(tmp_path / "counted", NEW))
    _write(tmp_path / "x", OLD)
    for at in range(len(steps)):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "DISK", FaultyDisk(at, fault))
            with pytest.raises(
                UserError, match=r"The checkpoint must be written to .*(No space left|Input/output error)"
            ):
                _write(tmp_path / "y", NEW)
        assert _content(tmp_path / "x") == OLD
        assert {path.name for path in tmp_path.iterdir()} <= {"counted", "x", "y"}
        if (tmp_path / "y").exists():
            assert _content(tmp_path / "y") == NEW
            disk.remove_whole(tmp_path / "y")


def test_a_kill_at_any_step_of_replacing_or_removing(monkeypatch, tmp_path):
    """A folder cannot be exchanged for another at once, so for a moment there is none; never is there a mixture."""
    _write(tmp_path / "x", OLD)
    steps = _counted(monkeypatch, lambda: _write(tmp_path / "x", NEW))
    seen = []
    for at in range(len(steps)):
        folder = tmp_path / str(at) / "x"
        _write(folder, OLD)
        if os.fork() == 0:
            disk.DISK = FaultyDisk(at, kill)
            _write(folder, NEW)
            os._exit(0)
        assert os.WIFSIGNALED(os.wait()[1])
        seen.append(_content(folder) if folder.exists() else None)
    middle = seen.index(None)
    assert seen[:middle] == [OLD] * middle and seen[middle + 1 :] == [NEW] * (len(steps) - middle - 1)
    assert 0 < middle < len(steps) - 1


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one_there(monkeypatch, tmp_path):
    class FailsOnce(disk.Disk):
        renamed = 0

        def rename(self, old, new):
            self.renamed += 1
            if self.renamed == 2:  # the new one to its place, the old one being out of the way
                raise OSError(5, "Input/output error")
            super().rename(old, new)

    _write(tmp_path / "x", OLD)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "DISK", FailsOnce())
        with pytest.raises(UserError, match="Input/output error"):
            _write(tmp_path / "x", NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and _content(tmp_path / "x") == OLD


def test_what_json_has_no_number_for_is_null():
    assert disk.finite({"a": [float("nan"), 1.0], "b": (float("inf"), {"c": "x"})}) == {
        "a": [None, 1.0],
        "b": [None, {"c": "x"}],
    }


def test_text_is_written_whole_or_not_at_all(monkeypatch, tmp_path):
    disk.write_text(tmp_path / "x", "old")
    with pytest.raises(UnicodeEncodeError):
        disk.write_text(tmp_path / "x", "new" * 10_000 + "\ud800")
    for at in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "DISK", FaultyDisk(at, full))
            with pytest.raises(OSError, match="No space left"):
                disk.write_text(tmp_path / "x", "new" * 10_000)
        assert (tmp_path / "x").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_links_are_removed_and_not_what_they_lead_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone/link").symlink_to(tmp_path / "kept")
    disk.remove_tree(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (tmp_path / "kept/file").exists()
    disk.remove_tree(tmp_path / "never there")
