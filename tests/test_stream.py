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


PARTS = {1: "😶", 4: "户"}  # tokens 1 and 2, and 4 and 5, are a character each; alone, each of them is U+FFFD


def in_parts(ids: list[int]) -> str:
    text = ""
    for place, token in enumerate(ids):
        if token in PARTS and ids[place + 1 : place + 2] == [token + 1]:
            text += PARTS[token]
        elif token - 1 not in PARTS or ids[place - 1 : place] != [token - 1]:
            text += {0: "Hi ", 3: "用"}.get(token, "\ufffd")
    return text


def test_a_stop_string_of_parts_of_characters_is_never_given():
    stream = TextStream(in_parts, ["用户"])
    given = [stream.add([i]) for i in (0, 3, 4, 5)] + [stream.finish()]
    assert given == ["Hi ", "", "", "", ""] and stream.text == "Hi " and stream.ended


def test_tokens_of_a_text_are_all_of_them_unless_a_stop_string_ended_it():
    stream = TextStream(in_parts)
    stream.add([0, 1, 2])
    stream.finish()
    assert stream.text == "Hi 😶" and stream.ids_of_text() == [0, 1, 2]


@pytest.mark.parametrize(("second", "ids"), [(".\n", [0, 1]), ("\n", [0])])
def test_tokens_up_to_a_stop_string_are_the_fewest_that_hold_all_of_the_text(second, ids):
    stream = TextStream(lambda ids: "".join(["Hello", second, "And"][i] for i in ids), ["\n"])
    stream.add([0, 1, 2])
    assert stream.text == f"Hello{second}".strip() and stream.ids_of_text() == ids


def test_half_a_character_waits_for_its_other_half():
    parts = {(0,): "a\ufffd", (0, 1): "a\u00e9", (0, 1, 0): "a\u00e9\ufffd"}
    stream = TextStream(lambda ids: parts[tuple(ids)])
    assert [stream.add([0]), stream.add([1]), stream.add([0]), stream.finish()] == [
        "a",
        "\u00e9",
        "",
        "\ufffd",
    ]
