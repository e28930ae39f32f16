"""Recipes, arms, templates, data and checkpoints that are wrong, or that mean harm: each costs one line and exit code 2."""

import atexit
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.malformed import edit, link, refused, write
from tests.tiny_gguf import write_tiny_gguf
from tools.fuzzing import samples

pytestmark = pytest.mark.any_backend

DEEP = "[" * 100_000
GOOD = '{"prompt": "a", "response": "b"}\n'


def pipe(name: str):
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


def to(name: str, target: str):
    return lambda folder: ((folder / name).unlink(missing_ok=True), (folder / name).symlink_to(target))


def given(
    change: Callable[[Path], object], *arguments: str, prepare: Callable[[Path], object] = lambda folder: None
):
    """A folder `given`, filled and changed, and a command about it."""

    def make(folder: Path) -> list[str]:
        (folder / "given").mkdir()
        (folder / "outside").mkdir()
        prepare(folder / "given")
        change(folder / "given")
        return [part.format(given=folder / "given") for part in arguments]

    return make


def recipe(change):
    return given(change, "recipe", "{given}/my.toml")


def arms(change):
    return given(change, "study", "gsm8k", "--data", "builtin", "--arms", "{given}/my.toml")


def template(change, name: str = "my.jinja"):
    """A template that a recipe names, beside a model that can be loaded."""
    options = ("--model", "{given}/x.gguf", "--data", "builtin", "--recipe", "{given}/my.toml")

    def both(folder: Path) -> None:
        samples.gguf(folder)
        (folder / "my.toml").write_text(f"[data]\ntemplate = '{folder / name}'\n")
        change(folder)

    return given(both, "evaluate", *options)


def data(task: str, change, name: str = "", prepare=None):
    """Data of a task, in the recipe command, which reads them before anything is written."""
    prepare = (
        prepare
        or {
            "jsonl": samples.jsonl,
            "gsm8k": samples.gsm8k,
            "instruct": samples.instruct,
            "coqa": samples.coqa,
        }[task]
    )
    return given(
        change,
        "recipe",
        task,
        "--data",
        "{given}" + (f"/{name}" if name else ""),
        "--run",
        "{given}/../new",
        prepare=prepare,
    )


def checkpoint(change):
    """A finished run, changed. It is a real one, whatever the format of checkpoints is."""
    copy = functools.partial(shutil.copytree, dirs_exist_ok=True)
    return given(change, "evaluate", "{given}", prepare=lambda folder: copy(finished() / "run", folder))


@functools.cache
def finished() -> Path:
    """A folder with a finished run, made once; removed when the tests end."""
    place = tempfile.TemporaryDirectory()
    atexit.register(place.cleanup)
    samples.run(Path(place.name))
    return Path(place.name)


def other_base(folder: Path) -> None:
    """The base model that the run's recipe names is another one now."""
    shutil.copytree(finished(), folder / "inputs", ignore=shutil.ignore_patterns("run"))
    write_tiny_gguf(folder / "inputs/tiny.gguf", num_layers=2, seed=5)
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(finished()), str(folder / "inputs")))


