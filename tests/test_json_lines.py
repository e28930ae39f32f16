"""JSON Lines, read strictly."""

import gzip

import pytest

from keras_mtp.data import json_lines
from keras_mtp.data.json_lines import read_json, read_jsonl
from keras_mtp.errors import UserError

pytestmark = pytest.mark.any_backend


def test_reads_objects_with_their_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "caf\xc3\xa9"}\n\n{"a": "line\xe2\x80\xa8separator"}\r\n{"a": 3}')
    assert list(read_jsonl(path)) == [(1, {"a": "café"}), (3, {"a": "line\u2028separator"}), (4, {"a": 3})]


@pytest.mark.parametrize(
    "line",
    [
        *(b'{"a": 1', b"[1, 2]", b"7", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"),
        *(
            b'{"a": NaN}',
            b'{"a": -Infinity}',
            b'{"a": "\\ud83e"}',
            b'{"\\ud83e": 1}',
            b'{"a": 1, "a": 2}',
            b"{'a': 1}",
        ),
    ],
    ids=[
        *("cut off", "list", "number", "not UTF-8", "too deep", "number too long"),
        *(
            "NaN",
            "infinity",
            "half a surrogate pair",
            "half a pair in a key",
            "key twice",
            "Python, not JSON",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(UserError) as error:
        list(read_jsonl(path))
    assert "rows.jsonl, line 2" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing\.jsonl \(No such file or directory\)"):
        list(read_jsonl(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match="directory"):
        list(read_jsonl(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b'{"a": 1}\n'), "which is a gzip file: unpack it"),
        (b"PAR1\x15\x04", "which is a Parquet file"),
        (b"PK\x03\x04", "which is a zip file"),
        ('{"a": 1}\n'.encode("utf-16"), "which is text in UTF-16: save it as UTF-8"),
        (b'[\n{"a": 1},\n{"a": 2}\n]\n', "line 1, which opens one JSON array"),
    ],
    ids=["gzip", "Parquet", "zip", "UTF-16", "array"],
)
def test_another_kind_of_file_is_called_by_its_name(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_jsonl(tmp_path / "rows.jsonl"))
    assert message in str(error.value) and "rows.jsonl" in str(error.value)


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": "\\ud83e\\udd99 \\\\ud83e"}\n')
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == [(1, {"a": "\N{LLAMA} \\ud83e"})]


def test_the_place_of_a_slip_is_that_in_the_file(tmp_path):
    """json.loads would say "line 2 column 1" of a line whose closing brace is missing."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"line 2, column 8 \(Expecting ',' delimiter\)"):
        list(read_jsonl(path))


def test_a_file_that_is_one_object(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'\xef\xbb\xbf{\n"a": ["caf\xc3\xa9"]\n}\n')
    assert read_json(path) == {"a": ["caf\u00e9"]}


def test_a_file_that_is_too_large_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "LARGEST_JSON", 1 << 20)
    (tmp_path / "x.json").write_bytes(b'{"a": "' + b"a" * (1 << 20) + b'"}')
    with pytest.raises(UserError, match=r"at most 1 MiB. Received: .*x\.json, which is larger"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_is_no_file_is_named(tmp_path, name):
    with pytest.raises(UserError, match="must be a file that can be read"):
        read_json(tmp_path / name)
