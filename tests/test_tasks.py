"""Finding a task and its data by name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mtp import tasks
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
        (
            "gsm8",
            "builtin",
            "`task` must be one of: gsm8k, coqa, instruct, jsonl. Received: 'gsm8'. Did you mean 'gsm8k'?",
        ),
        ("chess", "builtin", "`task` must be one of: gsm8k, coqa, instruct, jsonl. Received: 'chess'."),
        ("gsm8k", "buildin", f"{NO_FOLDER} Received: 'buildin'. Did you mean 'builtin'?"),
        ("gsm8k", "no/such", f"{NO_FOLDER} Received: 'no/such'."),
        (
            "instruct",
            "builtin",
            "`data` of the task instruct must be 'hub' or a folder with train.jsonl and test.jsonl (no examples are "
            "generated for it). Received: 'builtin'.",
        ),
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


def test_the_readmes_task_is_one(tmp_path):
    readme = Path(__file__).parent.parent / "README.md"
    made, entry = re.findall(
        r"```py\n(.*?)```", readme.read_text("utf-8").split("## Add a task")[1], re.DOTALL
    )[:2]
    names: dict = {"Sources": tasks.Sources}
    exec(compile(made, str(readme), "exec"), names)
    sources = eval(f"{{{entry}}}", names)["riddles"]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"q": "What is a {name}?", "a": "That."}}\n')
    assert sources.accepts(tmp_path)
    task = sources.path(tmp_path)
    (example,) = task.examples("test")
    assert (
        task.score(example, " That."),
        task.score(example, "This."),
        task.further_scores(example, ""),
    ) == (1, 0, {})
    assert isinstance(task, Task) and task.note == "" and task.source == str(tmp_path)


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
    title = f"{2 * len(ROWS)} problems in GSM8K's format (not GSM8K, which has 8,792)"
    assert (task.title, task.source, task.revision, task.is_benchmark) == (title, "tfds", "1.0.0", False)
    assert {(e.prompt, e.answer) for e in task.examples("train")} == {
        (r["question"], r["answer"]) for r in ROWS
    }
    assert task.score(task.examples("test")[0], task.examples("test")[0].answer) == 1.0
