"""A catalogue of what users get wrong on the command line: each costs them one line on standard error and exit code 2.

A case is a function that prepares the mistake in an empty folder and returns the command, and what its line must say.
Mistakes in the data and in model files have catalogues of their own, beside what reads them.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from keras_mtp import cli, pipeline, run_folder
from keras_mtp.recipe import to_toml
from tests import tiny_run
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend  # mistakes are found before, or beside, what a backend computes
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The tiny inputs, a recipe file for them, and a finished run with one head."""
    folder = tmp_path_factory.mktemp("bad_input")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(
        folder, heads__count=1, heads__warmup_steps=0, training__steps=1, evaluation__limit=1
    )
    (folder / "tiny.toml").write_text(to_toml(recipe))
    pipeline.run(recipe, folder / "run", progress=False)
    return folder


# What can be prepared: each takes the finished inputs and an empty folder, and returns the command.


def recipe_file(content: str | bytes) -> Callable:
    def prepare(place, tmp):
        (tmp / "my.toml").write_bytes(content.encode() if isinstance(content, str) else content)
        return ["recipe", str(tmp / "my.toml")]

    return prepare


def options(*arguments: str) -> Callable:
    """The tiny recipe with further options; {place} and {tmp} in them are the folders."""

    def prepare(place, tmp):
        command = ["recipe", str(place / "tiny.toml"), "--quiet", "--run", str(tmp / "new"), *arguments]
        return [part.format(place=place, tmp=tmp) for part in command]

    return prepare


def set_(*assignments: str) -> Callable:
    def prepare(place, tmp):
        return [*options()(place, tmp), *(part for text in assignments for part in ("--set", text))]

    return prepare


def command(*arguments: str) -> Callable:
    return lambda place, tmp: [part.format(place=place, tmp=tmp) for part in arguments]


def damaged(change: Callable[[Path], None], *arguments: str) -> Callable:
    """A copy of the finished run at {tmp}/run, changed; evaluated unless another command is given."""

    def prepare(place, tmp):
        shutil.copytree(place / "run", tmp / "run")
        change(tmp / "run")
        return command(*(arguments or ("evaluate", "{tmp}/run")))(place, tmp)

    return prepare


def manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Another manifest, with a hash that is right where there can be one, as only a program would write it."""

    def apply(run):
        from keras_mtp.checkpoint import Manifest

        path = run / "checkpoint/checkpoint.json"
        values = json.loads(path.read_text())
        changed = change(values)
        path.write_text(json.dumps(values if changed is None else changed))
        if changed is not None:
            return
        del values["sha256"]
        with contextlib.suppress(TypeError):  # no manifest at all
            path.write_bytes(Manifest(**values).text)

    return apply


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Other tensors with a hash that is right, as only a program would write them."""

    def apply(run):
        path = run / "checkpoint/trained.safetensors"
        arrays = load_file(path)
        change(arrays)
        save_file(arrays, path)
        rehash(run)

    return apply


def rehash(run: Path) -> None:
    digest = hashlib.sha256((run / "checkpoint/trained.safetensors").read_bytes()).hexdigest()
    manifest(lambda values: values["files"].update({"trained.safetensors": digest}))(run)


def edited(old: str, new: str) -> Callable[[Path], None]:
    def apply(run):
        text = (run / "recipe.toml").read_text()
        assert old in text
        (run / "recipe.toml").write_text(text.replace(old, new))

    return apply


def weights(change: Callable[[bytes], bytes], name: str = "trained.safetensors") -> Callable[[Path], None]:
    def apply(run):
        path = run / "checkpoint" / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def garbage(run: Path) -> None:
    (run / "checkpoint/trained.safetensors").write_bytes(b"\xff" * 64)
    rehash(run)


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoint")


def in_the_way(kind: str) -> Callable:
    """Something at {tmp}/new, where the run is to go."""

    def prepare(place, tmp):
        if kind == "file":
            (tmp / "new").write_text("mine")
        elif kind == "dangling link":
            (tmp / "new").symlink_to(tmp / "nowhere")
        elif kind == "full disk":
            (tmp / "new").mkdir()
            (tmp / "new/metrics.csv").symlink_to("/dev/full")
        else:
            (tmp / "new" / kind).mkdir(parents=True)
        return options()(place, tmp)

    return prepare


