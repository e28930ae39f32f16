"""Attacks on loaders of models that are known to have worked elsewhere. Each wants to leave a mark; none does here.

Where an attack needs a program that falls for it, a test shows on such a program that the attack itself works: an attack that
could not succeed anywhere would prove nothing.
"""

import functools
import gzip
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import jinja2
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from keras_mtp import cli
from keras_mtp.data.chat_template import compile_template
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import base_info, load_backbone
from tests.malformed import ARRAY, TEXT, edit, gguf_bytes, key, model, one_tensor, safetensors_bytes, tensor
from tools.fuzzing import samples

pytestmark = pytest.mark.any_backend
SECRET = "do-not-copy-me"
MESSAGES = [{"role": "user", "content": "Hi"}]


class Pickled:
    """What `pickle` makes a file of when it is asked nicely."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def lambda_layer(mark: Path) -> dict:
    """A Keras layer whose function is bytecode that leaves the mark."""
    layer = keras.layers.Lambda(eval(f"lambda x: __import__('os').mkdir({str(mark)!r}) or x"))
    return json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))


def any_class(mark: Path) -> dict:
    return {
        "module": "subprocess",
        "class_name": "Popen",
        "config": {"args": ["mkdir", str(mark)]},
        "registered_name": "subprocess>Popen",
    }


def source(mark: Path) -> str:
    return f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n"


# === Whole folders: what is put where, and what must come of loading it ===


def in_preset(change: Callable[[Path, Path], object]):
    return lambda folder, mark: (samples.preset(folder), change(folder, mark))


def in_folder(change: Callable[[Path, Path], object]):
    return lambda folder, mark: (samples.hugging_face(folder), change(folder, mark))


def only_pickle(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Pickled(mark)))


def beside(*names: str):
    """Pickles beside good weights, where other programs look for them."""

    def change(folder: Path, mark: Path) -> None:
        for name in names:
            (folder / name).write_bytes(pickle.dumps(Pickled(mark)))

    return change


def own_code(folder: Path, mark: Path) -> None:
    for name in (
        "modeling_evil.py",
        "configuration_evil.py",
        "tokenization_evil.py",
        "sitecustomize.py",
        "numpy.py",
        "conftest.py",
    ):
        (folder / name).write_text(source(mark))
    classes = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    edit("config.json", lambda c: c.update(auto_map=classes, trust_remote_code=True))(folder)


def own_tokenizer(folder: Path, mark: Path) -> None:
    (folder / "tokenization_evil.py").write_text(source(mark))
    named = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    edit("tokenizer_config.json", lambda c: c.update(named))(folder)


def yaml_card(folder: Path, mark: Path) -> None:
    (folder / "README.md").write_text(f"---\nlicense: !!python/object/apply:os.mkdir ['{mark}']\n---\n")


def in_preset_config(make: Callable[[Path], dict], inside: bool):
    def change(folder: Path, mark: Path) -> None:
        content = make(mark)
        edit("config.json", lambda c: c["config"].update(dtype=content) if inside else c.update(content))(
            folder
        )

    return change


def in_preset_tokenizer(folder: Path, mark: Path) -> None:
    edit("tokenizer.json", lambda c: c.update(any_class(mark)))(folder)


def other_files_of_presets(folder: Path, mark: Path) -> None:
    """keras-hub reads more files of a preset than are read here."""
    for name in ("task.json", "preprocessor.json", "metadata.json", "image_converter.json"):
        (folder / name).write_text(json.dumps(lambda_layer(mark)))
    with zipfile.ZipFile(folder / "task.weights.h5", "w") as archive:
        archive.writestr(f"../../../../../../../..{mark}", "x")


REFUSED, READ = "refused", "read"
FOLDERS = {
    "a lambda as a preset's backbone": (in_preset(in_preset_config(lambda_layer, inside=False)), REFUSED),
    "a lambda as a preset's dtype": (in_preset(in_preset_config(lambda_layer, inside=True)), REFUSED),
    "any class as a preset's backbone": (in_preset(in_preset_config(any_class, inside=False)), REFUSED),
    "any class as a preset's dtype": (in_preset(in_preset_config(any_class, inside=True)), REFUSED),
    "any class as a preset's tokenizer": (in_preset(in_preset_tokenizer), REFUSED),
    "a preset's further files": (in_preset(other_files_of_presets), READ),
    "a pickle for HDF5": (in_preset(beside("model.weights.h5")), REFUSED),
    "a pickle alone": (in_folder(only_pickle), REFUSED),
    "a pickle for safetensors": (in_folder(beside("model.safetensors")), REFUSED),
    "a pickle for a tokenizer": (in_folder(beside("tokenizer.json")), REFUSED),
    "pickles beside": (in_folder(beside("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.model")), READ),
    "code of its own": (in_folder(own_code), REFUSED),
    "code for its tokenizer": (in_folder(own_tokenizer), READ),
    "YAML in the model card": (in_folder(yaml_card), READ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_nothing_in_a_folder_is_run(name, tmp_path):
    prepare, outcome = FOLDERS[name]
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    prepare(folder, mark)
    try:
        base_info(str(folder))
        load_backbone(str(folder))
        came = READ
    except UserError:
        came = REFUSED
    assert came == outcome and not mark.exists()


def test_code_beside_a_model_is_not_imported_from_the_working_directory(tmp_path):
    """As `keras-mtp` starts, `python -P`: what lies in the working directory is no module."""
    samples.hugging_face(tmp_path)
    own_code(tmp_path, tmp_path / "mark")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-P", "-m", "keras_mtp", *model(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(root), "KERAS_BACKEND": keras.config.backend()}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "`auto_map`" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "mark").exists()


def test_the_attacks_work_elsewhere(tmp_path):
    pickle.loads(pickle.dumps(Pickled(tmp_path / "by pickle")))
    layer = keras.saving.deserialize_keras_object(lambda_layer(tmp_path / "by Keras"), safe_mode=False)
    layer(np.zeros(1))
    exec(source(tmp_path / "by import"))
    template = jinja2.Environment().from_string(
        ESCAPES["globals of a class"].format(mark=tmp_path / "by Jinja")
    )
    template.render(messages=MESSAGES)
    assert {path.name for path in tmp_path.iterdir()} == {"by pickle", "by Keras", "by import", "by Jinja"}


# === Files of the user that are to be smuggled out ===


def external_bytes(folder: Path, secret: Path) -> None:
    with h5py.File(folder / "model.weights.h5", "a") as file:
        name = "layers/llama_layer_norm/vars/0"
        del file[name]
        file.create_dataset(name, shape=(3,), dtype="float32", external=[(str(secret), 0, 12)])
        assert file[name][:].tobytes() == SECRET.encode()[:12]  # HDF5 itself reads it


def external_link(folder: Path, secret: Path) -> None:
    with h5py.File(secret.with_suffix(".h5"), "w") as file:
        file["x"] = np.ones(8, "float32")
    with h5py.File(folder / "model.weights.h5", "a") as file:
        del file["layers/llama_layer_norm/vars/0"]
        file["layers/llama_layer_norm/vars/0"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "x")
        assert file["layers/llama_layer_norm/vars/0"][0] == 1


def linked(name: str, absolute: bool = True):
    def change(folder: Path, secret: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(secret if absolute else Path("..") / secret.name)

    return change


def false_cache(folder: Path, secret: Path) -> None:
    """A folder that looks like the hub's cache, whose blobs are a link out of it."""
    snapshot = folder / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    samples.hugging_face(snapshot)
    (folder / "blobs").symlink_to(secret.parent)
    (snapshot / "LICENSE").symlink_to(Path("../../blobs") / secret.name)


