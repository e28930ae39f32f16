"""A run that is cut off anywhere goes on to the very same result. `test_disk.py` and `test_checkpoint.py` hold the files, tools/crashtest.py the long form."""

import json
import shutil
import signal

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from keras_mtp import disk, pipeline, snapshot
from keras_mtp.errors import Diverged, Interrupted, UserError
from keras_mtp.generation import generator
from tests import tiny_run
from tools.crashes.faulty_disk import FaultyDisk, broken, full

CHANGES = {
    "training__steps": 7,
    "evaluation__every": 3,
    "training__snapshot_every": 2,
    "evaluation__test_limit": 2,
}
BEST = {
    "training__keep": "best",
    "training__accumulation": 2,
    "heads__warmup_patience": 2,
    "heads__freeze": False,
}


class CutOff(keras.callbacks.Callback):
    """Ends the run at the n-th step of all its stages, as a crash would: before, or after, what else follows the step."""

    def __init__(self, step, when="begin"):
        super().__init__()
        self.step, self.when, self.batches = step, when, 0

    def on_train_batch_begin(self, batch, logs=None):
        if self.when == "begin" and self.batches == self.step:
            raise ConnectionError("cut off")
        self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        if self.when == "epoch" and self.batches >= self.step:
            raise ConnectionError("cut off")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_run.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """Uninterrupted runs, by the changes of the recipe, each made once."""
    made = {}

    def run(**changes):
        key = json.dumps(changes, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("whole") / "run"
            pipeline.run(tiny_run.recipe(inputs, **changes), made[key], progress=False)
        return made[key]

    return run


def _require_same(run, expected):
    for file in ("trained", "optimizer"):
        ours, theirs = (load_file(folder / f"checkpoint/{file}.safetensors") for folder in (run, expected))
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name].tobytes() == theirs[name].tobytes(), f"{file}: {name}"
    assert _record(run) == _record(expected)
    for name in ("held_out.csv", "answers.jsonl"):
        assert (run / name).read_bytes() == (expected / name).read_bytes()
    assert not (run / "snapshots").exists()


def _record(run) -> list[list[str]]:
    """The rows of metrics.csv without what a clock says."""
    lines = (run / "metrics.csv").read_text().splitlines()
    timed = [i for i, name in enumerate(lines[0].split(",")) if name in ("seconds", "tokens_per_second")]
    return [[v for i, v in enumerate(line.split(",")) if i not in timed] for line in lines]


@pytest.mark.parametrize("settings", [CHANGES, CHANGES | BEST], ids=["plain", "best"])
def test_cut_off_again_and_again(inputs, whole, tmp_path, settings):
    """In the warm-up, at an evaluation, in the middle of an epoch, in steps with a snapshot and without."""
    recipe = tiny_run.recipe(inputs, **settings)
    for cut in (CutOff(1), CutOff(3), CutOff(4, "epoch"), CutOff(2), CutOff(0)):
        with pytest.raises(ConnectionError):
            pipeline.run(recipe, tmp_path / "run", progress=False, callbacks=[cut])
    pipeline.run(recipe, tmp_path / "run", progress=False)
    _require_same(tmp_path / "run", whole(**settings))


