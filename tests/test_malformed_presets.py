"""keras-hub presets that are wrong, or that mean harm: each costs one line and exit code 2.

A preset was the way of most attacks on Keras: its config names Python classes, its weights are HDF5.
"""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from tests.malformed import edit, link, preset, refused, spm_preset, write
from tools.fuzzing import samples

pytestmark = pytest.mark.any_backend

CONFIG, WEIGHTS, INDEX, TOKENIZER = "config.json", "model.weights.h5", "model.weights.json", "tokenizer.json"
ASSETS = "assets/tokenizer"
NORM = "layers/llama_layer_norm/vars/0"
LAMBDA = {
    "class_name": "Lambda",
    "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
}


def config(change: Callable[[dict], object]):
    return preset(edit(CONFIG, change))


def sizes(**changes):
    return config(lambda c: c["config"].update(changes))


def weights(change: Callable[[h5py.File], object]):
    def apply(folder: Path) -> None:
        with h5py.File(folder / WEIGHTS, "a") as file:
            change(file)

    return preset(apply)


def instead(name: str, **options):
    """Another dataset in the place of one."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return weights(change)


def linked(kind: Callable[[], object]):
    """A link in the place of a dataset; the dataset itself stays in the file."""

    def change(file: h5py.File) -> None:
        file.move(NORM, "kept")
        file[NORM] = kind()

    return weights(change)


def elsewhere(folder: Path) -> None:
    """Values that are the bytes of another file."""
    (folder.parent / "outside/secret").write_bytes(b"secret" * 8)
    with h5py.File(folder / WEIGHTS, "a") as file:
        del file[NORM]
        where = [(str(folder.parent / "outside/secret"), 0, 32)]
        file.create_dataset(NORM, shape=(8,), dtype="float32", external=where)


def virtual(folder: Path) -> None:
    with h5py.File(folder.parent / "outside/secret.h5", "w") as file:
        file["x"] = np.ones(8, "float32")
    layout = h5py.VirtualLayout(shape=(8,), dtype="float32")
    layout[:] = h5py.VirtualSource(str(folder.parent / "outside/secret.h5"), "x", shape=(8,))
    with h5py.File(folder / WEIGHTS, "a") as file:
        del file[NORM]
        file.create_virtual_dataset(NORM, layout)


def circle(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def shards(weight_map, **files: bytes):
    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "model_00000.weights.h5")
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        for name, content in files.items():
            (folder / name).write_bytes(content)

    return preset(apply)


def linked_shard(folder: Path) -> None:
    link(WEIGHTS, "../outside/x.h5")(folder)
    (folder / WEIGHTS).rename(folder / "model_00000.weights.h5")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model_00000.weights.h5"}}))


def proto(change: Callable[[sentencepiece_model_pb2.ModelProto], object]):
    """A SentencePiece model, changed."""

    def apply(folder: Path) -> None:
        path = folder / ASSETS / "vocabulary.spm"
        content = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        change(content)
        path.write_bytes(content.SerializeToString())

    return spm_preset(apply)


def not_utf8(folder: Path) -> None:
    path = folder / ASSETS / "vocabulary.spm"
    path.write_bytes(path.read_bytes().replace(b"<unk>", b"<\xff\xfe\xff>", 1))


ARBITRARY = "`class_name` must be LlamaBackbone or Llama3Backbone"
DAMAGED = "model.weights.h5 is damaged or cut short"
NOT_OURS = "which is no file of this folder"
CASES = {
    # config.json: a class is a name here, and nothing is ever made of it
    "config: any class": (config(lambda c: c.update(module="os", class_name="system", config={"command": "true"})), ARBITRARY),
    "config: a lambda": (config(lambda c: c.update(LAMBDA)), ARBITRARY),
    "config: a registered class": (config(lambda c: c.update(class_name="Evil", registered_name="evil>Evil")), ARBITRARY),
    "config: class is a list": (config(lambda c: c.update(class_name=["Llama3Backbone"])), "`class_name` must be of type str"),
    "config: a lambda inside": (sizes(activation=LAMBDA), "`activation` = .* is not supported"),
    "config: a layer for a size": (sizes(hidden_dim={"class_name": "Lambda"}), "`hidden_dim` must be of type int"),
    "config: a function for a dtype": (sizes(dtype={"class_name": "Lambda"}), "its weights are quantised"),
    "config: settings a list": (config(lambda c: c.update(config=[])), "`config` must be of type dict"),
    "config: nested": (preset(write(CONFIG, '{"registered_name": ' + "[" * 100_000)), "given/config.json is not valid JSON"),
    "config: two MB": (preset(write(CONFIG, b" " * (2 << 20))), "config.json must have at most 1,048,576 bytes"),
    "config: a key twice": (preset(write(CONFIG, '{"registered_name": "a", "registered_name": "b"}')), "stands there twice"),
    "config: layers 10^15": (sizes(num_layers=10**15), "which do not make 1000000000000000 layers"),
    "config: layers -1": (sizes(num_layers=-1), "`num_layers` must be at least 1, but is -1"),
    "config: vocabulary 10^12": (sizes(vocabulary_size=10**12), "does not fit its config"),
    "config: base 0": (sizes(rope_max_wavelength=0), "must be numbers above 0"),
    # model.weights.h5
    "weights: empty": (preset(write(WEIGHTS, b"")), DAMAGED),
    "weights: a pickle": (preset(write(WEIGHTS, b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.")), DAMAGED),
    "weights: a zip": (preset(write(WEIGHTS, b"PK\x03\x04" + b"\0" * 100)), DAMAGED),
    "weights: half": (preset(lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:9000])), DAMAGED),
    "weights: a link to another file": (linked(lambda: h5py.ExternalLink("/etc/passwd", "x")), "holds a link, 'layers/llama_layer_norm/vars/0'"),
    "weights: a link within": (linked(lambda: h5py.SoftLink("/kept")), "holds a link, 'layers/llama_layer_norm/vars/0'"),
    "weights: a link to nowhere": (linked(lambda: h5py.SoftLink("/nowhere")), "holds a link"),
    "weights: the bytes of another file": (preset(elsewhere), f"tensor '{NORM}' in model.weights.h5 has its values in another file"),
    "weights: a view of another file": (preset(virtual), f"tensor '{NORM}' in model.weights.h5 has its values in another file"),
    "weights: a circle": (weights(circle), "groups that are nested too deep"),
    "weights: a dataset twice": (weights(lambda f: f.__setitem__("again", f[NORM])), "are 12 tensors"),
    "weights: a type of its own": (weights(lambda f: f.__setitem__("again", np.dtype("float32"))), "holds a type of its own, 'again'"),
    "weights: compressed": (instead(NORM, data=np.ones(8, "float32"), compression="gzip"), f"tensor '{NORM}' in .* is compressed"),
    "weights: compressed, 4 GB": (
        instead(NORM, shape=(1 << 30,), dtype="float32", chunks=(1 << 20,), compression="gzip"), "is compressed",
    ),
    "weights: a terabyte in a kilobyte": (instead(NORM, shape=(1 << 38,), dtype="float32", chunks=(1 << 20,)), "is not all there: 0 bytes"),
    "weights: nothing written": (instead(NORM, shape=(8,), dtype="float32"), "is not all there: 0 bytes for shape"),
    "weights: texts": (instead(NORM, data=["x"] * 8), "holds object, not floating-point numbers"),
    "weights: references": (instead(NORM, shape=(8,), dtype=h5py.ref_dtype), "not floating-point numbers"),
    "weights: whole numbers": (instead(NORM, data=np.ones(8, "int8")), "holds int8, not floating-point numbers"),
    "weights: complex": (instead(NORM, data=np.ones(8, "complex64")), "holds complex64, not floating-point numbers"),
    "weights: records": (instead(NORM, data=np.ones(8, "f4,f4")), "not floating-point numbers"),
    "weights: no shape": (instead(NORM, data=h5py.Empty("float32")), "is not all there"),
    "weights: another shape": (instead(NORM, data=np.ones(9, "float32")), r"of shape \(9,\) does not fit its config"),
    "weights: missing": (weights(lambda f: f.__delitem__(NORM)), "are 10 tensors, which do not make 1 layers"),
    "weights: surplus": (weights(lambda f: f.__setitem__("x", np.ones(8, "float32"))), "are 12 tensors"),
    "weights: two in each other's place": (weights(lambda f: (f.move(NORM, "layers/other"))), "model.weights.h5 does not fit"),
    "weights: not a number": (weights(lambda f: f[NORM].__setitem__(slice(None), np.nan)), "holds values that are not finite"),
    "weights: infinite": (weights(lambda f: f[NORM].__setitem__(0, np.inf)), "holds values that are not finite"),
    "weights: a name of 60,000 characters": (weights(lambda f: f.create_dataset("x" * 60_000, data=np.ones(8, "int8"))), "holds int8"),
    # model.weights.json
    "index: path upwards": (shards({"a": "../outside/x.h5"}), NOT_OURS),
    "index: absolute path": (shards({"a": "/etc/passwd"}), NOT_OURS),
    "index: a device": (shards({"a": ["/dev/zero"]}), NOT_OURS),
    "index: a number": (shards({"a": 7}), "model.weights.json names 7, " + NOT_OURS),
    "index: a name of 60,000 characters": (shards({"a": "x" * 60_000}), NOT_OURS),
    "index: no file": (shards({"a": "model_00001.weights.h5"}), NOT_OURS),
    "index: empty": (shards({}), "model.weights.json has no `weight_map`"),
    "index: a list": (shards([]), "model.weights.json has no `weight_map`"),
    "index: a link": (preset(linked_shard), "'model_00000.weights.h5' is a link that leads out of the folder"),
    # tokenizer.json and its assets
    "tokenizer: any class": (preset(edit(TOKENIZER, lambda c: c.update(module="os", class_name="system"))), "`class_name` must be Llama3Tokenizer"),
    "tokenizer: settings a text": (preset(edit(TOKENIZER, lambda c: c.update(config="x"))), "`config` must be of type dict"),
    "tokenizer: end unknown": (preset(edit(TOKENIZER, lambda c: c["config"].update(eos_token="zz"))), "vocabulary.json has no zz"),
    "vocabulary: id beyond": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=10**6))), "has the id 1000000"),
    "vocabulary: id of 2^40": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=2**40))), "has the id 1099511627776"),
    "vocabulary: id of 2^31, room for which ended the process": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=2**31))), "has the id 2147483648"),
    "vocabulary: negative id": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=-1))), "every token an id of its own"),
    "vocabulary: id of two tokens": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=5))), "every token an id of its own"),
    "vocabulary: id a fraction": (preset(edit(f"{ASSETS}/vocabulary.json", lambda v: v.update(zz=0.5))), "every token an id of its own"),
    "vocabulary: a list": (preset(write(f"{ASSETS}/vocabulary.json", "[]")), "tokenizer/vocabulary.json must hold a JSON object"),
    "vocabulary: 17 MB": (preset(write(f"{ASSETS}/vocabulary.json", b" " * (17 << 20))), "vocabulary.json must have at most"),
    "vocabulary: a link": (preset(link(f"{ASSETS}/vocabulary.json", "../outside/x.json")), "vocabulary.json' is a link that leads out"),
    "merges: unknown tokens": (preset(write(f"{ASSETS}/merges.txt", "qq zz")), "merges do not fit its tokens"),
    "merges: not UTF-8": (preset(write(f"{ASSETS}/merges.txt", b"\xff")), "tokenizer/merges.txt must be text in UTF-8"),
    "assets: a link": (preset(link("assets", "../outside/assets")), "'assets' is a link"),
    # assets/tokenizer/vocabulary.spm
    "SentencePiece: empty": (spm_preset(write(f"{ASSETS}/vocabulary.spm", b"")), "given cannot be loaded|The tokenizer must have"),
    "SentencePiece: no protobuf": (spm_preset(write(f"{ASSETS}/vocabulary.spm", b"\xff" * 64)), r"vocabulary.spm cannot be read \(DecodeError\)"),
    "SentencePiece: nested": (spm_preset(write(f"{ASSETS}/vocabulary.spm", b"\x0b" * 10_000)), "vocabulary.spm cannot be read"),
    "SentencePiece: 17 MB": (spm_preset(write(f"{ASSETS}/vocabulary.spm", b"\0" * (17 << 20))), "vocabulary.spm has more than 16,777,216 bytes"),
    "SentencePiece: not UTF-8": (spm_preset(not_utf8), "vocabulary.spm cannot be read|must be texts"),
    "SentencePiece: another kind": (proto(lambda p: setattr(p.trainer_spec, "model_type", 1)), "vocabulary.spm is no byte-pair encoding"),
    "SentencePiece: rewriting": (proto(lambda p: setattr(p.normalizer_spec, "precompiled_charsmap", b"x")), "vocabulary.spm rewrites the text"),
    "SentencePiece: a piece twice": (proto(lambda p: setattr(p.pieces[300], "piece", p.pieces[301].piece)), "must name every piece once"),
    "SentencePiece: score no number": (proto(lambda p: [setattr(x, "score", float("nan")) for x in p.pieces]), "pieces must differ in score"),
    "SentencePiece: end beyond": (proto(lambda p: setattr(p.trainer_spec, "eos_id", 2**31 - 1)), "has no tokens that begin and end a text"),
    "SentencePiece: no bytes": (proto(lambda p: p.pieces.__delitem__(slice(3, 259))), "must have a piece for every byte"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare, words = CASES[case]
    refused(prepare(tmp_path), tmp_path, words)


@pytest.mark.parametrize("prepare", [samples.preset, samples.preset_sentencepiece])
def test_what_the_cases_start_from_is_read(tmp_path, prepare):
    from keras_mtp.models.backbone import load_backbone

    prepare(tmp_path)
    load_backbone(str(tmp_path))
