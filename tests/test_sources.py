"""The hub and TFDS. The hub is asked in a fresh process: its client reads the environment when imported."""

import json
import os
import subprocess
import sys

import datasets
import pyarrow
import pytest

from keras_mtp.data.sources import load_tfds

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


def write_cache(home, splits, owner="openai", name="gsm8k", config="main"):
    """A copy of a data set as `datasets` leaves it in its cache; `splits` has the rows of each."""
    folder = home / "datasets" / f"{owner}___{name}" / config / "0.0.0" / "c0ffee"
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(str(folder / f"{name}-{split}.arrow"), table.schema) as writer:
            writer.write_table(table)
    info = {
        "config_name": config,
        "dataset_name": name,
        "features": datasets.Features.from_arrow_schema(table.schema).to_dict(),
        "splits": {
            split: {"name": split, "num_examples": len(rows), "dataset_name": name}
            for split, rows in splits.items()
        },
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def ask_offline(home, code) -> str:
    """What a fresh process printed that runs the code, with `home` as the hub's cache and without a network."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


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
    write_cache(tmp_path, {"test": rows})
    said, seconds = ask_the_hub(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said == f"Rows(rows={rows}, revision='c0ffee')"
    assert seconds < 12


def test_without_the_package_the_other_ways_are_named(tmp_path):
    said, _ = ask_the_hub(tmp_path, before="import sys; sys.modules['datasets'] = None")
    assert said.startswith("UserError: `datasets` must be installed to read openai/gsm8k")
    assert said.endswith("Use --data DIR or --data builtin.")


ROWS = [
    {
        "question": f"{n} + 1? é",
        "answer": f"{n}+1\n#### {n + 1}",
        "annotation": f"{n}+1\n",
        "short_answer": f"{n + 1}",
    }
    for n in range(6)
]
ASK_TFDS = ASK_THE_HUB.replace("load_hub", "load_tfds").replace(
    '"openai/gsm8k", "main", "test", ', '"gsm8k", "test", address="https://127.0.0.1:9/test.jsonl", '
)


def write_tfds(folder, file_format, splits=None):
    """TFDS' `gsm8k`, written by its own builder from local rows."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Gsm8k(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {name: tfds.features.Text() for name in ROWS[0]}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: enumerate((splits or {}).get(split, ROWS)) for split in ("train", "test")}

            def _generate_examples(self):
                raise NotImplementedError

    tfds.disable_progress_bar()
    Gsm8k(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder


@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_tfds_rows_are_read_however_they_are_stored(tmp_path, monkeypatch, file_format):
    monkeypatch.setenv("TFDS_DATA_DIR", str(write_tfds(tmp_path, file_format)))
    rows, version = load_tfds("gsm8k", "test", address="https://127.0.0.1:9", other_ways="")
    assert sorted(rows, key=lambda row: row["question"]) == ROWS and version == "1.0.0"
    assert load_tfds("gsm8k", "test", address="https://127.0.0.1:9", other_ways="").rows == rows


def _ask_tfds(tmp_path, before="", after=""):
    """What a fresh process printed that asked TFDS, with `tmp_path` as TFDS_DATA_DIR, line by line."""
    done = subprocess.run(
        [sys.executable, "-c", ASK_TFDS.format(before=before) + after],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path), "no_proxy": "*"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_tfds_needs_no_tensorflow_for_what_it_downloads(tmp_path):
    write_tfds(tmp_path, "array_record")
    said = _ask_tfds(tmp_path, after="import sys; print('tensorflow' in sys.modules)")
    assert said[-3].startswith("Rows(rows=[{") and said[-1] == "False"


def test_without_a_copy_or_a_network_tfds_is_given_up_at_once(tmp_path):
    *_, said, seconds = _ask_tfds(tmp_path)
    assert said.startswith(
        "UserError: gsm8k must be within reach of TFDS, or a copy of it in TFDS_DATA_DIR. Received: "
    )
    assert "Connection refused" in said and said.endswith("Use --data DIR or --data builtin.")
    assert float(seconds) < 30  # TFDS alone retries for 240


def test_without_tfds_its_extra_is_named(tmp_path):
    *_, said, _ = _ask_tfds(tmp_path, before="import sys; sys.modules['tensorflow_datasets'] = None")
    assert said.startswith("UserError: `tensorflow-datasets` must be installed to read gsm8k from TFDS")
    assert 'pip install "keras_mtp[tfds]"' in said
