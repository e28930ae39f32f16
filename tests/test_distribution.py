"""Several devices and processes give what one does: the same losses, the same files, written by one of them."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner

from keras_mtp import cli, distribution
from keras_mtp.backend.group import Group
from keras_mtp.data.batches import Batches
from keras_mtp.errors import UserError
from keras_mtp.journal import Journal
from keras_mtp.recipe import Recipe, apply_overrides, to_toml
from tests import tiny, tiny_run

ROOT = Path(__file__).parent.parent
BACKEND = keras.config.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
TOLERANCE = 1e-4  # nats


class Member(Group):
    """One of several processes, for what needs no others to be there."""

    def __init__(self, process, processes, data, model=1):
        super().__init__(data, model)
        self.process, self.processes = process, processes


# What a recipe says


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("data", "accumulation", "fits"), [(4, 1, True), (4, 2, True), (8, 2, False), (3, 1, False)]
)
def test_devices_must_divide_a_micro_batch(data, accumulation, fits):
    changes = [f"distribution.data={data}", f"training.accumulation={accumulation}", "training.batch_size=8"]
    if fits:
        assert apply_overrides(Recipe(), changes).distribution.data == data
        return
    with pytest.raises(
        UserError, match=rf"`distribution\.data` must divide .* distribution\.data={data}, batch"
    ):
        apply_overrides(Recipe(), changes)


@pytest.mark.skipif(BACKEND == "jax", reason="there it can be more")
def test_weights_are_split_on_jax_only():
    with (
        pytest.raises(UserError, match=r"`distribution\.model` must be 1 .*Use --backend jax"),
        distribution.begun(1, 2),
    ):
        pass


@on_jax
def test_more_devices_than_there_are():
    message = r"must be the number of devices. Received: 64 x 1, and \d"
    with pytest.raises(UserError, match=message), distribution.begun(64, 1):
        pass
    assert distribution.active().processes == 1


def test_one_device_needs_nothing():
    with distribution.begun(1, 1) as group:
        assert type(group) is Group and group.is_chief and distribution.active() is group
        assert group.rows(8) == slice(0, 8)


@on_jax
def test_a_study_is_one_process(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(cli.cli, ["study", "gsm8k", "--backend", "jax"])
    assert result.exit_code == 2 and "`study` must be started as one process" in result.output


# What a process does


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("processes", "data", "model"), [(1, 4, 1), (2, 4, 1), (4, 4, 1), (4, 2, 2), (2, 1, 2)]
)
def test_processes_feed_all_rows(processes, data, model):
    """Each row goes to every process that has a device for it, and to no other."""
    fed = [np.arange(8)[Member(place, processes, data, model).rows(8)] for place in range(processes)]
    devices = np.arange(data * model).reshape(data, model) * processes // (data * model)  # whose each one is
    for place, rows in enumerate(fed):
        of_devices = [row for row in range(8) if place in devices[row * data // 8]]
        assert rows.tolist() == of_devices


@pytest.mark.any_backend
def test_rows_of_all_processes_are_the_batch():
    """Weights are those of the whole optimizer batch, whoever feeds the row."""
    options = {"heads": ("head_1", "head_2"), "steps": 3, "batch_size": 8, "accumulation": 2}
    whole = Batches(tiny.encoded(20), **options)
    parts = [Batches(tiny.encoded(20), rows=Member(place, 2, 4).rows, **options) for place in range(2)]
    for index in range(whole.num_batches):
        together = keras.tree.map_structure(
            lambda *rows: np.concatenate(rows), *(part[index] for part in parts)
        )
        keras.tree.map_structure(np.testing.assert_array_equal, whole[index], together)


@pytest.mark.any_backend
def test_only_the_chief_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(distribution, "_active", [Member(1, 2, 2)])
    journal = Journal(tmp_path / "answers.jsonl")
    assert journal.piece("question", lambda: "answer") == "answer"
    with distribution.own_folder(tmp_path / "run", lambda folder: pytest.fail("claims it")) as own:
        (own / "x").write_text("x")
    assert not own.exists() and not list(tmp_path.iterdir())


@pytest.mark.any_backend
def test_what_the_chief_refuses_all_refuse():
    def refuse():
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        distribution.by_chief(refuse)
    assert distribution.by_chief(lambda: "yes") == "yes"


# JAX


@pytest.fixture(scope="module")
def on_simulated_devices(tmp_path_factory):
    """What comes of a training, by method and devices, made by one process with four devices."""

    def train(method, *devices):
        found = tmp_path_factory.mktemp("devices") / "found.json"
        flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        _finished(
            _start([sys.executable, "-m", "tests.several_devices", str(found), method, *devices], flags)
        )
        return json.loads(found.read_text())

    return train


def _start(command: list[str], variables: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finished(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code, said
    return said


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "devices"), [("prefix+lora", ["1x1", "2x1", "4x1", "1x4", "2x2"]), ("full", ["1x1", "2x2"])]
)
def test_devices_change_no_loss(on_simulated_devices, method, devices):
    found = on_simulated_devices(method, *devices)
    alone = np.array(found["1x1"]["losses"])
    assert alone[-1] < alone[0] - 0.1  # there was something to learn
    for name in devices:
        np.testing.assert_allclose(found[name]["losses"], alone, rtol=0, atol=TOLERANCE, err_msg=name)
        split = int(name.split("x")[1])
        assert found[name]["part"] == pytest.approx(1 / split, abs=0.05), name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_run.write_inputs(folder)
    return folder


def _processes(recipe: Path, run: Path) -> list[subprocess.Popen]:
    """Two, each with a device of its own, as a user starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [
        sys.executable,
        "-m",
        "keras_mtp",
        "recipe",
        str(recipe),
        "--run",
        str(run),
        "--backend",
        "jax",
    ]
    return [
        _start([*command, "--set", "distribution.data=2"], told | {"JAX_PROCESS_ID": str(i)})
        for i in range(2)
    ]


