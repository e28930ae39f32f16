"""A tokenizer in Hugging Face's files gives transformers the ids of training, bos included where the model expects it."""

import json

import pytest
from transformers import AutoTokenizer

from keras_mtp.data.encoding import encode_prompt, encode_raw
from keras_mtp.export.tokenizer_files import write_tokenizer
from keras_mtp.models.backbone import load_backbone
from tests import tiny_hugging_face, tiny_tokenizers
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend
WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}Answer:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """By name: from a GGUF file, and from Hugging Face folders, of models that expect bos and of models that do not."""
    folder, model, found = tmp_path_factory.mktemp("tokenizers"), tiny_hugging_face.reference(), {}
    for add_bos in (False, True):
        path = folder / f"{add_bos}.gguf"
        write_tiny_gguf(path, metadata={"tokenizer.ggml.add_bos_token": add_bos})
        found["gguf", add_bos] = load_backbone(str(path)).tokenizer
        for kind in tiny_tokenizers.SPECIAL:
            saved = tiny_hugging_face.save(model, folder / f"{kind}-{add_bos}", kind=kind)
            tiny_hugging_face.change_json(saved / "tokenizer_config.json", add_bos_token=add_bos)
            found[kind, add_bos] = load_backbone(str(saved)).tokenizer
    return found


@pytest.mark.parametrize("template", [None, WITH_BOS])
@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("name", ["gguf", *tiny_tokenizers.SPECIAL])
def test_transformers_reads_text_and_chats_as_we_do(tokenizers, tmp_path, name, add_bos, template):
    ours = tokenizers[name, add_bos]
    assert ours.add_bos == add_bos
    if template is not None:
        ours = ours.with_template(template)
    write_tokenizer(ours, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in tiny_tokenizers.texts()[::50]:
        assert theirs.encode(text) == encode_raw(text, ours)
        if not any(token in text for token in theirs.all_special_tokens):
            turns = [{"role": "user", "content": text}]
            chat = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert chat == encode_prompt(text, ours)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {
        "eos_token_id": list(ours.eos_ids)
    }


def test_upstream_still_ignores_add_bos_token(tmp_path):
    """Why bos stands in `tokenizer.json` itself."""
    folder = tiny_hugging_face.save(tiny_hugging_face.reference(), tmp_path)
    tiny_hugging_face.change_json(folder / "tokenizer_config.json", add_bos_token=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("a")[0] != tokenizer.bos_token_id
