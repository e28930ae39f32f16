import os

import pytest

from keras_mtp.errors import UserError
from keras_mtp.models.location import DEFAULT_MODEL, find
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend


def test_the_default_model_is_in_a_package():
    location = find(DEFAULT_MODEL)
    assert location.path.suffix == ".gguf"
    assert (location.name, location.source, location.revision) == (DEFAULT_MODEL, DEFAULT_MODEL, None)


def test_a_path_is_named_by_its_last_part(tmp_path, monkeypatch):
    write_tiny_gguf(tmp_path / "llama.Q4.gguf", num_layers=1)
    location = find(str(tmp_path / "llama.Q4.gguf"))
    assert (location.name, location.source) == ("llama.Q4", "llama.Q4.gguf")
    (tmp_path / "folder-1.5").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("folder-1.5", "./folder-1.5", f"folder-1.5{os.sep}"):
        assert (find(name).name, find(name).source) == ("folder-1.5", "folder-1.5")
    monkeypatch.chdir(tmp_path / "folder-1.5")
    assert find(".").name == "folder-1.5"


def test_a_folder_is_taken_before_a_preset_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "llama3.2_1b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find("llama3.2_1b").preset is None


@pytest.mark.parametrize(
    ("name", "guess"),
    [("smollm2_135m", "smollm2-135m"), ("lama3.2_1b", "llama3.2_1b"), ("./lama.gguf", "llama.gguf")],
)
def test_a_spelling_mistake_gets_a_guess(tmp_path, monkeypatch, name, guess):
    write_tiny_gguf(tmp_path / "llama.gguf", num_layers=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"Did you mean {guess}\?"):
        find(name)
