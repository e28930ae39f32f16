"""Preset folders written by keras-hub itself."""

import functools
import json

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
import tokenizers
from keras import ops

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import base_info, context_length, load_backbone
from keras_mtp.models.keras_hub_preset import KerasHubPreset
from tests import tiny, tiny_tokenizers
from tests.tiny_hugging_face import change_json

IDS = np.random.default_rng(1).integers(0, 700, (2, 40)).astype("int32")
SCALING = {
    "rope_max_wavelength": 500000,
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 100,
}


@functools.cache
def llama_3_reference() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level("llama-bpe"))


def llama_3_tokenizer() -> keras_hub.models.Llama3Tokenizer:
    """With ids left out between the vocabulary and the last special tokens, as in the published presets."""
    content = json.loads(llama_3_reference().to_str())
    vocabulary = content["model"]["vocab"] | {"<|start_header_id|>": 750, "<|end_header_id|>": 751}
    merges = [" ".join(merge) for merge in content["model"]["merges"]]
    return keras_hub.models.Llama3Tokenizer(vocabulary=vocabulary, merges=merges)


def save(folder, *, tied=True, tokenizer=llama_3_tokenizer, **config) -> keras.Model:
    backbone = tiny.backbone(tied=tied, vocabulary_size=760, **config)
    backbone.save_to_preset(str(folder))
    tokenizer().save_to_preset(str(folder))
    return backbone


def logits(backbone) -> np.ndarray:
    hidden = backbone({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    return ops.convert_to_numpy(backbone.token_embedding(hidden, reverse=True))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "config", [{}, SCALING, {"layer_norm_epsilon": 1e-3}], ids=["plain", "scaled", "epsilon"]
)
def test_a_preset_computes_what_it_did_when_it_was_saved(tmp_path, tied, config):
    saved = save(tmp_path / "preset", tied=tied, **config)
    backbone, _ = load_backbone(str(tmp_path / "preset"))
    assert backbone.token_embedding.tie_weights == tied
    np.testing.assert_allclose(logits(backbone), logits(saved), rtol=0, atol=1e-5)


def test_a_sharded_preset_is_put_together(tmp_path):
    saved = save(tmp_path / "preset", tied=False)
    (tmp_path / "preset" / "model.weights.h5").unlink()
    saved.save_weights(tmp_path / "preset" / "model.weights.json", max_shard_size=1.1e-4)
    assert len(list((tmp_path / "preset").glob("*.h5"))) > 1
    backbone, _ = load_backbone(str(tmp_path / "preset"))
    np.testing.assert_allclose(logits(backbone), logits(saved), rtol=0, atol=1e-5)


def test_llama_3s_ids_are_those_of_the_tokenizer_that_the_vocabulary_came_from(tmp_path):
    save(tmp_path / "preset")
    _, tokenizer = load_backbone(str(tmp_path / "preset"))
    for text in tiny_tokenizers.texts():
        assert tokenizer.encode(text, special=True) == llama_3_reference().encode(text).ids, text
    assert tokenizer.encode("<|start_header_id|>a", special=True)[0] == 750
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.eos_ids) == (0, 1, (1, 2))
    assert tokenizer.add_bos and tokenizer.chat_template is None


def test_llama_2s_ids_are_sentencepieces(tmp_path):
    save(
        tmp_path / "preset",
        tokenizer=lambda: keras_hub.models.LlamaTokenizer(proto=tiny_tokenizers.sentencepiece_model()),
    )
    _, tokenizer = load_backbone(str(tmp_path / "preset"))
    reference = sentencepiece.SentencePieceProcessor(model_proto=tiny_tokenizers.sentencepiece_model())
    for text in tiny_tokenizers.texts():
        assert tokenizer.encode(text) == reference.encode(text), text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)


def test_upstream_tokenizer_still_cuts_nothing():
    """Once keras-hub's ids are right, its own tokenizer could be used."""
    text = "Hello world 12345"
    assert list(llama_3_tokenizer()(text)) != llama_3_reference().encode(text).ids