@pytest.mark.any_backend
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_within_a_step_and_it_goes_on(inputs, whole, tmp_path, number):
    class Signal(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_begin(self, batch, logs=None):
            self.steps += 1
            if self.steps == 4:
                signal.raise_signal(number)

    before = signal.getsignal(number)
    watch = Signal()
    recipe = tiny_run.recipe(inputs, **CHANGES)
    with pytest.raises(Interrupted, match="after step 2 of the stage joint") as stopped:
        pipeline.run(recipe, tmp_path / "run", progress=False, callbacks=[watch])
    assert (stopped.value.number, watch.steps) == (number, 4)  # the step under way was ended, no other begun
    assert (tmp_path / "run/snapshots/joint-00000002").is_dir()
    assert signal.getsignal(number) is before
    pipeline.run(recipe, tmp_path / "run", progress=False)
    _require_same(tmp_path / "run", whole(**CHANGES))


@pytest.fixture
def cut(inputs, tmp_path):
    """A run that was cut off after step 5 of the joint stage."""
    with pytest.raises(ConnectionError):
        pipeline.run(
            tiny_run.recipe(inputs, **CHANGES), tmp_path / "run", progress=False, callbacks=[CutOff(7)]
        )
    assert sorted(p.name for p in (tmp_path / "run/snapshots").glob("*-*")) == [
        "joint-00000002",
        "joint-00000004",
    ]
    return tmp_path / "run"


@pytest.mark.any_backend
def test_answers_are_not_made_again(inputs, whole, tmp_path, monkeypatch):
    """Neither those before training, which a snapshot keeps, nor those of a run that is cut off while it judges."""
    asked, left = [], [0]

    def asking(new_batch, prompts, answer=generator.refilled, **settings):
        left[0] -= 1
        if left[0] < 0:
            raise ConnectionError("cut off")
        asked.append(prompts)
        return answer(new_batch, prompts, **settings)

    settings = CHANGES | {"evaluation__test_limit": 3, "evaluation__batch_size": 1}
    recipe = tiny_run.recipe(inputs, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(generator, "refilled", asking)
        for most in (0, 1, 0):
            left[0] = most
            with pytest.raises(ConnectionError):
                pipeline.run(recipe, tmp_path / "run", progress=False)
        left[0] = 99
        pipeline.run(recipe, tmp_path / "run", progress=False)
    assert len(asked) == 2 and asked[0] == asked[1]  # once before training, once after
    _require_same(tmp_path / "run", whole(**settings))


@pytest.mark.any_backend
def test_a_damaged_snapshot_is_left_for_the_one_before(inputs, whole, cut, capsys):
    file = cut / "snapshots/joint-00000004/optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    pipeline.run(tiny_run.recipe(inputs, **CHANGES), cut)
    said = " ".join(capsys.readouterr().err.split())
    assert "optimizer.safetensors is missing or damaged" in said and "goes on after step 2" in said
    _require_same(cut, whole(**CHANGES))


@pytest.mark.any_backend
def test_a_damaged_snapshot_takes_no_whole_ones_place(inputs, cut):
    """It is newer than the next ones that the run will make, of which one is kept."""
    (cut / "snapshots/joint-00000004/position.json").unlink()
    changes = CHANGES | {"training__snapshots_kept": 1, "training__snapshot_every": 3}
    recipe = tiny_run.recipe(inputs, **changes)
    with pytest.raises(ConnectionError):  # after step 3 was kept
        pipeline.run(recipe, cut, progress=False, callbacks=[CutOff(2, "epoch")])
    assert [path.name for path in snapshot.folders(cut / "snapshots")] == ["joint-00000003"]


@pytest.mark.any_backend
@pytest.mark.parametrize("fault", [full, broken])
def test_a_disk_that_takes_nothing_for_a_while(inputs, whole, tmp_path, monkeypatch, fault):
    recipe = tiny_run.recipe(inputs, **CHANGES)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "DISK", FaultyDisk(80, fault))
        with pytest.raises(
            UserError, match=r"The checkpoint must be written to .*snapshots.*was written before is still"
        ):
            pipeline.run(recipe, tmp_path / "run", progress=False)
    assert not list((tmp_path / "run/snapshots").glob("*.partial"))
    pipeline.run(recipe, tmp_path / "run", progress=False)
    _require_same(tmp_path / "run", whole(**CHANGES))


@pytest.mark.any_backend
def test_nothing_whole_left(inputs, cut):
    for each in (cut / "snapshots").glob("*-*"):
        (each / "position.json").unlink()
    with pytest.raises(UserError, match=r"No snapshot in .* is whole"):
        pipeline.run(tiny_run.recipe(inputs, **CHANGES), cut, progress=False)


@pytest.mark.any_backend
def test_another_recipe_or_other_data_are_refused(inputs, cut, tmp_path):
    with pytest.raises(UserError, match=r"Received: training\.steps=8, and there it is 7"):
        pipeline.run(tiny_run.recipe(inputs, **CHANGES | {"training__steps": 8}), cut, progress=False)
    shutil.copytree(inputs, tmp_path / "old")
    try:
        rows = (inputs / "train.jsonl").read_text().splitlines()
        (inputs / "train.jsonl").write_text("\n".join(reversed(rows)) + "\n")
        with pytest.raises(UserError, match="only with the examples it was trained on"):
            pipeline.run(tiny_run.recipe(inputs, **CHANGES), cut, progress=False)
    finally:
        shutil.copytree(tmp_path / "old", inputs, dirs_exist_ok=True)
    assert (cut / "snapshots/joint-00000004").is_dir()


@pytest.mark.any_backend
def test_how_often_snapshots_are_taken_may_change_and_changes_nothing(inputs, whole, cut):
    recipe = tiny_run.recipe(
        inputs, **CHANGES | {"training__snapshot_every": 0, "training__snapshots_kept": 1}
    )
    pipeline.run(recipe, cut, progress=False)
    _require_same(cut, whole(**CHANGES))


@pytest.mark.any_backend
def test_cut_off_after_training_only_judges_again(inputs, whole, cut, monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("cut off")

    recipe = tiny_run.recipe(inputs, **CHANGES)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Judge, "write", fail)
        with pytest.raises(ConnectionError):
            pipeline.run(recipe, cut, progress=False)
    assert (cut / "checkpoint").is_dir() and not (cut / "report.json").exists()
    never = CutOff(0)
    pipeline.run(recipe, cut, progress=False, callbacks=[never])
    assert never.batches == 0
    _require_same(cut, whole(**CHANGES))


TOO_FAST = {
    "training__learning_rate": 3e38,
    "training__learning_rate_warmup": 0.0,
    "training__clip_norm": 0.0,
}


def test_a_loss_that_is_no_number_ends_the_run(inputs, tmp_path):
    recipe = tiny_run.recipe(inputs, **CHANGES | TOO_FAST)
    with pytest.raises(
        Diverged, match=r"must be a finite number\. Received: head_1 .*in step \d of the stage joint"
    ):
        pipeline.run(recipe, tmp_path / "run", progress=False)
    found = json.loads((tmp_path / "run/diverged.json").read_text())
    assert found["stage"] == "joint" and len(found["examples"]) == recipe.training.batch_size
    rows = _record(tmp_path / "run")
    assert rows[-1][:2] == ["joint", str(found["step"])]
    for each in (tmp_path / "run/snapshots").glob("*-*"):
        for file in ("trained", "optimizer"):
            arrays = load_file(each / f"{file}.safetensors").values()
            assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.any_backend
def test_it_may_go_on_to_the_end_all_the_same(inputs, tmp_path):
    changes = TOO_FAST | {"training__on_divergence": "continue"}
    report = pipeline.run(tiny_run.recipe(inputs, **CHANGES | changes), tmp_path / "run", progress=False)
    assert not np.isfinite(report.held_out["head_1"].loss_after)
