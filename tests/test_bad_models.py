"""Every way a model can be wrong that we thought of: each one clear line that says what, where and what to do.

A case is what is done to a good model, and words that the error must hold.
"""

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from keras_mtp.errors import UserError
from keras_mtp.models.backbone import base_info, load_backbone
from tests import tiny_hugging_face
from tests.tiny_gguf import write_tiny_gguf
from tests.tiny_hugging_face import change_json

Damage = Callable[[Path], object]


def assert_refused(path: Path | str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_backbone(str(path))
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?")) and len(message) < 500
    with contextlib.suppress(UserError):  # what only loading finds out is no business of `base_info`
        base_info(str(path))


# === Names ===


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("smollm2-135", "Did you mean smollm2-135m?"),
        ("llama3.2-1b", r"Did you mean llama3.2_1b\?"),
        ("gpt5", "Check the spelling and the folder"),
        ("meta-llama/Llama-3.2-1B", r"Did you mean hf://meta-llama/Llama-3\.2-1B\?"),
        ("hf://no/such", "cannot be reached and it is not in the cache"),
        ("hf://no/such@main", "cannot be reached and it is not in the cache"),
        ("hf://noname", "must be hf://org/name or hf://org/name@revision"),
        ("hf://../../etc/passwd", "must be hf://org/name or hf://org/name@revision"),
        ("llama3.2_1b", "cannot be downloaded: its hub cannot be reached"),
        ("llama3_8b_en_int8", r"quantised to int8. Use llama3_8b_en\."),
        ("kaggle://keras/llama3/keras/llama3.2_1b/1", "cannot be downloaded"),
        ("kaggle://nonsense", "cannot be downloaded"),
    ],
)
def test_a_name_that_leads_nowhere(name, words, monkeypatch, tmp_path):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    monkeypatch.setenv("KAGGLE_API_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert_refused(name, words)


def test_a_path_with_a_spelling_mistake(tmp_path):
    write_tiny_gguf(tmp_path / "llama.gguf", num_layers=1)
    assert_refused(tmp_path / "lama.gguf", r"Did you mean .*llama.gguf\?")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.safetensors", b"", "must be smollm2-135m, a .gguf file, a model's folder"),
        ("model.gguf", b"", "is not a whole GGUF file"),
        ("model.gguf", b"GGUF", "it ends too early"),
        ("model.gguf", b"PK\x03\x04 a zip archive", "does not begin with GGUF"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "its version is 99"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "it ends too early"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "it ends too early"),
        ("model.gguf", b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "it ends too early"),
    ],
)
def test_a_file_that_is_no_model(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, words)


# === GGUF files ===

GGUF_METADATA: dict[str, tuple[dict, str]] = {
    "no Llama": (
        {"general.architecture": "gemma2"},
        "`general.architecture` must be 'llama', but is 'gemma2'",
    ),
    "experts": ({"llama.expert_count": 8}, "`llama.expert_count` = 8 is not supported"),
    "sliding window": ({"llama.attention.sliding_window": 9}, "sliding_window` = 9 is not supported"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "`llama.rope.scaling.type` = 'yarn' is not supported"),
    "a part of several": ({"split.count": 4}, "one part of 4; join them"),
    "negative size": ({"llama.block_count": 0}, "`llama.block_count` must be at least 1"),
    "huge count": ({"llama.block_count": 2**31}, "too few for 2147483648 layers"),
    "epsilon that is no number": (
        {"llama.attention.layer_norm_rms_epsilon": float("nan")},
        "must be numbers above 0",
    ),
    "rope without end": ({"llama.rope.freq_base": float("inf")}, "must be numbers above 0"),
    "size as text": ({"llama.embedding_length": "32"}, "must be of type int"),
    "heads": ({"llama.attention.head_count": 3}, "do not divide evenly"),
    "wide heads": ({"llama.attention.key_length": 16}, "must be 8, the hidden units per head"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "it has no `tokenizer.ggml.model`"),
    "no tokens": ({"tokenizer.ggml.tokens": None}, "it has no `tokenizer.ggml.tokens`"),
    "unknown tokenizer": ({"tokenizer.ggml.model": "t5"}, "must be 'gpt2' or 'llama', but is 't5'"),
    "unknown cut": ({"tokenizer.ggml.pre": "deepseek-llm"}, "Received: 'deepseek-llm'"),
    "no cut": ({"tokenizer.ggml.pre": None}, "it has no `tokenizer.ggml.pre`"),
    "no end": ({"tokenizer.ggml.eos_token_id": None}, "it has no `tokenizer.ggml.eos_token_id`"),
    "broken template": ({"tokenizer.chat_template": "{% if %}"}, "chat template is not valid Jinja2"),
}


