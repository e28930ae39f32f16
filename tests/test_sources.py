"""Files and the hub. The hub is asked in a fresh process: its client reads the environment when imported."""

import json
import os
import subprocess
import sys

import pyarrow
import pytest

from keras_mtp.data.sources import read_jsonl
from keras_mtp.errors import UserError

ASK_THE_HUB = """
import time
from keras_mtp.data.sources import load_hub
from keras_mtp.errors import UserError

{before}
start = time.monotonic()
try:
    print(load_hub("openai/gsm8k", "main", "test", other_ways="Use --data DIR or --data builtin."))
except UserError as error:
    print("UserError:", error)
print(time.monotonic() - start)
"""


def ask_the_hub(tmp_path, before="", **environment):
    """What `load_hub` returned or said, and the seconds it took, with `tmp_path` as its cache."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK_THE_HUB.format(before=before)],
        env={**clean, "HF_HOME": str(tmp_path), "no_proxy": "*", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    *said, seconds = done.stdout.splitlines()
    return "\n".join(said), float(seconds)


def write_cache(home, rows):
    """A copy of `openai/gsm8k` as `datasets` leaves it in its cache."""
    folder = home / "datasets" / "openai___gsm8k" / "main" / "0.0.0" / "c0ffee"
    folder.mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.ipc.new_stream(str(folder / "gsm8k-test.arrow"), table.schema) as writer:
        writer.write_table(table)
    info = {
        "config_name": "main",
        "dataset_name": "gsm8k",
        "features": {key: {"dtype": "string", "_type": "Value"} for key in rows[0]},
        "splits": {"test": {"name": "test", "num_examples": len(rows), "dataset_name": "gsm8k"}},
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_reads_objects_with_their_line_numbers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": "caf\xc3\xa9"}\n\n{"a": "line\xe2\x80\xa8separator"}\r\n{"a": 3}')
    assert list(read_jsonl(path)) == [(1, {"a": "café"}), (3, {"a": "line\u2028separator"}), (4, {"a": 3})]


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1', b"[1, 2]", b"7", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["cut off", "list", "number", "not UTF-8", "too deep", "number too long"],
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
    ("environment", "reason"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "OfflineModeIsEnabled"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "ConnectError"),
    ],
    ids=["offline by choice", "nobody answers"],
)
def test_without_the_hub_one_short_error_comes_at_once(tmp_path, environment, reason):
    said, seconds = ask_the_hub(tmp_path, **environment)
    assert said == (
        "UserError: openai/gsm8k must be within reach on the Hugging Face hub or in its cache. "
        f"Received: {reason}. Use --data DIR or --data builtin."
    )
    assert seconds < 12  # `datasets` alone retries for 23


def test_without_the_hub_its_cache_is_read(tmp_path):
    rows = [{"question": "2 + 2?", "answer": "#### 4"}, {"question": "3 + 3?", "answer": "#### 6"}]
    write_cache(tmp_path, rows)
    said, seconds = ask_the_hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said == f"HubRows(rows={rows}, revision='c0ffee')"
    assert seconds < 12


def test_without_the_package_the_other_ways_are_named(tmp_path):
    said, _ = ask_the_hub(tmp_path, before="import sys; sys.modules['datasets'] = None")
    assert said.startswith("UserError: `datasets` must be installed to read openai/gsm8k")
    assert said.endswith("Use --data DIR or --data builtin.")