def _record(run: Path) -> np.ndarray:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    wanted = [i for i, name in enumerate(rows[0]) if name.endswith("_loss")]
    return np.array([[float(row[i] or "nan") for i in wanted] for row in rows[1:]])


@on_jax
@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(inputs, tmp_path):
    """One of two is killed, and the other says so at once. One device alone, or two again, do the rest: as if nothing had been."""
    recipe = tiny_run.recipe(
        inputs,
        heads__count=1,
        training__steps=300,
        evaluation__every=300,
        training__snapshot_every=20,
        training__keep="best",
        evaluation__test_limit=1,
    )
    path, run = tmp_path / "recipe.toml", tmp_path / "run"
    path.write_text(to_toml(recipe))
    chief, other = _processes(path, run)
    deadline = time.monotonic() + 300
    while not (run / "snapshots/joint-00000020").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    said = _finished(chief, 2)
    assert "Error: All processes of a run must stay until its end, and one has gone" in said
    assert "Traceback" not in said
    _finished(other, -signal.SIGKILL)
    assert not (run / "report.json").exists()

    shutil.copytree(run, tmp_path / "two")
    again = _processes(path, tmp_path / "two")
    alone = [sys.executable, "-m", "keras_mtp", "recipe", str(path), "--backend", "jax", "--run"]
    whole = _start([*alone, str(tmp_path / "whole")], {})
    assert "goes on after step" in _finished(_start([*alone, str(run)], {}))
    _finished(whole)
    chief_said, other_said = (_finished(process) for process in again)
    assert "goes on after step" in chief_said and "held-out loss" not in other_said
    for folder in (run, tmp_path / "two"):
        np.testing.assert_allclose(_record(folder), _record(tmp_path / "whole"), rtol=0, atol=TOLERANCE)
        names = [{path.name for path in made.iterdir()} for made in (folder, tmp_path / "whole")]
        assert names[0] == names[1] and "checkpoint" in names[0]
        assert (folder / "answers.jsonl").read_text() == (tmp_path / "whole/answers.jsonl").read_text()
