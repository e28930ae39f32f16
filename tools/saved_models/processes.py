"""What is made in processes of their own, since each backend wants one: runs, exports, answers. What is there is not made again."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from tools.saved_models.answering import Job

ROOT = Path(__file__).resolve().parent.parent.parent


def tiny_run_in(folder: Path) -> Path:
    """A run of the tests' tiny model, made on torch unless it is there; its data lie in the folder, too."""
    from tests import tiny_run

    run = folder / "run"
    if not (run / "report.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        tiny_run.write_inputs(folder)
        settings = tiny_run.settings(folder) | {"training.compile": "false", "evaluation.test_limit": 0}
        told = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        command("recipe", "gsm8k", "--backend", "torch", "--run", str(run), "--quiet", *told)
    return run


def exported(run: Path, folder: Path) -> Path:
    """The run as a SavedModel, made by the command unless it is there."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        command("export", str(run), str(folder))
    return folder


def command(*words: str) -> None:
    """`keras-mtp`, in a process of its own, which chooses its own backend."""
    run_python("-m", "keras_mtp", *words)


def answer(job: Job) -> None:
    """Lets a system answer, in a process of its own."""
    file = Path(job.folder) / f"{job.system}-job.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(job)))
    run_python("-m", "tools.saved_models.answering", str(file))


def run_python(*words: str) -> None:
    defaults = {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment = defaults | os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("KERAS_BACKEND", None)
    done = subprocess.run([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"Error: {' '.join(words[:3])} failed, see above.")
