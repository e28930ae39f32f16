"""What a recipe's template may be; how templates render is in test_template_sandbox.py and test_tokenizer.py."""

import doctest

import pytest

import keras_mtp.data.chat_template
from keras_mtp.data.chat_template import compile_template, read_template
from keras_mtp.errors import UserError

pytestmark = pytest.mark.any_backend

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def test_the_docstrings_example():
    assert doctest.testmod(keras_mtp.data.chat_template).failed == 0


def test_a_template_is_the_models_own_or_text_or_a_file(tmp_path):
    (tmp_path / "mine.jinja").write_text(TEMPLATE)
    assert read_template("chat") == "chat"
    assert read_template(TEMPLATE) == TEMPLATE
    assert read_template(str(tmp_path / "mine.jinja")) == TEMPLATE


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chta", r"must be chat \(the model's own\), Jinja2 text .* Received: 'chta'"),
        ("", "Received: ''"),
        ("mine.txt", "ends in .jinja"),
        ("missing.jinja", r"Received: missing\.jinja \(No such file or directory\)"),
    ],
)
def test_anything_else_is_refused(template, message):
    with pytest.raises(UserError, match=message):
        read_template(template)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "x.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(UserError, match="not UTF-8"):
        read_template(str(tmp_path / "x.jinja"))


def test_what_a_template_says_it_wants_is_passed_on():
    with pytest.raises(UserError, match=r"refuses these messages: no system turns, please$"):
        compile_template("{{ raise_exception('no system turns,\nplease.') }}")(messages=[])
