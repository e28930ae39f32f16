"""Finding a task and its data by name."""

import subprocess
import sys

import pytest

from keras_mtp.errors import UserError
from keras_mtp.tasks import TASKS, Task, load_task
from tests.test_sources import ROWS, write_tfds

pytestmark = pytest.mark.any_backend

NO_FOLDER = "`data` of the task gsm8k must be 'hub', 'tfds', 'builtin' or a folder that exists."
NO_FILE = "`data` of the task jsonl must be a JSON Lines file that exists, or a folder with train.jsonl and test.jsonl."
ROW = '{"question": "How many?", "answer": "#### 3"}\n'


@pytest.mark.parametrize("name", [name for name, sources in TASKS.items() if "builtin" in sources.named])
def test_every_task_has_generated_examples_that_score_as_right(name):
    task = load_task(name, "builtin")
    assert isinstance(task, Task)
    assert (task.name, task.source, task.is_benchmark) == (name, "builtin", False)
    for split in ("train", "test"):
        example = task.examples(split)[0]
        assert task.score(example, example.answer) == 1.0
        assert task.score(example, "") == 0.0


def test_a_folder_is_read(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(ROW.replace("many", name))
    task = load_task("gsm8k", str(tmp_path))
    assert (task.source, task.revision, len(task.examples("train"))) == (str(tmp_path), None, 1)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("gsm8", "builtin", "`task` must be one of: gsm8k, jsonl. Received: 'gsm8'. Did you mean 'gsm8k'?"),
        ("chess", "builtin", "`task` must be one of: gsm8k, jsonl. Received: 'chess'."),
        ("gsm8k", "buildin", f"{NO_FOLDER} Received: 'buildin'. Did you mean 'builtin'?"),
        ("gsm8k", "no/such", f"{NO_FOLDER} Received: 'no/such'."),
        ("jsonl", "hub", f"{NO_FILE} Received: 'hub'."),
        ("jsonl", "no/such", f"{NO_FILE} Received: 'no/such'."),
        ("gsm8k", __file__, f"{NO_FOLDER} Received: {__file__!r}."),
    ],
)
def test_what_does_not_exist_is_refused_with_a_suggestion(name, data, message):
    with pytest.raises(UserError) as error:
        load_task(name, data)
    assert str(error.value) == message


def test_a_folder_without_the_files_names_the_file(tmp_path):
    with pytest.raises(UserError, match=r"train\.jsonl"):
        load_task("gsm8k", str(tmp_path))


def test_tasks_need_neither_keras_nor_datasets():
    code = "import sys, keras_mtp.tasks; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not {"keras", "tensorflow", "torch", "jax", "datasets", "tensorflow_datasets"} & set(
        modules.split()
    )


def test_tfds_examples_are_the_hubs(tmp_path, monkeypatch):
    test = [{**row, "question": f"Test: {row['question']}"} for row in ROWS]
    monkeypatch.setenv(
        "TFDS_DATA_DIR", str(write_tfds(tmp_path, "array_record", {"train": ROWS, "test": test}))
    )
    task = load_task("gsm8k", "tfds")
    assert (task.title, task.source, task.revision, task.is_benchmark) == ("GSM8K", "tfds", "1.0.0", True)
    assert {(e.prompt, e.answer) for e in task.examples("train")} == {
        (r["question"], r["answer"]) for r in ROWS
    }
    assert task.score(task.examples("test")[0], task.examples("test")[0].answer) == 1.0
