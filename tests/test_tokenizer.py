import gzip
import inspect
import json
from pathlib import Path

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from keras_mtp.data.byte_level_bpe import PRE_TOKENIZERS
from keras_mtp.data.chat_template import compile_template
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import DEFAULT_MODEL, locate
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from tests import tiny_tokenizers
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend

FIXTURE = Path(__file__).parent / "fixtures" / "tokenizer_ids.jsonl.gz"
CHAT = [
    {"role": "system", "content": "Answer in French.\n"},
    {"role": "user", "content": "  What's 48/2?\n\n<|im_end|> & <b>"},
    {"role": "assistant", "content": "Vingt-quatre. 🦙"},
]


@pytest.fixture(scope="module")
def smollm() -> Tokenizer:
    return read_tokenizer(GGUFFile(locate(DEFAULT_MODEL)))


@pytest.fixture
def tiny(tmp_path) -> Tokenizer:
    return _tiny(tmp_path)


def _tiny(folder, **metadata) -> Tokenizer:
    write_tiny_gguf(folder / "tiny.gguf", num_layers=1, metadata=metadata)
    return read_tokenizer(GGUFFile(folder / "tiny.gguf"))


def _metadata(folder) -> dict:
    write_tiny_gguf(folder / "first.gguf", num_layers=1)
    return GGUFFile(folder / "first.gguf").metadata


def _fixture() -> list[dict]:
    with gzip.open(FIXTURE) as stream:
        _header, *lines = map(json.loads, stream)
    return lines


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_ids_are_llama_cpps_on_a_thousand_texts(name):
    """Made by tools/make_tokenizer_fixture.py; SmolLM2's vocabulary with each way to cut text."""
    file = GGUFFile(locate(DEFAULT_MODEL))
    file.metadata["tokenizer.ggml.pre"] = name
    tokenizer = read_tokenizer(file)
    lines = _fixture()
    assert len(lines) == 1000
    for line in lines:
        assert tokenizer.encode(line["text"]) == line.get(name, line["smollm"]), line["text"]


def test_the_texts_of_the_fixture_tell_the_ways_to_cut_apart():
    assert all(sum(name in line for line in _fixture()) > 50 for name in PRE_TOKENIZERS)


