"""Hugging Face folders that are wrong, or that mean harm: each costs one line and exit code 2."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_mtp.models.backbone import base_info
from tests.malformed import (
    edit,
    folder_with,
    hugging_face,
    link,
    one_tensor,
    refused,
    safetensors_bytes,
    write,
)
from tools.fuzzing import samples

pytestmark = pytest.mark.any_backend

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DEEP = '{"a": ' * 100_000


def header(content, weights: int = 8, **options):
    """A folder whose weights have this header."""
    return hugging_face(write(WEIGHTS, safetensors_bytes(content, weights, **options)))


def raw(text: str):
    return header(text.encode())


def tensors(change):
    def apply(folder: Path) -> None:
        arrays = load_file(folder / WEIGHTS)
        change(arrays)
        save_file(arrays, folder / WEIGHTS)

    return hugging_face(apply)


DAMAGED = r"model\.safetensors is damaged or cut short"
NORM = "model.norm.weight"
SAFETENSORS = {
    "empty": (hugging_face(write(WEIGHTS, b"")), DAMAGED),
    "seven bytes": (hugging_face(write(WEIGHTS, b"\0" * 7)), DAMAGED),
    "no header": (hugging_face(write(WEIGHTS, b"\0" * 8)), "model.safetensors, its header, is not valid JSON"),
    "header of 2^63 bytes": (header({}, length=2**63), f"{DAMAGED}: its header claims 9,223,372,036,854,775,808 bytes"),
    "header of 2^64-1 bytes": (header({}, length=2**64 - 1), f"{DAMAGED}: its header claims 18,446,744"),
    "header of 100 MB": (header({}, length=100_000_000), f"{DAMAGED}: its header claims 100,000,000 bytes"),
    "header longer than the file": (header(one_tensor(), length=5000), f"{DAMAGED}: its header ends too early"),
    "header not UTF-8": (header(b'{"\xff": 1}'), f"{DAMAGED}: its header is not UTF-8"),
    "header a list": (header([]), "model.safetensors, its header, must hold a JSON object"),
    "header nested": (raw(DEEP), "model.safetensors, its header, is not valid JSON"),
    "tensor twice": (raw('{"x": {}, "x": {}}'), "its header, is not valid JSON: `x` stands there twice"),
    "NaN in the header": (raw('{"x": NaN}'), "NaN is no number in JSON"),
    "tensor a number": (header({"x": 1}), DAMAGED),
    "without a type": (header({"x": {"shape": [2], "data_offsets": [0, 8]}}), DAMAGED),
    "without a place": (header({"x": {"shape": [2], "dtype": "F32"}}), DAMAGED),
    "unknown type": (header(one_tensor(dtype="F31")), DAMAGED),
    "pickled object": (header(one_tensor(dtype="O")), DAMAGED),
    "whole numbers": (header(one_tensor(dtype="I32")), "tensor x is stored as I32; only BF16, F16, F32"),
    "booleans": (header(one_tensor(dtype="BOOL", shape=[8])), "tensor x is stored as BOOL"),
    "negative shape": (header(one_tensor(shape=[-2])), DAMAGED),
    "shape in letters": (header(one_tensor(shape="2")), DAMAGED),
    "shape of a half": (header(one_tensor(shape=[2.5])), DAMAGED),
    "shape of 2^62, 0 in 64 bits": (header(one_tensor(shape=[2**62])), DAMAGED),
    "shape of 2^32 times 2^32": (header(one_tensor(shape=[2**32, 2**32])), DAMAGED),
    "shape of 2^64": (header(one_tensor(shape=[2**64])), DAMAGED),
    "shape larger than its bytes": (header(one_tensor(shape=[3])), DAMAGED),
    "place beyond the end": (header(one_tensor(data_offsets=[8, 16])), DAMAGED),
    "place backwards": (header(one_tensor(data_offsets=[8, 0])), DAMAGED),
    "place negative": (header(one_tensor(data_offsets=[-8, 0])), DAMAGED),
    "place of three": (header(one_tensor(data_offsets=[0, 4, 8])), DAMAGED),
    "two in one place": (header(one_tensor() | {"y": one_tensor()["x"]}), DAMAGED),
    "a hole": (header(one_tensor(data_offsets=[8, 16]), weights=16), DAMAGED),
    "bytes that nobody owns": (header(one_tensor(), weights=64), DAMAGED),
    "metadata of numbers": (header(one_tensor() | {"__metadata__": {"a": 1}}), DAMAGED),
    "no tensors": (header({}, weights=0), "given cannot be loaded: 0 tensors are too few"),
    "weights not a number": (tensors(lambda t: t[NORM].fill(np.nan)), "output_norm.weight holds values that are not finite"),
    "weights infinite": (tensors(lambda t: t[NORM].fill(-np.inf)), "output_norm.weight holds values that are not finite"),
    "a name of 60,000 characters": (tensors(lambda t: t.update({"x" * 60_000: np.ones(1, "float32")})), "no part of a plain Llama"),
    "a name that steers the terminal": (tensors(lambda t: t.update({"\x1b[2J": np.ones(1, "float32")})), r"the first is \\x1b\[2J"),
    "scalar for a vector": (tensors(lambda t: t.update({NORM: np.array(1, "float32")})), r"must have shape \(8,\), but has \(\)"),
    "empty for a vector": (tensors(lambda t: t.update({NORM: np.ones(0, "float32")})), r"must have shape \(8,\), but has \(0,\)"),
    "a folder": (hugging_face(lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir())), "model.safetensors is missing"),
    "a pipe": (hugging_face(lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS))), "model.safetensors is missing"),
    "only pickles": (hugging_face(lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin")), "pickled weights can run code"),
    "only torch's own": (hugging_face(lambda f: (f / WEIGHTS).rename(f / "consolidated.00.pth")), "consolidated.00.pth: pickled weights"),
}  # fmt: skip


def shards(change):
    """A folder with weights in two files, and its index changed."""

    def prepare(folder: Path) -> None:
        samples.hugging_face(folder)
        arrays = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        parts = {
            "model-00001-of-00002.safetensors": sorted(arrays)[::2],
            "model-00002-of-00002.safetensors": sorted(arrays)[1::2],
        }
        for name, names in parts.items():
            save_file({each: arrays[each] for each in names}, folder / name)
        index = {"weight_map": {each: name for name, names in parts.items() for each in names}}
        (folder / INDEX).write_text(json.dumps(index))

    return folder_with(prepare, change)


def mapped(target, name: str = NORM):
    return shards(edit(INDEX, lambda index: index["weight_map"].update({name: target})))


NOT_OURS = "which is no safetensors file of this folder"
SHARD = "model-00001-of-00002.safetensors"
SHARDS = {
    "path upwards": (mapped("../outside/model.safetensors"), NOT_OURS),
    "path upwards and back": (mapped(f"../given/{SHARD}"), NOT_OURS),
    "absolute path": (mapped("/etc/passwd"), NOT_OURS),
    "a file of another kind": (mapped("/proc/self/environ"), NOT_OURS),
    "a subfolder": (mapped(f"sub/{SHARD}"), NOT_OURS),
    "backslashes": (mapped("..\\outside.safetensors"), "is missing; download it again"),
    "a zero byte": (mapped("x\0.safetensors"), r"x\\x00.safetensors is missing"),
    "dots": (mapped(".."), NOT_OURS),
    "a URL": (mapped("https://example.org/model.safetensors"), NOT_OURS),
    "a name of 60,000 characters": (mapped("x" * 60_000 + ".safetensors"), NOT_OURS),
    "a name that is a list": (mapped([SHARD]), "has no `weight_map` from tensor to file"),
    "a map that is a list": (shards(write(INDEX, '{"weight_map": []}')), "has no `weight_map` from tensor to file"),
    "an empty map": (shards(write(INDEX, '{"weight_map": {}}')), "given cannot be loaded"),
    "index nested": (shards(write(INDEX, DEEP)), "index.json is not valid JSON"),
    "index of 17 MB": (shards(write(INDEX, b" " * (17 << 20))), "index.json must have at most 16,777,216 bytes"),
    "index with a name twice": (shards(write(INDEX, '{"weight_map": {"x": "a", "x": "b"}}')), "`x` stands there twice"),
    "a shard that is a link": (shards(link(SHARD, "../outside/x.safetensors")), f"'{SHARD}' is a link that leads out"),
    "a shard that is itself": (shards(lambda f: ((f / SHARD).unlink(), (f / SHARD).symlink_to(SHARD))), "leads out of the folder"),
    "a shard that is a device": (shards(lambda f: ((f / SHARD).unlink(), (f / SHARD).symlink_to("/dev/zero"))), "leads out of the folder"),
}  # fmt: skip

LINKS = {
    name: (hugging_face(link(name, "../outside/secret")), f"given cannot be used: '{name}' is a link that leads out")
    for name in (TOKENIZER, TOKENIZER_CONFIG, "generation_config.json", "README.md", "LICENSE", "chat_template.jinja", CONFIG)
} | {
    "to a folder": (hugging_face(lambda f: (f / "assets").symlink_to(f.parent / "outside")), "'assets' is a link that leads out"),
    "through proc": (hugging_face(lambda f: (f / "LICENSE").symlink_to("/proc/self/environ")), "'LICENSE' is a link"),
}  # fmt: skip

CONFIGS = {
    "UTF-16": (hugging_face(write(CONFIG, "{}".encode("utf-16"))), "given/config.json must be text in UTF-8"),
    "nested": (hugging_face(write(CONFIG, DEEP)), "given/config.json is not valid JSON"),
    "nested 65 levels": (hugging_face(edit(CONFIG, lambda c: c.update(a=json.loads("[" * 65 + "]" * 65)))), "more than 64 levels deep"),
    "half a surrogate pair": (hugging_face(write(CONFIG, '{"a": "\\ud800"}')), "given/config.json holds half a surrogate pair"),
    "two MB": (hugging_face(write(CONFIG, b" " * (2 << 20))), "config.json must have at most 1,048,576 bytes"),
    "a folder": (hugging_face(lambda f: ((f / CONFIG).unlink(), (f / CONFIG).mkdir())), "given, which has none"),
    "a pipe": (hugging_face(lambda f: ((f / CONFIG).unlink(), os.mkfifo(f / CONFIG))), "given, which has none"),
    "code of its own": (
        hugging_face(edit(CONFIG, lambda c: c.update(auto_map={"AutoModelForCausalLM": "modeling.Evil"}))), "`auto_map` = .* not supported",
    ),
    "trust asked for": (hugging_face(edit(CONFIG, lambda c: c.update(trust_remote_code=True))), "`trust_remote_code` = True"),
    "other Llama": (hugging_face(edit(CONFIG, lambda c: c.update(architectures=["EvilForCausalLM"]))), "`architectures` must be"),
    "base of 1e999": (hugging_face(edit(CONFIG, lambda c: c.update(rope_theta=10**400))), "must be numbers above 0"),
    "scaling a text": (hugging_face(edit(CONFIG, lambda c: c.update(rope_scaling="linear"))), "`rope_scaling` must be of type dict"),
}  # fmt: skip


def tokenizer(**changes):
    return hugging_face(edit(TOKENIZER, lambda content: content.update(changes)))


def vocabulary(change):
    return hugging_face(edit(TOKENIZER, lambda content: change(content["model"])))


def split(pattern: str):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replaced(content: str, pattern: dict):
    return {"type": "Replace", "pattern": pattern, "content": content}


BOMB = {"type": "Sequence", "normalizers": [replaced("aaaaaaaaaa", {"String": "a"})] * 12}
NO_TOKENIZER = "given/tokenizer.json is not a tokenizer"
NO_JSON = "given/tokenizer.json is not valid JSON"
UNREADABLE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
TOKENIZERS = {
    "empty": (hugging_face(write(TOKENIZER, b"")), NO_JSON),
    "cut off": (hugging_face(write(TOKENIZER, b'{"version": "1.0", "mod')), NO_JSON),
    "nested": (hugging_face(write(TOKENIZER, DEEP)), NO_JSON),
    "UTF-16": (hugging_face(write(TOKENIZER, "{}".encode("utf-16"))), "tokenizer.json must be text in UTF-8"),
    "65 MB": (hugging_face(write(TOKENIZER, b" " * (65 << 20))), "tokenizer.json must have at most 67,108,864 bytes"),
    "a pipe": (hugging_face(lambda f: ((f / TOKENIZER).unlink(), os.mkfifo(f / TOKENIZER))), "given has no tokenizer.json"),
    "no model": (tokenizer(model=None), NO_TOKENIZER),
    "a pickle": (hugging_face(write(TOKENIZER, b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.")), "tokenizer.json must be text in UTF-8"),
    "a model of words": (
        tokenizer(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}), "a model of the type 'WordLevel' is not supported",
    ),
    "id beyond the model": (vocabulary(lambda m: m["vocab"].update(zz=700)), "has the id 700, but the model's vocabulary ends at 699"),
    "id of 2^32-1": (vocabulary(lambda m: m["vocab"].update(zz=2**32 - 1)), "has the id 4294967295"),
    "id of 2^32": (vocabulary(lambda m: m["vocab"].update(zz=2**32)), NO_TOKENIZER),
    "negative id": (vocabulary(lambda m: m["vocab"].update(zz=-1)), NO_TOKENIZER),
    "id of two tokens": (vocabulary(lambda m: m["vocab"].update(zz=5)), "two tokens of tokenizer.json have one id"),
    "no vocabulary": (tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]), "given/tokenizer_config.json cannot be used"),
    "merges of unknown tokens": (vocabulary(lambda m: m["merges"].append(["qq", "zz"])), f"{NO_TOKENIZER}: Token `qq` out of vocabulary"),
    "merges of three": (vocabulary(lambda m: m["merges"].append(["a", "b", "c"])), NO_TOKENIZER),
    "a word mark, which ended the process": (
        vocabulary(lambda m: m.update(continuing_subword_prefix="\0")), "`continuing_subword_prefix` = .* is not supported",
    ),
    "a word's end mark": (vocabulary(lambda m: m.update(end_of_word_suffix="</w>")), "`end_of_word_suffix` = '</w>' in given/tokenizer.json"),
    "merges dropped": (vocabulary(lambda m: m.update(dropout=0.5)), "drops merges at random"),
    "10^12 characters of one": (tokenizer(normalizer=BOMB), "its normalizer makes text more than 1000 times as long"),
    "10^12 characters of one, when read": (
        tokenizer(decoder=BOMB | {"type": "Sequence", "decoders": BOMB["normalizers"]}), "its decoder makes text more than 1000 times",
    ),
    "5,000 characters for one": (tokenizer(normalizer=replaced("x" * 5000, {"String": "a"})), "writes more than 100 characters for one"),
    "5,000 characters in front": (tokenizer(normalizer={"type": "Prepend", "prepend": "x" * 5000}), "writes more than 100 characters"),
    "characters by a table": (tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "gives up"),
    "pieces of 0 characters": (tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}), "'FixedLength' is not supported"),
    "expression of 5,000 characters": (tokenizer(pre_tokenizer=split("a" * 5000)), "has more than 4096 characters"),
    "expression that is none": (tokenizer(pre_tokenizer=split("(")), NO_TOKENIZER),
    "expression too deep": (tokenizer(pre_tokenizer=split("(" * 5000)), NO_TOKENIZER),
    "expression that never ends": (tokenizer(pre_tokenizer=split("(a+)+$"), normalizer=replaced("a" * 60 + "!", {"String": "a"})), "gives up"),
    "ends that are not there": (tokenizer(post_processor=UNREADABLE), "gives up"),
    "another role's token": (hugging_face(edit(TOKENIZER_CONFIG, lambda c: c.update(eos_token="zz"))), "`eos_token` is 'zz', which"),
    "ids that contradict": (
        hugging_face(edit(TOKENIZER_CONFIG, lambda c: c["added_tokens_decoder"].update({"0": {"content": "zz"}}))), "`added_tokens_decoder` has 'zz' as 0",
    ),
    "template without a name": (
        hugging_face(edit(TOKENIZER_CONFIG, lambda c: c.update(chat_template=[{"name": [], "template": 7}, {"name": "default", "template": 7}]))),
        "`chat_template` must be a text, but is 7",
    ),
    "template that loops": (
        hugging_face(write("chat_template.jinja", "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3)), "The chat template refuses .* loops too often",
    ),
    "template that reaches for Python": (
        hugging_face(write("chat_template.jinja", "{{ cycler.__init__.__globals__.os.popen('id').read() }}")), "The chat template refuses these messages",
    ),
    "template of a million characters": (hugging_face(write("chat_template.jinja", "x" * 1_000_000)), "at most 100000 characters"),
    "ends in letters": (hugging_face(write("generation_config.json", '{"eos_token_id": "2"}')), "`eos_token_id` in generation_config.json or config.json"),
    "ends beyond": (hugging_face(write("generation_config.json", '{"eos_token_id": 4294967296}')), "which are not all tokens"),
    "ends a list": (hugging_face(write("generation_config.json", "[2]")), "generation_config.json must hold a JSON object"),
    "special tokens a list": (hugging_face(write("special_tokens_map.json", "[]")), "special_tokens_map.json must hold a JSON object"),
}  # fmt: skip
CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "safetensors": SAFETENSORS, "shards": SHARDS, "links": LINKS, "config": CONFIGS, "tokenizer": TOKENIZERS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare, words = CASES[case]
    refused(prepare(tmp_path), tmp_path, words)


def test_what_the_cases_start_from_is_read(tmp_path):
    from keras_mtp.models.backbone import load_backbone

    load_backbone(hugging_face(lambda folder: None)(tmp_path)[2])
    shutil.rmtree(tmp_path / "given")
    shutil.rmtree(tmp_path / "outside")
    load_backbone(shards(lambda folder: None)(tmp_path)[2])


def test_the_hubs_cache_is_made_of_links_and_is_read(tmp_path):
    """snapshots/COMMIT/NAME -> ../../blobs/HASH, and nothing else."""
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "0" / "", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    samples.hugging_face(snapshot)
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert base_info(str(snapshot)).revision == "0"
    (repository / "refs").write_text("secret")
    (snapshot / "LICENSE").symlink_to("../../refs")
    refused(
        ["evaluate", "--model", str(snapshot), "--data", "builtin"],
        tmp_path,
        "'LICENSE' is a link that leads out",
    )


def test_a_link_to_a_whole_model_is_the_users_own(tmp_path):
    (tmp_path / "real").mkdir()
    samples.hugging_face(tmp_path / "real")
    (tmp_path / "llama").symlink_to("real")
    assert base_info(str(tmp_path / "llama")).sha256 == base_info(str(tmp_path / "real")).sha256