SMUGGLED = {
    "HDF5: bytes of another file": (samples.preset, external_bytes, ""),
    "HDF5: a link to another file": (samples.preset, external_link, ""),
    "preset: licence": (samples.preset, linked("LICENSE"), ""),
    "licence": (samples.hugging_face, linked("LICENSE"), ""),
    "licence, relative": (samples.hugging_face, linked("LICENSE.txt", absolute=False), ""),
    "card": (samples.hugging_face, linked("README.md"), ""),
    "template": (samples.hugging_face, linked("chat_template.jinja"), ""),
    "false cache": (lambda folder: None, false_cache, "snapshots/0"),
}  # fmt: skip


@pytest.mark.parametrize("name", SMUGGLED)
def test_no_other_file_becomes_part_of_a_model(name, tmp_path):
    prepare, change, place = SMUGGLED[name]
    folder, secret = tmp_path / "model", tmp_path / "secret"
    secret.write_text(SECRET)
    folder.mkdir()
    prepare(folder)
    change(folder, secret)
    for load in (base_info, load_backbone):
        with pytest.raises(UserError, match=r"leads out|another file") as error:
            load(str(folder / place))
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "target",
    [
        "../secret.safetensors",
        "/{tmp}/secret.safetensors",
        "..%2fsecret.safetensors",
        "sub/../../secret.safetensors",
    ],
)
def test_an_index_names_no_file_elsewhere(target, tmp_path):
    (tmp_path / "model").mkdir()
    samples.hugging_face(tmp_path / "model")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "secret.safetensors")
    names = load_file(tmp_path / "secret.safetensors")
    index = {"weight_map": dict.fromkeys(names, target.format(tmp=str(tmp_path)[1:]))}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"no safetensors file of this folder|is missing"):
        load_backbone(str(tmp_path / "model"))


