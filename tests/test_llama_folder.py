"""A backbone in Hugging Face's files: transformers reads the model it was read from, and so do we."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from keras_mtp import MTPCausalLM
from keras_mtp.export.llama_folder import write_llama
from keras_mtp.models.backbone import context_length, load_backbone
from keras_mtp.models.llama import sizes_of
from tests import tiny, tiny_hugging_face
from tests.tiny_gguf import write_tiny_gguf

IDS = tiny.token_ids(2, 40)


def _loaded(folder, **options) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"rope_scaling": tiny_hugging_face.LLAMA_3_SCALING | {"original_max_position_embeddings": 16}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ],
)
def test_the_way_back(tmp_path, config):
    theirs = tiny_hugging_face.reference(max_position_embeddings=333, **config)
    original = tiny_hugging_face.save(theirs, tmp_path / "original")
    backbone, tokenizer = load_backbone(str(original))
    folder = tmp_path / "written"
    folder.mkdir()
    write_llama(backbone, folder, tokenizer=tokenizer, context_length=context_length(str(original)))
    again = _loaded(folder)
    np.testing.assert_array_equal(tiny_hugging_face.logits(again, IDS), tiny_hugging_face.logits(theirs, IDS))
    for key in ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "rms_norm_eps"):
        found, want = getattr(again.config, key), getattr(theirs.config, key)
        assert found == (tokenizer.pad_id if key == "pad_token_id" else want), key
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((original / name).read_bytes())
    ours, _ = load_backbone(str(folder))
    assert sizes_of(ours) == sizes_of(backbone)
    for mine, other in zip(tiny.arrays(ours.weights), tiny.arrays(backbone.weights), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_gguf_files_and_bfloat16(tmp_path):
    """Also a rotary scaling that GGUF files store as numbers by frequency."""
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, tied=False)
    backbone, _ = load_backbone(str(path), dtype="bfloat16")
    write_llama(backbone, tmp_path)
    theirs = _loaded(tmp_path, dtype="auto")
    assert theirs.dtype == torch.bfloat16
    expected = tiny.forward(MTPCausalLM(backbone))(IDS)["head_1"].astype("float32")
    # Rounded at other places, which moves logits by a hundredth of the largest.
    np.testing.assert_allclose(
        tiny_hugging_face.logits(theirs, IDS), expected, atol=0.05 * np.abs(expected).max()
    )
    stored = theirs.lm_head.weight.detach().float().numpy()
    table = tiny.arrays([backbone.token_embedding.reverse_embeddings])[0].astype("float32")
    np.testing.assert_array_equal(stored, table.T)


def test_lora_is_merged_unless_it_is_switched_off(tmp_path):
    theirs = tiny_hugging_face.reference()
    backbone, _ = load_backbone(str(tiny_hugging_face.save(theirs, tmp_path / "base")))
    model = MTPCausalLM(backbone, lora_rank=2, lora_alpha=3.0, lora_targets=("query", "output", "down"))
    rng = np.random.default_rng(1)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    for name in ("with", "without"):
        (tmp_path / name).mkdir()
    write_llama(backbone, tmp_path / "with")
    with model.lora.switched_off():
        write_llama(backbone, tmp_path / "without")
    plain, expected = tiny_hugging_face.logits(theirs, IDS), tiny.forward(model)(IDS)["head_1"]
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
    found = tiny_hugging_face.logits(_loaded(tmp_path / "with"), IDS)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(plain).max())
    np.testing.assert_array_equal(tiny_hugging_face.logits(_loaded(tmp_path / "without"), IDS), plain)
    model.lora.merge()
    np.testing.assert_allclose(tiny.forward(model)(IDS)["head_1"], expected, atol=1e-5 * np.abs(plain).max())


@pytest.mark.any_backend
def test_large_models_go_into_several_files(tmp_path):
    theirs = tiny_hugging_face.reference()
    backbone, tokenizer = load_backbone(str(tiny_hugging_face.save(theirs, tmp_path / "base")))
    folder = tmp_path / "written"
    folder.mkdir()
    write_llama(backbone, folder, tokenizer=tokenizer, shard_bytes=100_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 2
    assert {*index["weight_map"].values()} == {*files}
    bytes_of_tensors = 0
    for name in files:
        with safe_open(folder / name, framework="numpy") as file:
            sizes = [file.get_tensor(key).nbytes for key in file.keys()]  # noqa: SIM118 (not a dict)
            assert sum(sizes) <= 100_000 or len(sizes) == 1
            assert all(index["weight_map"][key] == name for key in file.keys())  # noqa: SIM118
        bytes_of_tensors += sum(sizes)
    assert index["metadata"]["total_size"] == bytes_of_tensors
    np.testing.assert_array_equal(
        tiny_hugging_face.logits(_loaded(folder), IDS), tiny_hugging_face.logits(theirs, IDS)
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "base" / name).read_bytes())
    ours, _ = load_backbone(str(folder))
    for mine, other in zip(tiny.arrays(ours.weights), tiny.arrays(backbone.weights), strict=True):
        np.testing.assert_array_equal(mine, other)
