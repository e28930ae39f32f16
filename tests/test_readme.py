"""The README's Python example, run as it stands there."""

import re
from pathlib import Path

import keras
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_python_example(tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    loss = names["model"].evaluate(
        names["x"], names["y"], sample_weight=names["w"], verbose=0, return_dict=True
    )
    assert {"head_1_loss", "head_2_loss"} <= set(loss) and loss["loss"] > 0
    assert (tmp_path / "tuned.keras").stat().st_size > 4 * names["model"].count_params()
    (tmp_path / "tuned.keras").unlink()
    assert keras.config.backend() in ("jax", "tensorflow", "torch")


def test_every_module_is_in_the_tree_or_in_a_folder_of_it():
    tree = README.read_text("utf-8").split("## The tree")[1]
    package = README.parent / "keras_mtp"
    named = {"__init__.py", "__main__.py", "errors.py", "memory.py"}  # too small to explain
    for path in package.glob("*.py"):
        assert path.name in named or path.name in tree, path.name