@pytest.mark.parametrize(
    ("preset", "factor", "wavelength"),
    [
        ("llama3_8b_en", None, 500000.0),
        ("llama3.1_instruct_8b", 8.0, 500000.0),
        ("llama3.2_1b", 32.0, 500000.0),
        ("llama2_7b_en", None, 10000.0),
    ],
)
def test_a_published_preset_has_metas_settings_whatever_the_converter_left(
    tmp_path, preset, factor, wavelength
):
    save(tmp_path / "preset", layer_norm_epsilon=1e-6)
    source = KerasHubPreset(tmp_path / "preset", preset)
    assert (source.sizes.layer_norm_epsilon, source.sizes.rope_wavelength) == (1e-5, wavelength)
    assert (source.sizes.rope_scaling and source.sizes.rope_scaling.factor) == factor
    assert source.licence.name == preset.partition("_")[0]
    assert "Llama" in source.licence.notice


def test_every_published_llama_has_its_settings(tmp_path):
    save(tmp_path / "preset")
    for preset in keras_hub.models.LlamaBackbone.presets:
        assert KerasHubPreset(tmp_path / "preset", preset).sizes.layer_norm_epsilon == 1e-5


def test_base_info_needs_no_weights(tmp_path):
    save(tmp_path / "preset")
    info = base_info(str(tmp_path / "preset"))
    assert (info.name, info.licence, info.notice) == ("preset", "unknown", None)
    assert info.architecture["tied"] and len(info.sha256) == 64
    assert context_length(str(tmp_path / "preset")) is None  # it does not say


def _without_a_tensor(folder) -> None:
    import h5py

    with h5py.File(folder / "model.weights.h5", "a") as file:
        del file["layers/llama_layer_norm/vars/0"]


DAMAGE = {
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    "no merges": (lambda f: (f / "assets/tokenizer/merges.txt").unlink(), "merges.txt must be a file"),
    "other backbone": (
        lambda f: change_json(f / "config.json", class_name="GemmaBackbone"),
        "must be LlamaBackbone",
    ),
    "no weights": (lambda f: (f / "model.weights.h5").unlink(), "it has no model.weights.h5"),
    "cut short": (
        lambda f: (f / "model.weights.h5").write_bytes(b"\x89HDF\r\n\x1a\n"),
        "is damaged or cut short",
    ),
    "a tensor is missing": (_without_a_tensor, "its weights are 28 tensors, which do not make 3 layers"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_preset_is_refused(tmp_path, case):
    damage, message = DAMAGE[case]
    save(tmp_path / "preset")
    damage(tmp_path / "preset")
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path / "preset"))


def test_a_quantised_preset_is_refused(tmp_path):
    save(tmp_path / "preset")
    content = json.loads((tmp_path / "preset" / "config.json").read_text())
    content["config"]["dtype"] = {"class_name": "DTypePolicyMap", "config": {}}
    (tmp_path / "preset" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its weights are quantised"):
        load_backbone(str(tmp_path / "preset"))


CHANGES = {
    "more layers": ({"num_layers": 4}, "which do not make 4 layers"),
    "huge": ({"num_layers": 10**12}, "which do not make 1000000000000 layers"),
    "other width": ({"intermediate_dim": 50}, "does not fit"),
    "dropout": ({"dropout": 0.1}, "`dropout` must be 0"),
    "unknown setting": ({"sliding_window": 128}, "`sliding_window` = 128 is not supported"),
    "odd heads": ({"num_query_heads": 5}, "do not divide evenly"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_config_that_does_not_fit_is_refused(tmp_path, case):
    changes, message = CHANGES[case]
    save(tmp_path / "preset")
    content = json.loads((tmp_path / "preset" / "config.json").read_text())
    content["config"] |= changes
    (tmp_path / "preset" / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        load_backbone(str(tmp_path / "preset"))