@pytest.mark.parametrize("case", GGUF_METADATA)
def test_gguf_metadata(tmp_path, case):
    metadata, words = GGUF_METADATA[case]
    write_tiny_gguf(tmp_path / "tiny.gguf", metadata=metadata)
    assert_refused(tmp_path / "tiny.gguf", words)


GGUF_TENSORS: dict[str, tuple[dict, str]] = {
    "missing": ({"blk.0.attn_k.weight": None}, "1 tensors are missing, the first is blk.0.attn_k.weight"),
    "bias": (
        {"blk.0.attn_q.bias": np.zeros(32, "float32")},
        "no part of a plain Llama, the first is blk.0.attn_q.bias",
    ),
    "shape": (
        {"blk.0.ffn_up.weight": np.zeros((9, 32), "float32")},
        r"must have shape \(64, 32\), but has \(9, 32\)",
    ),
    "not a number": (
        {"output_norm.weight": np.full(32, np.nan, "float32")},
        "output_norm.weight holds values that",
    ),
    "other rope": ({"rope_freqs.weight": np.array([1, 2, 3, 4], "float32")}, "is not Llama 3.1's scaling"),
    "rope of another size": (
        {"rope_freqs.weight": np.ones(7, "float32")},
        "one divisor for every rotary frequency",
    ),
}


@pytest.mark.parametrize("case", GGUF_TENSORS)
def test_gguf_tensors(tmp_path, case):
    tensors, words = GGUF_TENSORS[case]
    write_tiny_gguf(tmp_path / "tiny.gguf", tensors=tensors)
    assert_refused(tmp_path / "tiny.gguf", words)


