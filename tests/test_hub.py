"""The hubs' own clients do the work, so what is tested is what reaches them and what comes out offline."""

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import keras_hub
import numpy as np
import pytest
from huggingface_hub import _tree_cache, constants
from keras import ops

from keras_mtp.errors import UserError
from keras_mtp.models import hub
from keras_mtp.models.backbone import base_info, load_backbone
from tests import tiny, tiny_hugging_face

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A hub's cache as the client fills it, with one model in it, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--tiny"
    folder = repository / "snapshots" / COMMIT
    tiny_hugging_face.save(tiny_hugging_face.reference(), folder)
    (folder / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    (repository / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(repository / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


@pytest.mark.parametrize("name", ["hf://org/tiny", "hf://org/tiny@main", f"hf://org/tiny@{COMMIT}"])
def test_offline_a_model_comes_from_the_cache_with_its_revision(cache, name):
    info = base_info(name)
    assert (info.name, info.source) == (name.removeprefix("hf://"), name)
    assert (info.revision, info.licence) == (COMMIT, "llama3.2")
    assert str(cache) not in repr(info)


@pytest.mark.parametrize("name", ["hf://org/tiny", f"hf://org/tiny@{COMMIT}"])
def test_offline_a_part_of_a_repository_will_do(cache, name):
    """The client keeps a list of its files, which has more of them than were ever asked for."""
    repository = cache / "models--org--tiny"
    names = [*(path.name for path in (repository / "snapshots" / COMMIT).iterdir()), ".gitattributes"]
    entry = _tree_cache.TreeCacheEntry(size=1, blob_id="0" * 40)
    _tree_cache.write_tree_cache(str(repository), COMMIT, dict.fromkeys(names, entry))
    assert list((repository / "trees").iterdir())
    assert hub.from_hugging_face(name).name == COMMIT


def test_a_download_is_kept_under_the_name_that_was_asked_for(cache, monkeypatch):
    """Asked for by a commit, the client would not note which one the branch was, and find nothing offline."""
    asked = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "model_info", lambda *_, **options: asked.append(options["revision"])
    )
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda _, **options: asked.append(options["revision"]) or str(cache),
    )
    hub.from_hugging_face("hf://org/tiny")
    hub.from_hugging_face("hf://org/tiny@v1")
    assert asked == [None, None, "v1", "v1"]


def test_a_full_disk_is_not_called_a_network(cache, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", full)
    with pytest.raises(UserError, match=r"cannot be downloaded: No space left on device: model\.safetensors"):
        hub.from_hugging_face("hf://org/other")


def test_a_model_from_the_hub_computes_what_transformers_does(cache):
    ids = np.arange(40, dtype="int32")[None]
    backbone, _ = load_backbone("hf://org/tiny")
    hidden = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    logits = ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))
    expected = tiny_hugging_face.logits(tiny_hugging_face.reference(), ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


def test_a_token_is_never_part_of_an_error(cache, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    with pytest.raises(UserError) as caught:
        hub.from_hugging_face("hf://org/other")
    assert "secret" not in str(caught.value)


def test_no_code_and_no_pickle_is_asked_for():

    for name in (
        "modeling.py",
        "pytorch_model.bin",
        "model.pkl",
        "consolidated.00.pth",
        "original/x.safetensors",
    ):
        assert not any(fnmatch(name, pattern) for pattern in hub._HUGGING_FACE_FILES)


def test_presets_are_keras_hubs():
    assert hub.presets()["llama3.2_1b"].startswith("keras/llama3/keras/llama3.2_1b/")
    assert set(hub.presets()) == set(keras_hub.models.LlamaBackbone.presets)


@pytest.mark.parametrize("by_handle", [False, True])
def test_a_preset_downloaded_before_comes_from_kaggles_cache(tmp_path, monkeypatch, by_handle):
    """With Kaggle's version as its revision, and Meta's settings since it is known by name."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    folder = tmp_path / "models" / hub.presets()["llama3.2_1b"]
    tiny.backbone(tied=False).save_to_preset(str(folder))
    folder.with_name(f"{folder.name}.complete").touch()
    name = f"kaggle://{hub.presets()['llama3.2_1b']}" if by_handle else "llama3.2_1b"
    info = base_info(name)
    assert (info.name, info.source, info.revision) == (name, name, folder.name)
    assert info.licence == "llama3.2" and info.notice.startswith("Built with Llama.")
    assert info.architecture["layer_norm_epsilon"] == 1e-5
    assert info.architecture["rope_scaling"]["factor"] == 32.0
    assert str(tmp_path) not in repr(info)
