import pytest

from keras_mtp.generation.stream import TextStream

pytestmark = pytest.mark.any_backend

PIECES = ["Hel", "lo ", "ST", "O", "P", " wor", "ld"]


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def test_text_comes_in_pieces_that_add_up():
    stream = TextStream(decode)
    given = [stream.add([i]) for i in range(7)] + [stream.finish()]
    assert given == [*PIECES, ""]


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_stop_string_is_never_given_even_if_it_comes_in_pieces(step):
    stream = TextStream(decode, ["STOP"])
    given = "".join(stream.add(list(range(7))[i : i + step]) for i in range(0, 7, step)) + stream.finish()
    assert given == "Hello " == stream.text and stream.ended


def test_what_only_began_like_a_stop_string_is_given_later():
    stream = TextStream(decode, ["STORE"])
    assert [stream.add([i]) for i in range(5)] == ["Hel", "lo ", "", "", "STOP"]


def test_half_a_character_waits_for_its_other_half():
    parts = {(0,): "a\ufffd", (0, 1): "a\u00e9", (0, 1, 0): "a\u00e9\ufffd"}
    stream = TextStream(lambda ids: parts[tuple(ids)])
    assert [stream.add([0]), stream.add([1]), stream.add([0]), stream.finish()] == [
        "a",
        "\u00e9",
        "",
        "\ufffd",
    ]
