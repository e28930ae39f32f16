"""Which format can hold which run, said before anything slow begins."""

import importlib.util

import pytest

from keras_mtp.errors import UserError
from keras_mtp.export import formats
from keras_mtp.recipe import Recipe, updated

pytestmark = pytest.mark.any_backend


def _recipe(method: str, **changes) -> Recipe:
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    alone = {"heads.freeze": False} if method == "heads" else {}
    return updated(Recipe(), {"tuning.method": method, "heads.count": 1, **alone, **changes})


@pytest.mark.parametrize(
    ("method", "can"),
    [
        ("prefix", {"saved_model", "onnx", "peft"}),
        ("prefix_kv", {"saved_model", "onnx", "peft"}),
        ("lora", {"saved_model", "onnx", "peft", "transformers"}),
        ("full", {"saved_model", "onnx", "transformers"}),
        ("heads", {"saved_model", "onnx", "transformers"}),
        ("prefix+lora", {"saved_model", "onnx"}),
        ("prefix_kv+lora", {"saved_model", "onnx"}),
    ],
)
def test_what_holds_what(method, can):
    for name in formats.FORMATS:
        if name in can:
            formats.require(name, _recipe(method))
            continue
        with pytest.raises(UserError, match=rf"`--format {name}` cannot hold") as refused:
            formats.require(name, _recipe(method))
        assert "tuning.method=" in str(refused.value) or "one kind" in str(refused.value)
        assert {other for other in formats.FORMATS if f"`--format {other}`" in str(refused.value)} == {
            name
        } | can


def test_a_prefix_of_no_length_is_none():
    recipe = _recipe("prefix", prefix__length=0, heads__freeze=False)
    formats.require("transformers", recipe)
    with pytest.raises(UserError, match="the heads alone"):
        formats.require("peft", recipe)


def test_heads_that_are_left_out_are_named():
    (note,) = formats.require("peft", _recipe("lora", heads__count=2))
    assert "head_2 and head_3 will not be in it" in note and "`--format saved_model`" in note
    assert formats.require("saved_model", _recipe("lora")) == []
    assert formats.require("onnx", _recipe("lora", heads__count=0)) == []


@pytest.mark.parametrize(
    ("name", "absent"), [("peft", "peft"), ("transformers", "transformers"), ("onnx", "onnxruntime")]
)
def test_what_is_not_installed_is_said_with_how_to_get_it(name, absent, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda package: None if package == absent else real(package)
    )
    with pytest.raises(UserError, match=rf'Not installed: {absent}. Run: pip install "keras_mtp\[{name}\]"'):
        formats.require(name, _recipe("lora"))
    formats.require("saved_model", _recipe("lora"))


def test_every_format_is_described():
    assert all(f"{name}: {form.title}" in formats.described() for name, form in formats.FORMATS.items())
