"""Random Llamas saved by transformers, loaded here, compared by their logits."""

import json
import shutil

import keras
import numpy as np
import pytest
import torch
from keras import ops
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import base_info, context_length, load_backbone
from tests import tiny_hugging_face as tiny

IDS = np.random.default_rng(1).integers(0, 700, (2, 200)).astype("int32")


def our_logits(path) -> np.ndarray:
    backbone, _tokenizer = load_backbone(str(path))
    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    return ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))


def assert_same_logits(path, model) -> None:
    expected = tiny.logits(model, IDS)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(our_logits(path), expected, rtol=0, atol=1e-5)


LLAMA_3 = {"rope_theta": 100000.0, **tiny.LLAMA_3_SCALING}
LINEAR = {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.5}
ODD_SCALING = LLAMA_3 | {
    "low_freq_factor": 2,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 500,
}
MODELS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "all heads": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "small epsilon": {"rms_norm_eps": 1e-6},
    "large epsilon": {"rms_norm_eps": 1e-3},
    "old rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "llama 3 scaling, tied": {"rope_parameters": LLAMA_3, "tie_word_embeddings": True},
    "llama 3 scaling, untied": {"rope_parameters": LLAMA_3},
    "odd scaling": {"rope_parameters": ODD_SCALING},
    "linear scaling": {"rope_parameters": LINEAR},
}


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("style", ["transformers 5", "transformers 4"])
def test_a_saved_llama_computes_what_transformers_does(tmp_path, case, style):
    model = tiny.reference(**MODELS[case])
    tiny.save(model, tmp_path / "model", config=_older_style(model) if style == "transformers 4" else {})
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert ("rope_parameters" in config) == (style == "transformers 5")
    assert_same_logits(tmp_path / "model", model)


def _older_style(model) -> dict:
    """As transformers 4 wrote it: the base of the rotation at the top, its scaling beside it."""
    rope = dict(model.config.rope_parameters)
    theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
    scaling = {} if kind == "default" else {"rope_scaling": {"type": kind, "rope_type": kind, **rope}}
    return {"rope_parameters": None, "rope_theta": theta, "torch_dtype": "float32", "dtype": None, **scaling}


@pytest.mark.parametrize("tied", [True, False])
def test_a_sharded_llama_is_put_together(tmp_path, tied):
    model = tiny.reference(tie_word_embeddings=tied)
    folder = tiny.save(model, tmp_path / "model", max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 3
    assert_same_logits(folder, model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "60KB"}], ids=["one file", "sharded"])
def test_half_precision_is_read_as_it_is_stored(tmp_path, dtype, shards):
    model = tiny.reference().to(dtype)
    folder = tiny.save(model, tmp_path / "model", **shards)
    assert load_file(next(folder.glob("*.safetensors"))).popitem()[1].dtype == dtype
    assert_same_logits(folder, LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32))


def test_scaling_and_epsilon_show_in_these_logits():
    plain = tiny.logits(tiny.reference(), IDS)
    for change in ({"rope_parameters": LLAMA_3}, {"rope_parameters": LINEAR}, {"rms_norm_eps": 1e-6}):
        assert np.abs(tiny.logits(tiny.reference(**change), IDS) - plain).max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_the_dtype_is_any_policy_of_keras(tmp_path, dtype):
    folder = tiny.save(tiny.reference(), tmp_path / "model")
    backbone, _ = load_backbone(str(folder), dtype=dtype)
    stored = {keras.backend.standardize_dtype(variable.dtype) for variable in backbone.variables}
    assert stored == {"bfloat16" if dtype == "bfloat16" else "float32"}


def test_old_buffers_and_a_copy_of_the_embedding_are_left_aside(tmp_path):
    """Llama 2's first files hold `inv_freq`, and some tied models their unembedding once more."""
    model = tiny.reference(tie_word_embeddings=True)
    folder = tiny.save(model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16, device="cpu")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert_same_logits(folder, model)
    tensors["lm_head.weight"] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"tie_word_embeddings. is true, but lm_head.weight is another matrix"
    ):
        load_backbone(str(folder))


def test_base_info_describes_the_folder_and_not_the_machine(tmp_path):
    model = tiny.reference(tie_word_embeddings=True, max_position_embeddings=512)
    folder = tiny.save(model, tmp_path / "tiny-llama")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: llama3.2\n---\n# Tiny\n")
    (folder / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT")
    info = base_info(str(folder))
    assert (info.name, info.source, info.licence, info.revision) == (
        "tiny-llama",
        "tiny-llama",
        "llama3.2",
        None,
    )
    assert info.licence_text == "LLAMA 3.2 COMMUNITY LICENSE AGREEMENT"
    assert info.notice.startswith("Built with Llama.")
    assert info.architecture["hidden_dim"] == 64 and info.architecture["tied"]
    assert str(tmp_path) not in repr(info)
    assert context_length(str(folder)) == 512


def test_the_hash_is_of_what_decides_the_model(tmp_path):
    folder = tiny.save(tiny.reference(), tmp_path / "a", max_shard_size="60KB")
    first = base_info(str(folder)).sha256
    (folder / "README.md").write_text("changed")
    shutil.copytree(folder, tmp_path / "b")
    assert base_info(str(tmp_path / "b")).sha256 == first
    for name in ("config.json", "tokenizer.json", "model-00001-of-00008.safetensors"):
        other = tmp_path / name
        shutil.copytree(folder, other)
        path = next(iter(other.glob(name.replace("00008", "*"))))
        if path.suffix == ".json":
            path.write_text(path.read_text() + "\n")
        else:
            save_file({key: value + 1 for key, value in load_file(path).items()}, path)
        assert base_info(str(other)).sha256 != first


def test_a_folder_of_the_hubs_cache_may_hold_links_to_its_blobs(tmp_path):
    """And its name is the revision."""
    model = tiny.reference()
    repository = tmp_path / "models--org--name"
    folder = tiny.save(model, repository / "snapshots" / "0123abcd")
    (repository / "blobs").mkdir()
    for path in list(folder.iterdir()):
        path.rename(repository / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    assert_same_logits(folder, model)
    assert base_info(str(folder)).revision == "0123abcd"