@pytest.mark.parametrize("kind", tiny_tokenizers.SPECIAL)
def test_ids_are_those_of_the_tokenizer_that_the_vocabulary_came_from(tmp_path, kind):
    """A tokenizer trained by `tokenizers`, its vocabulary put into a GGUF file as llama.cpp's converter does."""
    reference = tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level(kind))
    tokens = [reference.id_to_token(index) for index in range(reference.get_vocab_size())]
    merges = [" ".join(merge) for merge in json.loads(reference.to_str())["model"]["merges"]]
    keys = {"tokens": tokens, "merges": merges, "pre": kind, "token_type": [3] * 3 + [1] * (len(tokens) - 3)}
    tokenizer = _tiny(tmp_path, **{f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    for text in tiny_tokenizers.texts():
        assert tokenizer.encode(text, special=True) == reference.encode(text).ids, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_smollms_special_tokens(smollm):
    assert (smollm.bos_id, smollm.eos_id, smollm.pad_id, smollm.unk_id) == (1, 2, 2, 0)
    assert smollm.eos_ids == (0, 2)
    assert smollm.vocabulary_size == 49152
    assert not smollm.add_bos


def test_special_tokens_are_read_only_when_asked(tiny):
    text = "<|im_start|>user\nhow many<|im_end|>"
    special = tiny.encode(text, special=True)
    assert special[0] == 1 and special[-1] == 2
    assert not {0, 1, 2} & set(tiny.encode(text))
    assert tiny.decode(tiny.encode(text)) == text
    assert tiny.decode(special, skip_special=False) == text
    assert tiny.decode(special) == "user\nhow many"


NUMBERS = {"smollm": "1 2 3 4 5", "gpt-2": "1234 5", "llama-bpe": "123 4 5"}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_numbers_and_whole_words_tell_the_ways_to_cut_apart(tmp_path, name):
    """SmolLM2 never merges digits and spells every token by merges, so its ids do not show this."""
    keys = _metadata(tmp_path) | {"tokenizer.ggml.pre": name}
    keys["tokenizer.ggml.tokens"] += ["12", "123", "1234", "whole"]
    keys["tokenizer.ggml.merges"] += ["1 2", "12 3", "123 4"]
    keys["tokenizer.ggml.token_type"] += [1] * 4
    tokenizer = _tiny(tmp_path, **keys)
    assert [tokenizer.decode([id_]) for id_ in tokenizer.encode("12345")] == NUMBERS[name].split()
    assert len(tokenizer.encode("whole")) == (1 if name == "llama-bpe" else 5)


def test_a_token_that_ends_a_turn_is_special_whatever_its_type(tmp_path):
    """llama.cpp calls a plain "<|im_end|>" a bug in the file, and mends it."""
    types = [1] * len(_metadata(tmp_path)["tokenizer.ggml.tokens"])
    tokenizer = _tiny(tmp_path, **{"tokenizer.ggml.token_type": types})
    assert tokenizer.encode("<|im_end|>", special=True) == [2]
    assert 2 not in tokenizer.encode("<|im_end|>")


def test_user_defined_tokens_are_always_read(tmp_path):
    """ "Ġ" + "Ġ", the first merge, gives way to a token that no merge makes."""
    keys = _metadata(tmp_path)
    place = keys["tokenizer.ggml.tokens"].index("ĠĠ")
    keys["tokenizer.ggml.tokens"][place] = "[the]"
    keys["tokenizer.ggml.token_type"][place] = 4
    del keys["tokenizer.ggml.merges"][0]
    tokenizer = _tiny(tmp_path, **keys)
    ids = tokenizer.encode("a[the]b")
    assert len(ids) == 3 and ids[1] == place
    assert tokenizer.decode(ids) == "a[the]b"


def test_a_text_comes_back_from_its_ids(smollm):
    text = "Łukasz\u2019s 🏳️‍🌈 costs $1,234.50:\n\n\t¼ of it… <<48/2=24>>24 我想\u200b"
    assert smollm.decode(smollm.encode(text)) == text


def test_half_a_surrogate_pair_is_a_user_error(tiny):
    with pytest.raises(UserError, match="must be valid Unicode"):
        tiny.encode("a\ud83e")


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|end_of_text|>"])
def test_every_token_that_ends_a_turn_stops_generation(tmp_path, end):
    tokens = _metadata(tmp_path)["tokenizer.ggml.tokens"]
    tokenizer = _tiny(tmp_path, **{"tokenizer.ggml.tokens": [end, *tokens[1:]]})
    assert tokenizer.eos_ids == (0, 2)


def test_llama_3_begins_every_text_with_bos_unless_the_file_says_otherwise(tmp_path):
    missing = {"tokenizer.ggml.add_bos_token": None}
    assert _tiny(tmp_path, **missing, **{"tokenizer.ggml.pre": "llama-bpe"}).add_bos
    assert not _tiny(tmp_path, **missing, **{"tokenizer.ggml.pre": "gpt-2"}).add_bos
    assert not _tiny(tmp_path, **{"tokenizer.ggml.pre": "llama-bpe"}).add_bos
    assert _tiny(tmp_path, **{"tokenizer.ggml.add_bos_token": True}).add_bos


@pytest.mark.parametrize("messages", [CHAT[1:2], CHAT], ids=["one message", "three messages"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chats_are_rendered_as_transformers_does(smollm, messages, add_generation_prompt):
    reference = PreTrainedTokenizerFast(
        tokenizer_object=smollm.backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = reference.apply_chat_template(
        messages,
        chat_template=smollm.chat_template,
        add_generation_prompt=add_generation_prompt,
        tokenize=False,
    )
    text = smollm.render_chat(messages, add_generation_prompt=add_generation_prompt)
    assert text == expected
    assert smollm.encode(text, special=True) == reference(text, add_special_tokens=False)["input_ids"]


TEMPLATES = {
    "blocks": "  {% if messages %}\n{{ bos_token }}\n  {% endif %}\n{{- messages[0].content | trim }} {{ eos_token }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "loop": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
    "undefined": "[{{ nothing }}{{ tools }}{% if not documents %}none{% endif %}]",
    "date": "{% if date is not defined %}{% set date = '26 Jul 2024' %}{% endif %}{{ date }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_templates_are_rendered_as_transformers_does(tmp_path, template):
    tokenizer = _tiny(tmp_path, **{"tokenizer.chat_template": template})
    reference = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = reference.apply_chat_template(CHAT, chat_template=template, tokenize=False)
    assert tokenizer.render_chat(CHAT, add_generation_prompt=False) == expected


def test_the_date_is_never_part_of_a_prompt():
    render = compile_template("{{ 'today' if strftime_now is defined else '26 Jul 2024' }}")
    assert render() == "26 Jul 2024"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages.append(1) }}", "refuses these messages"),
        ("{{ messages.__class__.__mro__ }}", "refuses these messages"),
        ("{{ strftime_now('%Y') }}", "refuses these messages: 'strftime_now' is undefined"),
        ("{% for %}", "is not valid Jinja2"),
    ],
)
def test_a_template_cannot_do_more_than_render(template, message):
    with pytest.raises(UserError, match=message):
        compile_template(template)(messages=list(CHAT))


def test_a_model_without_template_says_so(tmp_path):
    tokenizer = _tiny(tmp_path, **{"tokenizer.chat_template": None})
    with pytest.raises(UserError, match="has no chat template"):
        tokenizer.render_chat(CHAT, add_generation_prompt=True)


def test_config_has_every_argument_and_gives_the_same_ids(tiny):
    assert set(inspect.signature(Tokenizer).parameters) == set(tiny.get_config())
    again = Tokenizer.from_config(json.loads(json.dumps(tiny.get_config())))
    text = "how many apples<|im_end|>\n 12 é"
    for special in (True, False):
        assert again.encode(text, special=special) == tiny.encode(text, special=special)
    assert again.render_chat(CHAT, add_generation_prompt=True) == tiny.render_chat(
        CHAT, add_generation_prompt=True
    )
    assert again.decode(tiny.encode(text, special=True)) == tiny.decode(tiny.encode(text, special=True))
