"""Several devices and processes give what one does: the same losses, the same files, written by one of them."""

import contextlib
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

from keras_mtp import backend, cli, distribution
from keras_mtp.backend.group import Group
from keras_mtp.data.batches import Batches
from keras_mtp.errors import UserError
from keras_mtp.journal import Journal
from keras_mtp.recipe import Recipe, apply_overrides, to_toml
from tests import several_devices, tiny, tiny_run

ROOT = Path(__file__).parent.parent
BACKEND = keras.config.backend()
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="torch's own")
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


def test_more_devices_than_there_are():
    message = r"`distribution\.data` .*must be .*the number of (devices|processes).*[ =]64\b.*, and \d"
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


# Trainings in processes of their own


@pytest.fixture(scope="module")
def on_simulated_devices(tmp_path_factory):
    """What comes of a training, by method and devices, made by one process with several devices."""

    def train(method, *devices):
        found = tmp_path_factory.mktemp("devices") / "found.json"
        flags = {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"}
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


TRAININGS = {
    "jax": [("prefix+lora", ["1x1", "2x1", "4x1", "1x4", "2x2"]), ("full", ["1x1", "2x2"])],
    "tensorflow": [("full", ["1x1", "2x1"])],
    "torch": [],  # which has a process for each device
}


@pytest.mark.slow
@pytest.mark.parametrize(("method", "devices"), TRAININGS[BACKEND])
def test_devices_change_no_loss(on_simulated_devices, method, devices):
    found = on_simulated_devices(method, *devices)
    alone = np.array(found["1x1"]["losses"])
    assert alone[-1] < alone[0] - 0.1  # there was something to learn
    for name in devices:
        np.testing.assert_allclose(found[name]["losses"], alone, rtol=0, atol=TOLERANCE, err_msg=name)
        split = int(name.split("x")[1])
        assert found[name]["part"] == pytest.approx(1 / split, abs=0.05), name


@on_torch
@pytest.mark.slow
@pytest.mark.parametrize("method", ["prefix+lora", "full"])
def test_torchrun_changes_no_loss(tmp_path, method):
    """Two processes end with the same weights to the last bit, and their losses are those of one."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    path = tmp_path / "found.json"
    _finished(_start([*torchrun, "tests.several_devices", str(path), method, "2x1"], {}))
    chief, other = (json.loads(each.read_text())["2x1"] for each in (path, tmp_path / "found.json.1"))
    assert chief["weights"] == other["weights"] and chief["losses"] == other["losses"]
    alone = several_devices.trained(method, 1, 1)["losses"]
    assert alone[-1] < alone[0] - 0.1  # there was something to learn
    np.testing.assert_allclose(chief["losses"], alone, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_run.write_inputs(folder)
    return folder


def _processes(recipe: Path, run: Path) -> list[subprocess.Popen]:
    """Two, each with a device of its own, as a user starts them."""
    command = [sys.executable, "-m", "keras_mtp", "recipe", str(recipe), "--run", str(run)]
    command += ["--backend", BACKEND, "--set", "distribution.data=2"]
    return [_start(command, told) for told in _told(2)]


def _told(count: int) -> list[dict[str, str]]:
    """What each of so many processes is told by its environment; on torch it is torchrun that tells it."""
    ports = _free_ports(count)
    if BACKEND == "jax":
        told = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{ports[0]}", "JAX_NUM_PROCESSES": str(count)}
        return [told | {"JAX_PROCESS_ID": str(i)} for i in range(count)]
    if BACKEND == "torch":
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "WORLD_SIZE": str(count)}
        return [told | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    workers = [f"127.0.0.1:{port}" for port in ports]
    tasks = [{"type": "worker", "index": i} for i in range(count)]
    return [{"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task})} for task in tasks]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        free = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in free]


def _record(run: Path) -> np.ndarray:
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    wanted = [i for i, name in enumerate(rows[0]) if name.endswith("_loss")]
    return np.array([[float(row[i] or "nan") for i in wanted] for row in rows[1:]])


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
        training__compile=False,
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
    alone = [sys.executable, "-m", "keras_mtp", "recipe", str(path), "--backend", BACKEND, "--run"]
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


# torch


@on_torch
def test_gradients_are_summed_in_few_buckets():
    from keras_mtp.backend.torch_devices import buckets

    torch = backend.torch()
    sizes = [(1, 4), (1, 4), (9, 4), (1, 4), (1, 2), (2, 2)]  # numbers, bytes of each
    tensors = [torch.zeros(n, dtype=torch.float32 if wide == 4 else torch.float16) for n, wide in sizes]
    found = buckets(tensors, limit=8)
    assert [id(tensor) for bucket in found for tensor in bucket] == [id(tensor) for tensor in tensors]
    assert [[tensor.nbytes for tensor in bucket] for bucket in found] == [[4, 4], [36], [4], [2, 4]]


# TensorFlow: what Keras does wrong, and is put right in tensorflow_devices.py

UPSTREAM = """
import json, sys, keras, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()

def error(call, *arguments):
    try:
        call(*arguments)
    except (RuntimeError, ValueError) as failed:
        return str(failed)
    return ""

def step(accumulation):
    weight = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0, gradient_accumulation_steps=accumulation)
    optimizer.build([weight])
    tf.function(lambda: strategy.run(lambda: optimizer.apply([tf.constant([1.0])], [weight])))()
    return weight.numpy().tolist()

def fit(knows_of_devices):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(1)(inputs)})
    model.compile("sgd", loss={"a": "mse"})
    model.optimizer.build(model.trainable_variables)
    if not knows_of_devices:
        model._distribute_strategy = None
    batch = tf.ones((4, 2)), {"a": tf.ones((4, 1))}
    data = tf.data.Dataset.from_tensors(batch).repeat()
    model.fit(strategy.distribute_datasets_from_function(lambda context: data), steps_per_epoch=1, verbose=0)

with strategy.scope():
    found = [step(None), error(step, 2), error(fit, True), error(fit, False)]
print("FOUND" + json.dumps(found))
"""


@on_tensorflow
@pytest.mark.slow
def test_upstream_still_fails_on_several_devices():
    processes = [_start([sys.executable, "-c", UPSTREAM], told) for told in _told(2)]
    said = [_finished(process).partition("FOUND")[2].splitlines()[0] for process in processes]
    weight, accumulation, batch, losses = json.loads(said[0])
    assert weight == [-2.0]  # each device's gradient of 1 was clipped to 1, not their sum
    assert "`merge_call` called while defining a new graph" in accumulation
    assert "Attempt to convert a value (PerReplica" in batch
    assert "Invalid reduction dimension 0 for input with 0 dimensions" in losses
