"""Token ids of Hugging Face folders, compared with transformers' own tokenizers on a thousand texts."""

import json

import pytest
import tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.hugging_face_tokenizer import read_tokenizer
from tests import tiny_tokenizers
from tests.tiny_hugging_face import change_json

pytestmark = pytest.mark.any_backend

END = {"smollm": "<|im_end|>", "llama-bpe": "<|eot_id|>"}
CHAT = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"


def _save(folder, kind: str = "smollm"):
    """A tokenizer as transformers saves it."""
    if kind == "sentencepiece":
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(tiny_tokenizers.sentencepiece_model())
        LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)
        (folder / "tokenizer.model").unlink()
    else:
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level(kind)),
            bos_token=tiny_tokenizers.SPECIAL[kind][0],
            eos_token=END[kind],
            chat_template=TEMPLATE,
        ).save_pretrained(folder)
    return folder


def _read(folder, model_config=None) -> Tokenizer:
    return read_tokenizer(folder, model_config or {}, tiny_tokenizers.VOCABULARY)


@pytest.fixture
def folder(tmp_path):
    return _save(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "sentencepiece"])
def test_ids_are_transformers_on_a_thousand_texts(tmp_path, kind):
    folder = _save(tmp_path / "tokenizer", kind)
    reference, tokenizer = AutoTokenizer.from_pretrained(folder), _read(folder)
    assert len(tiny_tokenizers.texts()) == 1000
    for text in tiny_tokenizers.texts():
        expected = reference(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode(text) == expected, text
        marked = reference(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, special=True) == marked, text
        assert tokenizer.decode(expected) == reference.decode(
            expected, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_a_text_that_goes_on_gets_no_space_in_front(tmp_path):
    tokenizer = _read(_save(tmp_path / "tokenizer", "sentencepiece"))
    whole = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")(
        "How many?\nthe two", add_special_tokens=False
    )
    assert tokenizer.encode("How many?\n") + tokenizer.encode("the two", continues=True) == whole["input_ids"]
    other = _read(_save(tmp_path / "other"))
    for text in tiny_tokenizers.texts()[:100]:
        assert other.encode(text, continues=True) == other.encode(text)


def test_the_kinds_of_tokenizer_differ_on_these_texts():
    texts = tiny_tokenizers.texts()
    one, other = (Backend.from_str(tiny_tokenizers.byte_level(kind)) for kind in END)
    assert sum(one.encode(text).tokens != other.encode(text).tokens for text in texts) > 300


def test_roles_and_template_come_from_the_files_around(folder):
    tokenizer = _read(folder, {"eos_token_id": [2, 1]})
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (0, 2, None, None)
    assert tokenizer.eos_ids == (1, 2) and not tokenizer.add_bos
    reference = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.render_chat(CHAT, add_generation_prompt=False)
    assert text == reference.apply_chat_template(CHAT, tokenize=False)


def test_generation_config_adds_end_tokens(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert _read(folder).eos_ids == (0, 2)


def test_the_end_token_may_be_named_by_the_model_alone(folder):
    change_json(folder / "tokenizer_config.json", eos_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert _read(folder, {"eos_token_id": 2}).eos_id == 2


@pytest.mark.parametrize("where", ["file", "config", "list"])
def test_the_chat_template_may_lie_in_three_places(folder, where):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    change_json(folder / "tokenizer_config.json", chat_template="other" if where == "file" else TEMPLATE)
    if where == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    if where == "list":
        named = [{"name": "tools", "template": "other"}, {"name": "default", "template": TEMPLATE}]
        change_json(folder / "tokenizer_config.json", chat_template=named)
    assert _read(folder).chat_template == TEMPLATE


def test_truncation_and_padding_left_in_the_file_are_not_followed(folder):
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=50)
    backend.save(str(folder / "tokenizer.json"))
    assert 4 < len(_read(folder).encode("A long enough text, longer than four tokens.")) < 50


def test_a_token_with_a_role_is_special_even_if_the_file_forgot(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = _read(folder)
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")


@pytest.mark.parametrize("told", [True, False, None])
def test_bos_goes_in_front_where_the_files_say_so(folder, told):
    """llama 3's `tokenizer.json` puts it there by itself, Llama 2's config names it."""
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    change_json(folder / "tokenizer_config.json", add_bos_token=told)
    tokenizer = _read(folder)
    assert tokenizer.add_bos == (told is not False)
    assert tokenizer.encode("a")[:1] != [0]


def test_added_tokens_that_contradict_are_refused(folder):
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={"2": {"content": "<|im_start|>"}})
    with pytest.raises(UserError, match=r"added_tokens_decoder. has '<\|im_start\|>' as 2"):
        _read(folder)