MANIFEST, TRAINED = "checkpoint/checkpoint.json", "checkpoint/trained.safetensors"
NOT_OURS = "checkpoint.json is damaged or not written by keras_mtp"
READ = "The data must be a file that can be read"
RECIPES = {
    "recipe: UTF-16": (recipe(write("my.toml", "name = 'x'".encode("utf-16"))), "my.toml cannot be read as text"),
    "recipe: a mark in front": (recipe(write("my.toml", "\ufeffname = 'x'")), "my.toml is not valid TOML"),
    "recipe: zero bytes": (recipe(write("my.toml", "name = 'x\0'")), "my.toml is not valid TOML"),
    "recipe: half a surrogate pair": (recipe(write("my.toml", 'name = "\\ud800"')), "my.toml is not valid TOML"),
    "recipe: a device": (recipe(to("my.toml", "/dev/zero")), "nor a file of that name"),
    "recipe: a key of 50,000 parts": (recipe(write("my.toml", "a" + ".a" * 50_000 + " = 1")), "my.toml is not valid TOML for a recipe: it has more than 100 dots"),
    "recipe: nested lists": (recipe(write("my.toml", f"name = {DEEP}")), "my.toml is not valid TOML"),
    "recipe: nested in a table's place": (recipe(write("my.toml", "heads = " + "[" * 200 + "]" * 200)), "`heads` must be a table"),
    "recipe: a key of 500,000 characters": (recipe(write("my.toml", "x" * 500_000 + " = 1")), "my.toml: Unknown key `x"),
    "recipe: a key that steers the terminal": (recipe(write("my.toml", '"\\u001b[2J" = 1')), r"Unknown key `\\x1b\[2J"),
    "recipe: code in a name": (recipe(write("my.toml", 'name = "__import__(\'os\')"')), "`name` must be letters"),
    "recipe: steps 10^400": (recipe(write("my.toml", "[training]\nlearning_rate = 1e400")), "`training.learning_rate` must be finite"),
    "recipe: a date": (recipe(write("my.toml", "[training]\nsteps = 2024-01-01")), "`training.steps` must be a whole number"),
    "arms: a pipe": (arms(pipe("my.toml")), "nor a file that can be read"),
    "arms: a folder": (arms(lambda f: (f / "my.toml").mkdir()), "nor a file that can be read"),
    "arms: a device": (arms(to("my.toml", "/dev/zero")), "nor a file that can be read"),
    "arms: not UTF-8": (arms(write("my.toml", b"\xff")), "my.toml cannot be read as text"),
    "arms: two MB": (arms(write("my.toml", b"#" * (2 << 20))), "An arms file must be at most 1 MiB of TOML. Received: .*my.toml"),
    "arms: nested": (arms(write("my.toml", f"a = {DEEP}")), "my.toml is not valid TOML"),
    "arms: a grid of 10^20 points": (
        arms(write("my.toml", "[grid]\n" + "".join(f"a.k{n} = {list(range(100))}\n" for n in range(10)) + "[arms.a]\n[arms.b]\n")),
        "`grid` must have at most 1000 points. Received: 100000000000000000000",
    ),
    "arms: a path for a name": (arms(write("my.toml", '[arms."../x"]\nheads.count = 0\n[arms.b]\n')), "An arm's name must be letters"),
    "template: a pipe": (template(pipe("my.jinja")), r"my.jinja \(a pipe or a device, not a plain file\)"),
    "template: a folder": (template(lambda f: (f / "my.jinja").mkdir()), r"my.jinja \(Is a directory\)"),
    "template: a device": (template(to("my.jinja", "/dev/zero")), r"my.jinja \(a pipe or a device"),
    "template: not UTF-8": (template(write("my.jinja", b"\xff")), r"my.jinja \(not UTF-8\)"),
    "template: a million characters": (template(write("my.jinja", "x" * 1_000_000)), "a file of at most 400,000 bytes. Received: .*my.jinja"),
    "template: another file": (template(write("my.txt", "x"), "my.txt"), "that ends in .jinja. Received"),
}  # fmt: skip
DATA = {
    "jsonl: a pipe": (data("jsonl", pipe("my.jsonl"), "my.jsonl"), rf"{READ}. Received: .*my.jsonl \(a pipe or a device"),
    "jsonl: a device": (data("jsonl", to("my.jsonl", "/dev/zero"), "my.jsonl"), rf"{READ}. Received: .*my.jsonl \(a pipe or a device"),
    "jsonl: a line of 17 MB": (
        data("jsonl", write("my.jsonl", '{"prompt": "a", "response": "' + "x" * (17 << 20) + '"}'), "my.jsonl"), "at most 16 MiB. Received: .*my.jsonl, line 1",
    ),
    "jsonl: zero bytes": (data("jsonl", write("my.jsonl", b"\0" * 100), "my.jsonl"), "my.jsonl, line 1"),
    "jsonl: a pickle": (data("jsonl", write("my.jsonl", b"\x80\x04\x95cos\nsystem\n."), "my.jsonl"), "my.jsonl, line 1"),
    "jsonl: a number of 5000 digits": (data("jsonl", write("my.jsonl", f'{{"id": {"9" * 5000}}}'), "my.jsonl"), "my.jsonl, line 1"),
    "jsonl: a million keys": (
        data("jsonl", write("my.jsonl", json.dumps({f"k{n}": 0 for n in range(100_000)})), "my.jsonl"), "my.jsonl, line 1: A row must have",
    ),
    "jsonl: a role that steers the terminal": (
        data("jsonl", write("my.jsonl", '{"messages": [{"role": "\\u001b[2J", "content": "x"}, {"role": "assistant", "content": "x"}]}'), "my.jsonl"),
        r"Received: '\\x1b\[2J' in turn 1",
    ),
    "jsonl: nested 900 levels": (data("jsonl", write("my.jsonl", '{"messages": ' + "[" * 900 + "]" * 900 + "}"), "my.jsonl"), "my.jsonl, line 1"),
    "jsonl: a folder's file is a link": (
        data("jsonl", link("train.jsonl", "../outside/x"), prepare=samples.gsm8k), "given cannot be used: 'train.jsonl' is a link that leads out",
    ),
    "gsm8k: a link": (data("gsm8k", link("train.jsonl", "../outside/x")), "'train.jsonl' is a link that leads out"),
    "gsm8k: a link to a device": (data("gsm8k", to("test.jsonl", "/dev/zero")), "'test.jsonl' is a link that leads out"),
    "gsm8k: a pipe": (data("gsm8k", pipe("test.jsonl")), rf"{READ}. Received: .*test.jsonl \(a pipe or a device"),
    "instruct: a link": (data("instruct", link("test.jsonl", "../outside/x")), "'test.jsonl' is a link that leads out"),
    "instruct: a pipe": (data("instruct", pipe("train.jsonl")), rf"{READ}. Received: .*train.jsonl \(a pipe or a device"),
    "coqa: a link": (data("coqa", link("dev.json", "../outside/x")), "'dev.json' is a link that leads out"),
    "coqa: a pipe": (data("coqa", pipe("train.json")), "given, which holds neither"),
    "coqa: nested": (data("coqa", write("dev.json", '{"data": ' + DEEP)), "must be a JSON object. Received: .*dev.json"),
}  # fmt: skip
CHECKPOINTS = {
    "manifest: empty": (checkpoint(write(MANIFEST, b"")), NOT_OURS),
    "manifest: UTF-16": (checkpoint(write(MANIFEST, "{}".encode("utf-16"))), NOT_OURS),
    "manifest: nested": (checkpoint(write(MANIFEST, DEEP)), NOT_OURS),
    "manifest: a folder": (checkpoint(lambda f: ((f / MANIFEST).unlink(), (f / MANIFEST).mkdir())), "No finished checkpoint in"),
    "manifest: a pipe": (checkpoint(pipe(MANIFEST)), "No finished checkpoint in"),
    "manifest: a device": (checkpoint(to(MANIFEST, "/dev/zero")), "No finished checkpoint in"),
    "manifest: a number of 5000 digits": (checkpoint(write(MANIFEST, f'{{"format": {"9" * 5000}}}')), NOT_OURS),
    "manifest: nothing in it": (checkpoint(write(MANIFEST, "{}")), NOT_OURS),
    "manifest: a text": (checkpoint(write(MANIFEST, '"x"')), NOT_OURS),
    "manifest: an unknown key": (checkpoint(edit(MANIFEST, lambda m: m.update(module="os"))), NOT_OURS),
    "manifest: a class": (checkpoint(edit(MANIFEST, lambda m: m.update(__class__="Evil"))), NOT_OURS),
    "manifest: format is true": (checkpoint(edit(MANIFEST, lambda m: m.update(format=True))), NOT_OURS),
    "manifest: steps in letters": (checkpoint(edit(MANIFEST, lambda m: m.update(steps="3"))), NOT_OURS),
    "manifest: files a list": (checkpoint(edit(MANIFEST, lambda m: m.update(files=["x"]))), NOT_OURS),
    "manifest: other files": (checkpoint(edit(MANIFEST, lambda m: m.update(files={"../../etc/passwd": "0" * 64}))), "is damaged: its SHA-256|trained.safetensors is missing or damaged"),
    "manifest: hash a number": (checkpoint(edit(MANIFEST, lambda m: m["files"].update({"trained.safetensors": 7}))), "is damaged: its SHA-256|trained.safetensors is missing or damaged"),
    "manifest: hash of another case": (
        checkpoint(edit(MANIFEST, lambda m: m["files"].update({n: h.upper() for n, h in m["files"].items()}))),
        "is damaged: its SHA-256|trained.safetensors is missing or damaged",
    ),
    "weights: a folder": (checkpoint(lambda f: ((f / TRAINED).unlink(), (f / TRAINED).mkdir())), "trained.safetensors is missing or damaged"),
    "weights: a pipe": (checkpoint(pipe(TRAINED)), "trained.safetensors is missing or damaged"),
    "weights: a device": (checkpoint(to(TRAINED, "/dev/zero")), "trained.safetensors is missing or damaged"),
    "weights: a dangling link": (checkpoint(to(TRAINED, "nowhere")), "trained.safetensors is missing or damaged"),
    "weights: a pickle": (checkpoint(write(TRAINED, b"\x80\x04\x95cos\nsystem\n(S'true'\ntR.")), "trained.safetensors is missing or damaged"),
    "recipe: a pipe": (checkpoint(pipe("recipe.toml")), "which has no recipe.toml"),
    "recipe: a device": (checkpoint(to("recipe.toml", "/dev/zero")), "which has no recipe.toml"),
    "another base": (checkpoint(other_base), "belongs to another base model"),
}  # fmt: skip
CASES = RECIPES | DATA | {f"checkpoint: {name}": case for name, case in CHECKPOINTS.items()}


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, words = CASES[case]
    refused(make(tmp_path), tmp_path, words)


def test_a_link_to_a_file_of_data_is_the_users_own(tmp_path):
    from keras_mtp.tasks import load_task

    samples.jsonl(tmp_path)
    (tmp_path / "mine.jsonl").symlink_to(tmp_path / "my.jsonl")
    assert load_task("jsonl", str(tmp_path / "mine.jsonl")).examples("train")


def test_the_catalogue_is_long():
    from tests import test_malformed_folders, test_malformed_gguf, test_malformed_presets

    modules = (test_malformed_folders, test_malformed_gguf, test_malformed_presets)
    assert len(CASES) + sum(len(module.CASES) for module in modules) >= 300
