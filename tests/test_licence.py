import dataclasses

import pytest

from keras_mtp.models.backbone import BaseInfo, base_info
from keras_mtp.models.licence import Licence, read_licence, write_licence
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend

BASE = BaseInfo(name="tiny", source="tiny", sha256="0" * 64, licence="llama3.2", architecture={})


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlanguage:\n- en\nlicense: 'llama3.1'\ntags: [x]\n---\n# Title\n", "llama3.1"),
        ("---\nlicense: other\nlicense_name: falcon-llm\nlicense_link: x\n---\n", "falcon-llm"),
        ("---\r\nlicense: mit\r\n---\r\n", "mit"),
        ("# No front matter\nlicense: mit\n", "unknown"),
        ("---\ntitle: x\n---\nlicense: mit\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_name_is_the_model_cards(tmp_path, card, name):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert read_licence(tmp_path).name == name


@pytest.mark.parametrize("file", ["LICENSE", "LICENSE.txt", "LICENCE.md"])
def test_the_text_is_the_folders(tmp_path, file):
    assert read_licence(tmp_path).text is None
    (tmp_path / file).write_text("Do what you like.")
    assert read_licence(tmp_path).text == "Do what you like."


@pytest.mark.parametrize("name", ["llama3.1", "llama3.2", "llama3.3", "LLAMA3.2"])
def test_llama_3_wants_to_be_named(name):
    notice = Licence.named(name).notice
    assert (
        notice.startswith("Built with Llama. ")
        and "Copyright © Meta Platforms, Inc. All Rights Reserved." in notice
    )


def test_other_licences_want_nothing_shown():
    assert Licence.named("apache-2.0").notice is None
    assert Licence.named(None).name == "unknown"


def test_a_run_gets_what_is_known(tmp_path):
    licence = Licence.named("llama3.2", "THE WHOLE TEXT")
    base = dataclasses.replace(BASE, notice=licence.notice, licence_text=licence.text)
    text = write_licence(tmp_path, base).read_text(encoding="utf-8")
    assert text.startswith("Base model: tiny\nLicence: llama3.2\n\nBuilt with Llama. ")
    assert text.endswith("\n\nTHE WHOLE TEXT\n")
    assert (tmp_path / "base_licence.txt").is_file()


def test_a_run_of_a_model_without_a_text_gets_its_licences_name(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    text = write_licence(tmp_path, base_info(str(path))).read_text(encoding="utf-8")
    assert text == "Base model: tiny\nLicence: cc0-1.0\n"
