"""Every example in the docstrings of the public names runs, on a tiny model in place of the pretrained one.

An example may use the names that `names` prepares. One that cannot run, or whose printed value is another, fails.
"""

import contextlib
import doctest
import inspect
import io
import re
import textwrap
from collections.abc import Iterator

import keras
import numpy as np
import pytest

import keras_mtp
from keras_mtp import pipeline
from tests import tiny_run

FENCED = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def _docstrings() -> Iterator[tuple[str, str]]:
    """Of every public name, and of the methods that its class defines itself."""
    for name in keras_mtp.__all__:
        thing = getattr(keras_mtp, name)
        yield name, inspect.getdoc(thing) or ""
        for method, member in vars(thing).items() if inspect.isclass(thing) else ():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(function) and not method.startswith("_"):
                yield f"{name}.{method}", inspect.getdoc(function) or ""


DOCSTRINGS = dict(_docstrings())
FENCES = [
    (f"{name} ({number})", textwrap.dedent(match[2]))
    for name, text in DOCSTRINGS.items()
    for number, match in enumerate(FENCED.finditer(text), start=1)
]
PROMPTS = [(name, text) for name, text in DOCSTRINGS.items() if ">>> " in text]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run; the model's file lies beside it."""
    folder = tmp_path_factory.mktemp("docstrings")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(folder, heads__count=1, training__steps=1, evaluation__limit=1)
    pipeline.run(recipe, folder / "run", progress=False)
    return folder / "run"


@pytest.fixture
def names(run, tmp_path, monkeypatch) -> dict:
    """What an example finds: the packages, a model with one head that can be trained, its data, a finished run."""
    monkeypatch.chdir(tmp_path)
    model = keras_mtp.MTPCausalLM.from_preset(
        str(run.parent / "tiny.gguf"), prefix_length=3, heads=[keras_mtp.TransformerHead()]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile("adam", loss=dict.fromkeys(model.head_names, loss))
    return {
        "keras": keras,
        "keras_mtp": keras_mtp,
        "np": np,
        "model": model,
        "backbone": model.backbone,
        "tokenizer": model.tokenizer,
        "examples": [keras_mtp.Example(id="1", prompt="What is 2 + 3?", answer="5")],
        "ids": np.array([[5, 6, 7, 8]], "int32"),
        "mask": np.ones((1, 4), "int32"),
        "run": str(run),
        **{name: getattr(keras_mtp, name) for name in keras_mtp.__all__},
    }


def _on_the_tiny_model(code: str, run) -> str:
    return code.replace("smollm2-135m", str(run.parent / "tiny.gguf"))


@pytest.mark.parametrize(("name", "code"), FENCES, ids=[name for name, _ in FENCES])
def test_fenced_example(name, code, names, run):
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(_on_the_tiny_model(code, run), name, "exec"), names)


@pytest.mark.parametrize(("name", "text"), PROMPTS, ids=[name for name, _ in PROMPTS])
def test_prompt_example(name, text, names, run):
    example = doctest.DocTestParser().get_doctest(_on_the_tiny_model(text, run), names, name, None, None)
    assert example.examples
    said = io.StringIO()
    outcome = doctest.DocTestRunner(verbose=False).run(example, out=said.write)
    assert outcome.failed == 0, said.getvalue()


def test_every_public_name_has_an_example():
    without = [n for n, text in DOCSTRINGS.items() if "." not in n and not re.search(r"```python|>>> ", text)]
    assert without == ["UserError"]  # nobody makes one


def test_an_example_that_cannot_run_is_found():
    code = textwrap.dedent(FENCED.search("x\n    ```python\n    model.nonsense()\n    ```\n")[2])
    with pytest.raises(AttributeError):
        exec(code, {"model": keras_mtp})