def test_a_gguf_file_cut_short(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[: len(content) // 2])
    assert_refused(tmp_path / "tiny.gguf", "its last bytes are missing. Download it again")


# === Hugging Face folders ===


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[bool, Path]:
    """A folder with one file of weights, and one with several."""
    folder = tmp_path_factory.mktemp("good")
    model = tiny_hugging_face.reference(num_hidden_layers=1, hidden_size=16, intermediate_size=24)
    return {
        sharded: tiny_hugging_face.save(
            model, folder / str(sharded), max_shard_size="10KB" if sharded else "1GB"
        )
        for sharded in (False, True)
    }


def _config(**values) -> Damage:
    return lambda folder: change_json(folder / "config.json", **values)


def _rope(**values) -> Damage:
    return _config(rope_parameters={"rope_type": "default", "rope_theta": 1e4} | values)


def _write(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def _remove(name: str) -> Damage:
    return lambda folder: next(folder.glob(name)).unlink()


CONFIG: dict[str, tuple[Damage, str]] = {
    "no config": (_remove("config.json"), "must hold a config.json"),
    "not JSON": (_write("config.json", "{'model_type': 'llama'}"), "config.json is not valid JSON"),
    "empty": (_write("config.json", ""), "config.json is not valid JSON"),
    "a list": (_write("config.json", "[]"), "must hold a JSON object, but holds a list"),
    "not text": (_write("config.json", b"\xff\xfe\x00"), "must be text in UTF-8"),
    "nested without end": (_write("config.json", '{"a":' * 100_000), "config.json is not valid JSON"),
    "oversized": (_write("config.json", "{" + " " * (1 << 20) + "}"), "must have at most 1,048,576 bytes"),
    "NaN": (
        _write("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}'),
        "NaN is no number in JSON",
    ),
    "a key twice": (
        _write("config.json", '{"vocab_size": 1, "vocab_size": 2}'),
        "`vocab_size` stands there twice",
    ),
    "huge number": (
        _write("config.json", '{"vocab_size": ' + "9" * 5000 + "}"),
        "config.json is not valid JSON",
    ),
    "no kind": (_config(model_type=None), "it has no `model_type`"),
    "other kind": (_config(model_type="qwen2"), "`model_type` must be 'llama', but is 'qwen2'"),
    "other head": (_config(architectures=["LlamaForSequenceClassification"]), "`architectures` must be"),
    "own code": (_config(auto_map={"AutoModel": "evil.py"}), "`auto_map` = .* is not supported"),
    "activation": (_config(hidden_act="gelu"), "`hidden_act` must be 'silu', but is 'gelu'"),
    "attention bias": (_config(attention_bias=True), "`attention_bias` must be False, but is True"),
    "mlp bias": (_config(mlp_bias=True), "`mlp_bias` must be False, but is True"),
    "wide heads": (_config(head_dim=32), "`head_dim` must be 8, the hidden units per head, but is 32"),
    "sliding window": (_config(sliding_window=128), "`sliding_window` = 128 is not supported"),
    "quantised": (_config(quantization_config={"bits": 4}), "`quantization_config` = .* is not supported"),
    "multiplier": (_config(residual_multiplier=0.2), "`residual_multiplier` = 0.2 is not supported"),
    "no size": (_config(hidden_size=None), "it has no `hidden_size`"),
    "negative size": (_config(hidden_size=-16), "`hidden_size` must be at least 1, but is -16"),
    "size as text": (_config(hidden_size="16"), "`hidden_size` must be of type int, but is '16'"),
    "size as yes": (_config(num_hidden_layers=True), "`num_hidden_layers` must be of type int, but is True"),
    "fraction": (_config(num_hidden_layers=1.5), "`num_hidden_layers` must be of type int, but is 1.5"),
    "huge count": (_config(num_hidden_layers=10**15), "tensors are too few for 1000000000000000 layers"),
    "huge vocabulary": (_config(vocab_size=10**12), r"must have shape \(1000000000000, 16\)"),
    "heads": (_config(num_attention_heads=3), "do not divide evenly"),
    "key-value heads": (_config(num_attention_heads=8, num_key_value_heads=3), "do not divide evenly"),
    "no epsilon": (_config(rms_norm_eps=None), "it has no `rms_norm_eps`"),
    "epsilon of 0": (_config(rms_norm_eps=0), "must be numbers above 0"),
    "yarn": (_rope(rope_type="yarn", factor=2.0), "`rope_type` = 'yarn' is not supported"),
    "dynamic": (_rope(rope_type="dynamic", factor=2.0), "`rope_type` = 'dynamic' is not supported"),
    "no factor": (_rope(rope_type="linear"), "it has no `factor`"),
    "factor without type": (_rope(factor=8.0), "`factor` = 8.0 is not supported"),
    "factor of 0": (_rope(rope_type="linear", factor=0.0), "must be numbers above 0"),
    "partial rotation": (_rope(partial_rotary_factor=0.5), "`partial_rotary_factor` must be 1.0, but is 0.5"),
    "two bases": (_config(rope_theta=5.0), "`rope_theta` is 5.0 in one place and 100000.0 in another"),
    "base of 0": (_rope(rope_theta=0.0), "must be numbers above 0"),
    "two scalings": (_config(rope_scaling={"type": "linear", "factor": 2.0}), "say different things"),
    "two types": (_rope(type="linear", factor=2.0), "`rope_type` = 'default' and `type` = 'linear'"),
    "turned around": (
        _rope(**tiny_hugging_face.LLAMA_3_SCALING | {"low_freq_factor": 8.0}),
        "high frequency factor must be above the low one",
    ),
    "tied but not": (_config(tie_word_embeddings=True), "lm_head.weight is another matrix"),
}


@pytest.mark.parametrize("case", CONFIG)
def test_a_config(tmp_path, good, case):
    damage, words = CONFIG[case]
    shutil.copytree(good[False], tmp_path / "tiny")
    damage(tmp_path / "tiny")
    assert_refused(tmp_path / "tiny", words)


def _tensors(change: Callable[[dict], object]) -> Damage:
    """Changes the tensors of the one file of weights."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _cut(bytes_left: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: int(len(content) * bytes_left)])

    return damage


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


NORM = "model.norm.weight"
WEIGHTS: dict[str, tuple[Damage, str]] = {
    "no weights": (_remove("model.safetensors"), "it has no model.safetensors"),
    "pickled": (_pickled, "only pytorch_model.bin: pickled weights can run code"),
    "an adapter": (_adapter, "only an adapter; merge it into its base model first"),
    "empty": (_cut(0), "model.safetensors is damaged or cut short"),
    "half": (_cut(0.5), "model.safetensors is damaged or cut short"),
    "most": (_cut(0.999), "model.safetensors is damaged or cut short"),
    "header too long": (
        _write("model.safetensors", b"\xff" * 64),
        "model.safetensors is damaged or cut short",
    ),
    "header no JSON": (
        _write("model.safetensors", struct.pack("<Q", 4) + b"{{{{"),
        "model.safetensors, its header, is not valid JSON",
    ),
    "missing": (_tensors(lambda t: t.pop(NORM)), f"1 tensors are missing, the first is {NORM}"),
    "surplus": (
        _tensors(lambda t: t.update(extra=torch.ones(1))),
        "no part of a plain Llama, the first is extra",
    ),
    "bias": (
        _tensors(lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)})),
        "the first is model.layers.0.self_attn.q_proj.bias",
    ),
    "shape": (
        _tensors(lambda t: t.update({NORM: torch.ones(17)})),
        r"must have shape \(16,\), but has \(17,\)",
    ),
    "transposed": (
        _tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.contiguous()})),
        r"lm_head.weight must have shape \(700, 16\), but has \(16, 700\)",
    ),
    "whole numbers": (_tensors(lambda t: t.update({NORM: torch.ones(16).int()})), f"{NORM} is stored as I32"),
    "doubles": (_tensors(lambda t: t.update({NORM: torch.ones(16).double()})), f"{NORM} is stored as F64"),
    "eight bits": (
        _tensors(lambda t: t.update({NORM: torch.ones(16).to(torch.float8_e4m3fn)})),
        f"{NORM} is stored as F8_E4M3",
    ),
    "not a number": (
        _tensors(lambda t: t[NORM].fill_(float("nan"))),
        "output_norm.weight holds values that are not",
    ),
    "an index too": (_write("model.safetensors.index.json", "{}"), "holds both model.safetensors and"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(tmp_path, good, case):
    damage, words = WEIGHTS[case]
    shutil.copytree(good[False], tmp_path / "tiny")
    damage(tmp_path / "tiny")
    assert_refused(tmp_path / "tiny", words)


def _index(change: Callable[[dict[str, str]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        change(content["weight_map"])
        path.write_text(json.dumps(content))

    return damage


def _link_outside(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    os.symlink(outside, shard)


def _tensor_in_two_files(folder: Path) -> None:
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(second) | load_file(first), second)


SHARDS: dict[str, tuple[Damage, str]] = {
    "missing shard": (_remove("model-00002-of-*"), "model-00002-of-.* is missing; download it again"),
    "path upwards": (
        _index(lambda m: m.update({NORM: "../outside.safetensors"})),
        "no safetensors file of this folder",
    ),
    "absolute path": (
        _index(lambda m: m.update({NORM: "/etc/passwd"})),
        "'/etc/passwd', which is no safetensors",
    ),
    "other kind of file": (
        _index(lambda m: m.update({NORM: "config.json"})),
        "'config.json', which is no safetensors",
    ),
    "no name": (_index(lambda m: m.update({NORM: ""})), "names '', which is no safetensors file"),
    "number for a name": (_index(lambda m: m.update({NORM: 7})), "has no `weight_map` from tensor to file"),
    "link that leads out": (_link_outside, "is a link that leads out of the folder"),
    "promise not kept": (
        _index(lambda m: m.update({"model.extra.weight": m[NORM]})),
        "promises tensor model.extra.weight, which",
    ),
    "tensor not listed": (
        _index(lambda m: m.pop(NORM)),
        f"tensor {NORM} is not in model.safetensors.index.json",
    ),
    "tensor in two files": (_tensor_in_two_files, "is in two files"),
    "no map": (_write("model.safetensors.index.json", "{}"), "has no `weight_map` from tensor to file"),
    "index no JSON": (_write("model.safetensors.index.json", "weight_map"), "index.json is not valid JSON"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards(tmp_path, good, case):
    damage, words = SHARDS[case]
    shutil.copytree(good[True], tmp_path / "tiny")
    damage(tmp_path / "tiny")
    assert_refused(tmp_path / "tiny", words)


def _tokenizer_config(**values) -> Damage:
    return lambda folder: change_json(folder / "tokenizer_config.json", **values)


def _no_end(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token=None)
    change_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()


def _only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")


def _fewer_tokens(folder: Path) -> None:
    _tensors(lambda t: t.update({name: t[name][:600].clone() for name in t if t[name].shape[0] == 700}))(
        folder
    )
    change_json(folder / "config.json", vocab_size=600)


TOKENIZER: dict[str, tuple[Damage, str]] = {
    "no tokenizer": (_remove("tokenizer.json"), "tiny has no tokenizer.json"),
    "only tokenizer.model": (_only_sentencepiece, "only tokenizer.model, which does not say all"),
    "not JSON": (_write("tokenizer.json", "no"), "tokenizer.json is not valid JSON"),
    "another object": (_write("tokenizer.json", "{}"), "tokenizer.json is not a tokenizer"),
    "ids beyond the model": (_fewer_tokens, "has the id 699, but the model's vocabulary ends at 599"),
    "config not JSON": (_write("tokenizer_config.json", "no"), "tokenizer_config.json is not valid JSON"),
    "unknown end": (
        _tokenizer_config(eos_token="<end>"),
        "`eos_token` is '<end>', which tokenizer.json does not have",
    ),
    "end as number": (_tokenizer_config(eos_token=2), "`eos_token` must be a token's text, but is 2"),
    "no end": (_no_end, "no file says which token ends a text"),
    "end beyond the vocabulary": (_config(eos_token_id=[2, 9999]), "which are not all tokens"),
    "broken template": (_write("chat_template.jinja", "{% for %}"), "chat template is not valid Jinja2"),
    "template as number": (
        lambda folder: (_remove("chat_template.jinja")(folder), _tokenizer_config(chat_template=7)(folder)),
        "`chat_template` must be a text, but is 7",
    ),
    "oversized template": (
        _write("chat_template.jinja", "x" * ((1 << 20) + 1)),
        "must have at most 1,048,576 bytes",
    ),
}


@pytest.mark.parametrize("case", TOKENIZER)
def test_a_tokenizer(tmp_path, good, case):
    damage, words = TOKENIZER[case]
    shutil.copytree(good[False], tmp_path / "tiny")
    damage(tmp_path / "tiny")
    assert_refused(tmp_path / "tiny", words)


def test_the_good_folders_are_good(good):
    for folder in good.values():
        load_backbone(str(folder))


def test_any_damaged_byte_of_a_header_is_refused_or_harmless(tmp_path, good):
    """Whatever a byte says, nothing but `UserError` comes out."""
    shutil.copytree(good[False], tmp_path / "tiny")
    path, rng, refused = tmp_path / "tiny" / "model.safetensors", np.random.default_rng(0), 0
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(1200)] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            base_info(str(tmp_path / "tiny"))
        except UserError:
            refused += 1
    assert refused > 100