# === Templates that reach for Python ===

ESCAPES = {
    "globals of a class": "{{{{ cycler.__init__.__globals__.os.mkdir('{mark}') }}}}",
    "globals of a function": "{{{{ lipsum.__globals__['os'].mkdir('{mark}') }}}}",
    "globals of our own": "{{{{ raise_exception.__globals__['jinja2'].utils.os.mkdir('{mark}') }}}}",
    "the template itself": "{{{{ self.__init__.__globals__.__builtins__.__import__('os').mkdir('{mark}') }}}}",
    "all classes": "{{% for c in ''.__class__.__mro__[1].__subclasses__() %}}{{{{ c.__init__.__globals__['os'].mkdir('{mark}') }}}}{{% endfor %}}",
    "a method of a string": "{{{{ ''.join.__self__.__class__.__base__.__subclasses__()[0]('{mark}') }}}}",
    "attr and format (CVE-2025-27516)": "{{{{ (messages | attr('for' ~ 'mat'))('{mark}') }}}}{{{{ '{{0.__class__.__init__.__globals__[os]}}' | attr('format')(messages) }}}}",
    "format kept (CVE-2024-56326)": "{{% set f = '{{0.__class__.__init__.__globals__}}'.format %}}{{{{ f(messages) }}}}{{{{ '{mark}' }}}}",
    "format_map": "{{{{ '{{x.__class__}}'.format_map({{'x': messages}}) }}}}{{{{ '{mark}' }}}}",
    "map by attribute": "{{{{ messages | map(attribute='__class__.__mro__') | list }}}}{{{{ '{mark}' }}}}",
    "groupby": "{{{{ messages | groupby('__class__') }}}}{{{{ '{mark}' }}}}",
    "a macro's code": "{{% macro m() %}}{{% endmacro %}}{{{{ m.__call__.__globals__['os'].mkdir('{mark}') }}}}",
    "a namespace": "{{% set n = namespace() %}}{{{{ n.__init__.__globals__['os'].mkdir('{mark}') }}}}",
    "the loop": "{{% for m in messages %}}{{{{ loop.__init__.__globals__['os'].mkdir('{mark}') }}}}{{% endfor %}}",
    "the context": "{{{{ get_flashed_messages.__globals__.os.mkdir('{mark}') }}}}",
    "generator frames": "{{{{ (messages | map('upper')).gi_frame.f_back.f_globals['os'].mkdir('{mark}') }}}}",
    "include": "{{% include '{mark}' %}}",
    "import": "{{% import 'os' as os %}}{{{{ os.mkdir('{mark}') }}}}",
    "an undefined name": "{{{{ nothing.__class__.__init__.__globals__['sys'].modules['os'].mkdir('{mark}') }}}}",
    "a name for code (CVE-2024-56201)": "{{% set x = 1 %}}{{% from \"{mark}' + __import__('os').mkdir('{mark}') + '\" import y %}}",
}  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_templates_do_not_get_out_of_the_sandbox(name, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(UserError, match="chat template"):
        compile_template(ESCAPES[name].format(mark=mark))(messages=MESSAGES, add_generation_prompt=True)
    assert not mark.exists()


# === Bombs: little to store, much to read ===


@functools.cache
def _zeros(count: int) -> bytes:
    return gzip.compress(b"0" * count)


def hdf5(**options):
    def prepare(folder: Path) -> Path:
        samples.preset(folder)
        with h5py.File(folder / "model.weights.h5", "a") as file:
            del file["layers/llama_layer_norm/vars/0"]
            file.create_dataset("layers/llama_layer_norm/vars/0", dtype="float32", **options)
        return folder

    return prepare


def written(
    name: str, content: bytes, prepare: Callable[[Path], object] = lambda folder: None, *, whole: bool = False
):
    """One file in a folder; what is loaded is the folder, or with `whole` the file."""

    def make(folder: Path) -> Path:
        prepare(folder)
        (folder / name).write_bytes(content)
        return folder / name if whole else folder

    return make


def sparse(folder: Path) -> Path:
    """A file that claims to be a terabyte, and takes no room on the disk."""
    with (folder / "x.gguf").open("wb") as file:
        file.write(gguf_bytes([], [tensor(shape=(2**35, 8))]))
        file.truncate(1 << 40)
    return folder / "x.gguf"


def growing(role: str, steps: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        samples.hugging_face(folder)
        step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 64}
        edit("tokenizer.json", lambda c: c.update({role: {"type": "Sequence", steps: [step] * 12}}))(folder)
        return folder

    return make


def padded(folder: Path) -> Path:
    samples.hugging_face(folder)
    padding = {
        "strategy": {"Fixed": 2**40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    edit("tokenizer.json", lambda c: c.update(padding=padding))(folder)
    return folder


ENTRY = struct.pack("<Q", 2**63)
BOMBS = {
    "GGUF: a text of 2^63 bytes": (written("x.gguf", gguf_bytes([key("a", TEXT, ENTRY)]), whole=True), REFUSED),
    "GGUF: 2^63 texts": (written("x.gguf", gguf_bytes([key("a", ARRAY, struct.pack("<I", TEXT) + ENTRY)]), whole=True), REFUSED),
    "GGUF: 2^61 numbers of 8 bytes": (
        written("x.gguf", gguf_bytes([key("a", ARRAY, struct.pack("<IQ", 10, 2**61))]), whole=True), REFUSED,
    ),
    "GGUF: 2^64-1 keys": (written("x.gguf", gguf_bytes(key_count=2**64 - 1), whole=True), REFUSED),
    "GGUF: 2^64-1 tensors": (written("x.gguf", gguf_bytes(tensor_count=2**64 - 1), whole=True), REFUSED),
    "GGUF: a shape that is 0 in 64 bits": (written("x.gguf", gguf_bytes([], [tensor(shape=(2**32, 2**32))]), whole=True), REFUSED),
    "GGUF: an offset that wraps around": (written("x.gguf", gguf_bytes([], [tensor(offset=2**64 - 96)]), whole=True), REFUSED),
    "GGUF: a terabyte of holes": (sparse, REFUSED),
    "GGUF: gzip": (written("x.gguf", _zeros(1 << 20), whole=True), REFUSED),
    "safetensors: a header of 2^63 bytes": (written("model.safetensors", safetensors_bytes({}, length=2**63), samples.hugging_face), REFUSED),
    "safetensors: a header of 90 MB": (
        written("model.safetensors", safetensors_bytes(b" " * 90_000_000), samples.hugging_face), REFUSED,
    ),
    "safetensors: a million lists": (written("model.safetensors", safetensors_bytes(b'{"x": ' + b"[" * 10**6), samples.hugging_face), REFUSED),
    "safetensors: a shape that is 0 in 64 bits": (
        written("model.safetensors", safetensors_bytes(one_tensor(shape=[2**32, 2**32])), samples.hugging_face), REFUSED,
    ),
    "HDF5: a terabyte of nothing": (hdf5(shape=(1 << 38,), chunks=(1 << 20,)), REFUSED),
    "HDF5: a terabyte of zeros, compressed": (hdf5(shape=(1 << 38,), chunks=(1 << 20,), compression="gzip"), REFUSED),
    "JSON: 16 MB of lists": (written("config.json", b"[" * (16 << 20), samples.hugging_face), REFUSED),
    "tokenizer: 64^12 characters of one": (growing("normalizer", "normalizers"), REFUSED),
    "tokenizer: 64^12 characters of one, when read": (growing("decoder", "decoders"), REFUSED),
    "tokenizer: padding to 2^40 tokens": (padded, READ),  # which is taken out
    "card: a million empty lines": (written("README.md", b"---" + b"\n" * 10**6, samples.hugging_face), READ),
}  # fmt: skip


@pytest.fixture
def _little_memory():
    """Where a bound fails, the test does, and not the machine."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(
        resource.RLIMIT_DATA
    )  # in which mapped files do not count: one claims a terabyte
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    used = int(status["VmData"].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.parametrize("name", BOMBS)
def test_little_memory_is_enough_for_bombs(name, tmp_path):
    make, outcome = BOMBS[name]
    path = make(tmp_path)
    try:
        base_info(str(path))
        tokenizer = load_backbone(str(path)).tokenizer
        tokenizer.decode(tokenizer.encode("a banana"))
        came = READ
    except UserError:
        came = REFUSED
    assert came == outcome


@pytest.mark.parametrize("name", ["my.jsonl", "my.jsonl.gz"])
def test_a_gzip_bomb_is_no_data(name, tmp_path):
    (tmp_path / name).write_bytes(_zeros(1 << 24))
    result = CliRunner().invoke(
        cli.cli, ["recipe", "jsonl", "--data", str(tmp_path / name), "--run", str(tmp_path / "new")]
    )
    assert result.exit_code == 2 and "which is a gzip file: unpack it" in result.stderr


def test_weights_of_the_right_shapes_but_other_names_are_refused(tmp_path):
    """As many tensors, but one of them is none of a Llama's: it would never be read, and one would be missing."""
    samples.hugging_face(tmp_path)
    arrays = load_file(tmp_path / "model.safetensors")
    arrays["model.layers.0.self_attn.evil.weight"] = arrays.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(arrays, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"the first is model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_backbone(str(tmp_path))