def link(place, tmp):
    (tmp / "my.toml").symlink_to(tmp / "nowhere")
    return ["recipe", str(tmp / "my.toml")]


def pipe(place, tmp):
    os.mkfifo(tmp / "my.toml")
    return ["recipe", str(tmp / "my.toml")]


def other_base(place, tmp):
    write_tiny_gguf(tmp / "other.gguf", seed=5)
    return options("--model", "{tmp}/other.gguf", "--from", "{place}/run")(place, tmp)


def other_backend(place, tmp):
    name = next(name for name in ("jax", "tensorflow", "torch") if name != keras.config.backend())
    return options("--backend", name)(place, tmp)


DEEP = "[" * 20_000
LONG = "9" * 5_000
CASES: dict[str, tuple[Callable, str]] = {
    # a recipe file
    "recipe: a folder": (command("recipe", "{tmp}"), "nor a file of that name"),
    "recipe: no name": (command("recipe", ""), "No recipe named ''"),
    "recipe: a dangling link": (link, "nor a file of that name"),
    "recipe: a pipe": (pipe, "nor a file of that name"),
    "recipe: not UTF-8": (recipe_file(b"\xff\xfe\x00"), "cannot be read as text"),
    "recipe: binary": (recipe_file(b"\x00\x01\x02"), "is not valid TOML"),
    "recipe: empty": (recipe_file(""), "which is empty"),
    "recipe: only a comment": (recipe_file("# to do\n"), "which is empty"),
    "recipe: huge": (recipe_file("#" * (1 << 21)), "at most 1 MiB"),
    "recipe: nested too deep": (recipe_file(f"name = {DEEP}"), "is not valid TOML"),
    "recipe: a number of 5000 digits": (recipe_file(f"[heads]\ncount = {LONG}"), "is not valid TOML"),
    "recipe: JSON": (recipe_file('{"name": "x"}'), "is not valid TOML"),
    "recipe: a key twice": (recipe_file("name = 'a'\nname = 'b'"), "is not valid TOML"),
    "recipe: unknown key": (recipe_file("[heads]\ncuont = 1"), "Did you mean `heads.count`?"),
    "recipe: unknown table": (recipe_file("[traning]\nsteps = 1"), "Did you mean `training`?"),
    "recipe: wrong type": (recipe_file("[training]\nsteps = 'many'"), "must be a whole number"),
    "recipe: no steps": (recipe_file("[training]\nsteps = 0"), "`training.steps` must be at least 1"),
    "recipe: infinite": (recipe_file("[training]\nlearning_rate = inf"), "must be finite"),
    "recipe: keep": (recipe_file("[training]\nkeep = 'bset'"), "must be last or best. Received: training.keep='bset'. Did you mean `best`?"),
    "recipe: patience": (recipe_file("[training]\npatience = -1"), "`training.patience` must be at least 0"),
    "recipe: start without run": (recipe_file("[start]\ncheckpoint = 'ab'"), "must come with `start.run`"),
    "recipe: unknown task": (recipe_file("task = 'gsm9k'"), "`task` must be"),
    # --set
    "set: no value": (set_("heads.count"), "`--set` must look like heads.count=2"),
    "set: no key": (set_("=2"), "`--set` must look like heads.count=2"),
    "set: nothing": (set_(""), "`--set` must look like heads.count=2"),
    "set: empty value": (set_("heads.count="), "must be a whole number. Received: heads.count=''"),
    "set: a table": (set_("heads=2"), "`heads` is a table"),
    "set: two dots": (set_("heads..count=2"), "Unknown key `heads..count`"),
    "set: half a head": (set_("heads.count=2.5"), "`heads.count` must be a whole number"),
    "set: true": (set_("heads.count=true"), "`heads.count` must be a whole number"),
    "set: nested too deep": (set_(f"training.steps={DEEP}"), "`training.steps` must be a whole number"),
    "set: 5000 digits": (set_(f"training.steps={LONG}"), "`training.steps` must be a whole number"),
    "set: a long key": (set_(f"{'x' * 5000}=1"), "Unknown key"),
    "set: trains nothing": (set_("prefix.length=0"), "The recipe trains nothing"),
    "set: indivisible": (set_("training.accumulation=3"), "must divide `training.batch_size`"),
    "set: a path as name": (set_("name=../x"), "`name` must be letters"),
    "set: batch too large": (set_("training.batch_size=64"), "must hold at least one batch"),
    # --run
    "run: a file": (in_the_way("file"), "must be a folder that can be made"),
    "run: inside a file": (options("--run", "{place}/tiny.toml/run"), "must be a folder that can be made"),
    "run: finished": (options("--run", "{place}/run"), "must be a new one"),
    "run: holds a report": (in_the_way("report.json"), "holds `report.json` already"),
    "run: holds a checkpoint": (in_the_way("checkpoint"), "holds `checkpoint` already"),
    "run: a dangling link": (in_the_way("dangling link"), "new"),
    "run: name too long": (options("--run", "{tmp}/" + "x" * 300), "File name too long"),
    "run: no permission": (options("--run", "/sys/keras-mtp-run"), "/sys/keras-mtp-run"),
    "run: full disk": (in_the_way("full disk"), "No space left on device"),
    # --from
    "from: no run": (options("--from", "{tmp}"), "`--from` must be the folder of a run"),
    "from: a file": (options("--from", "{place}/tiny.toml"), "`--from` must be the folder of a run"),
    "from: not finished": (damaged(no_checkpoint, "recipe", "{place}/tiny.toml", "--run", "{tmp}/new", "--from", "{tmp}/run"), "No finished checkpoint"),
    "from: damaged": (damaged(weights(lambda b: b[:-1]), "recipe", "{place}/tiny.toml", "--run", "{tmp}/new", "--from", "{tmp}/run"), "missing or damaged"),
    "from: another base": (other_base, "belongs to another base model"),
    "from: longer prefix": (options("--from", "{place}/run", "--set", "prefix.length=5"), "`prefix.length` must be 3"),
    "from: another kind": (options("--from", "{place}/run", "--set", "heads.kind=linear"), "`heads.kind` must be transformer"),
    "from: fewer heads": (options("--from", "{place}/run", "--set", "heads.count=0"), "`heads.count` must be at least 1"),
    # the backend
    "backend: unknown": (options("--backend", "pytorch"), "'pytorch' is not one of"),
    "backend: not the one that runs": (other_backend, "Keras already runs on"),
    # model and data of the recipe command
    "model: unknown": (options("--model", "smollm3"), "`model.name` must be"),
    "model: no such file": (options("--model", "{tmp}/no.gguf"), "`model.name` must be"),
    "data: no such folder": (options("--data", "{tmp}/no"), "a folder that exists. Received"),
    # evaluate
    "evaluate: nothing": (command("evaluate"), "either the folder of a RUN or a --model"),
    "evaluate: both": (command("evaluate", "{place}/run", "--model", "x"), "either the folder of a RUN or a --model"),
    "evaluate: run and recipe": (command("evaluate", "{place}/run", "--recipe", "gsm8k"), "`--recipe` goes with --model"),
    "evaluate: unknown recipe": (command("evaluate", "--model", "x", "--recipe", "gsm8"), "Did you mean `gsm8k`?"),
    "evaluate: unknown model": (command("evaluate", "--model", "smollm3", "--data", "builtin"), "`model.name` must be"),
    "evaluate: limit 0": (command("evaluate", "{place}/run", "--limit", "0"), "--limit"),
    "evaluate: limit x": (command("evaluate", "{place}/run", "--limit", "x"), "--limit"),
    "evaluate: a file": (command("evaluate", "{place}/tiny.toml"), "`RUN` must be the folder of a run"),
    "evaluate: not finished": (damaged(no_checkpoint), "No finished checkpoint"),
    "evaluate: no recipe": (damaged(lambda run: (run / "recipe.toml").unlink()), "`RUN` must be the folder of a run"),
    "evaluate: recipe cut off": (damaged(lambda run: (run / "recipe.toml").write_text("[heads\n")), "is not valid TOML"),
    "evaluate: recipe with more heads": (damaged(edited("[heads]\ncount = 1", "[heads]\ncount = 2")), "does not fit the run's recipe"),
    "evaluate: recipe with a longer prefix": (damaged(edited("[prefix]\nlength = 3", "[prefix]\nlength = 4")), "does not fit the run's recipe"),
    "evaluate: base gone": (damaged(edited("tiny.gguf", "gone.gguf")), "`model.name` must be"),
    "evaluate: bit flipped": (damaged(weights(lambda b: b[:-1] + bytes([b[-1] ^ 1]))), "missing or damaged"),
    "evaluate: weights cut off": (damaged(weights(lambda b: b[: len(b) // 2])), "missing or damaged"),
    "evaluate: optimizer cut off": (damaged(weights(lambda b: b[:-1], "optimizer.safetensors")), "missing or damaged"),
    "evaluate: weights gone": (damaged(lambda run: (run / "checkpoint/trained.safetensors").unlink()), "missing or damaged"),
    "evaluate: no safetensors": (damaged(garbage), "cannot be read"),
    "evaluate: surplus tensor": (damaged(tensors(lambda a: a.update(extra=np.zeros(2)))), "does not fit the run's recipe: tensor extra"),
    "evaluate: missing tensor": (damaged(tensors(lambda a: a.pop("prefix/embeddings"))), "does not fit the run's recipe: tensor prefix/embeddings"),
    "evaluate: wrong shape": (damaged(tensors(lambda a: a.update({"prefix/embeddings": np.zeros((3, 31), "float32")}))), "does not fit the run's recipe: tensor prefix/embeddings"),
    "evaluate: manifest gone": (damaged(lambda run: (run / "checkpoint/checkpoint.json").unlink()), "No finished checkpoint"),
    "evaluate: manifest cut off": (damaged(weights(lambda b: b[:40], "checkpoint.json")), "damaged or not written by keras_mtp"),
    "evaluate: manifest nested": (damaged(weights(lambda b: b"[" * 200_000, "checkpoint.json")), "damaged or not written by keras_mtp"),
    "evaluate: manifest a list": (damaged(manifest(lambda m: [1])), "damaged or not written by keras_mtp"),
    "evaluate: manifest with wrong types": (damaged(manifest(lambda m: m.update(files=[]))), "`files` is a list"),
    "evaluate: manifest with a surplus key": (damaged(manifest(lambda m: m.update(code="x"))), "damaged or not written by keras_mtp"),
    "evaluate: manifest of the future": (damaged(manifest(lambda m: m.update(format=99))), "has format 99"),
    "evaluate: manifest of another base": (damaged(manifest(lambda m: m.update(base_sha256="0" * 64))), "belongs to another base model"),
    # generate
    "generate: empty prompt": (command("generate", "{place}/run", ""), "`PROMPT` must not be empty"),
    "generate: blank prompt": (command("generate", "{place}/run", " \n"), "`PROMPT` must not be empty"),
    "generate: no prompt": (command("generate", "{place}/run"), "Missing argument 'PROMPT'"),
    "generate: half a character": (command("generate", "{place}/run", "caf\udce9"), "must be valid Unicode"),
    "generate: half a character, raw": (command("generate", "{place}/run", "caf\udce9", "--raw"), "must be valid Unicode"),
    "generate: no tokens": (command("generate", "{place}/run", "x", "--max-new-tokens", "0"), "--max-new-tokens"),
    "generate: not finished": (damaged(no_checkpoint, "generate", "{tmp}/run", "x"), "No finished checkpoint"),
    "generate: damaged": (damaged(weights(lambda b: b[:-1]), "generate", "{tmp}/run", "x"), "missing or damaged"),
    # anything else
    "unknown command": (command("train"), "No such command 'train'"),
    "unknown option": (command("recipes", "--filds"), "--fields"),
    "surplus argument": (command("recipes", "gsm8k"), "unexpected extra argument"),
}  # fmt: skip


def _is_one_line(stderr: str) -> None:
    assert re.fullmatch(r"Error: [^\n]+\n", stderr), stderr
    assert len(stderr) < 1000 and "Traceback" not in stderr


@pytest.mark.parametrize("case", CASES)
def test_costs_one_clear_line(case, place, tmp_path, monkeypatch):
    prepare, message = CASES[case]
    monkeypatch.chdir(tmp_path)
    finished = {path.name for path in (place / "run").iterdir()}
    result = CliRunner().invoke(cli.cli, prepare(place, tmp_path), prog_name="keras-mtp")
    _is_one_line(result.stderr)
    assert message in result.stderr
    assert (result.exit_code, result.stdout) == (2, "")
    new = tmp_path / "new"
    if "holds" not in case and new.is_dir():  # nothing that looks finished, nothing half-written
        assert not {p.name for p in new.iterdir()} & {
            "checkpoint",
            "report.json",
            "checkpoint.partial",
            ".lock",
        }
    assert {path.name for path in (place / "run").iterdir()} == finished
    assert not (tmp_path / "runs").exists()


def test_there_are_many():
    assert len(CASES) >= 80


def test_a_run_folder_in_use(place, tmp_path):
    with run_folder.claimed(tmp_path / "new"):
        done = _in_a_process(options()(place, tmp_path))
    assert done.returncode == 2 and "in use by another process" in done.stderr
    _is_one_line(done.stderr)


def test_keras_backend_is_nonsense(place, tmp_path):
    done = _in_a_process(options()(place, tmp_path), KERAS_BACKEND="theano")
    assert done.returncode == 2 and "KERAS_BACKEND=theano" in done.stderr
    _is_one_line(done.stderr)


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_a_backend_that_is_not_installed_names_its_extra(backend, tmp_path):
    """An interpreter that sees nothing installed but click, as after `pip install keras_mtp` alone."""
    import click

    for package in (Path(click.__file__).parent, ROOT / "keras_mtp", ROOT / "recipes"):
        (tmp_path / package.name).symlink_to(package)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "keras_mtp", "recipe", "gsm8k", "--backend", backend],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and f'pip install "keras_mtp[{backend}]"' in done.stderr
    _is_one_line(done.stderr)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_the_checkpoint_is_written(place, tmp_path):
    """A real limit of the system: from then on every file may have 16 KiB, and the weights are larger."""
    script = """
import resource, signal
from keras_mtp import checkpoint, cli

def save(*arguments, save=checkpoint.save, **options):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
    save(*arguments, **options)

checkpoint.save = save
cli.main()
"""
    done = _in_a_process(options()(place, tmp_path), "-c", script)
    assert done.returncode == 2, done.stderr
    assert "The checkpoint must be written" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "recipe.toml",
        "base_licence.txt",
        "metrics.csv",
        "snapshots",  # so that it can go on once there is room
    }


@pytest.mark.slow
def test_tokens_are_never_printed(place, tmp_path):
    """A hub that refuses and repeats the token in its answer: a real server on this machine."""
    import http.server
    import threading

    class Hub(http.server.BaseHTTPRequestHandler):
        seen: list[str] = []  # noqa: RUF012

        def do_GET(self):
            Hub.seen.append(self.headers.get("authorization", ""))
            answer = json.dumps({"error": f"refused: {self.headers.get('authorization')}"}).encode()
            self.send_response(401)
            self.send_header("X-Error-Message", answer.decode())
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_MARKER",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    done = _in_a_process(options("--data", "hub")(place, tmp_path), **env)
    server.shutdown()
    assert any("hf_MARKER" in header for header in Hub.seen), "the token was never sent: no test of anything"
    assert done.returncode == 2 and "openai/gsm8k must be within reach" in done.stderr
    assert "MARKER" not in done.stdout + done.stderr


def _in_a_process(command: list[str], *start: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *(start or ("-m", "keras_mtp")), *command],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.config.backend(), **env},
        capture_output=True,
        text=True,
    )
