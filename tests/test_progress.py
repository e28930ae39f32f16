import pytest

from keras_mtp.progress import console

pytestmark = pytest.mark.any_backend


def test_brackets_are_shown_as_they_are(capsys):
    """A folder may be named so; read as markup, they vanish or end the run."""
    console(True).print("my[final].jsonl: runs/[a]/x[/b]")
    console(False).print("nothing")
    assert capsys.readouterr().err == "my[final].jsonl: runs/[a]/x[/b]\n"
