import pytest

from keras_mtp.untrusted import is_plain_name

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("model-00001-of-00002.safetensors", True),
        (".hidden", True),
        ("a b", True),
        ("", False),
        (".", False),
        ("..", False),
        ("a/b", False),
        ("../a", False),
        ("/etc/passwd", False),
        ("x" * 256, False),
    ],
)
def test_a_plain_name_is_that_of_a_file_in_its_own_folder(name, plain):
    assert is_plain_name(name) == plain
