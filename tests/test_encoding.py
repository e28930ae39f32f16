import pytest

from keras_mtp.data.encoding import encode_all, encode_example, encode_prompt
from keras_mtp.data.example import Example
from keras_mtp.data.tokenizer import Tokenizer, byte_level_bpe
from keras_mtp.errors import UserError
from tests.tiny_gguf import CHAT_TEMPLATE

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXAMPLE = Example(id="x", prompt="2 + 2?", answer="It is 4.\n#### 4")


def _tokenizer(template: str | None = CHAT_TEMPLATE, **arguments) -> Tokenizer:
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*SPECIAL, *sorted(ByteLevel.alphabet())]
    backend = byte_level_bpe(tokens, [], pre_tokenizer="smollm", special=SPECIAL)
    return Tokenizer(backend, eos_id=2, bos_id=1, chat_template=template, **arguments)


def test_prompt_and_answer_through_the_chat_template():
    tokenizer = _tokenizer()
    item = encode_example(EXAMPLE, tokenizer)
    assert tokenizer.decode(item.ids, skip_special=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
        "It is 4.\n#### 4<|im_end|>"
    )
    assert tokenizer.decode(item.ids[item.is_answer], skip_special=False) == "It is 4.\n#### 4<|im_end|>"
    assert item.prompt_ids == encode_prompt(EXAMPLE.prompt, tokenizer)


def test_the_answer_ends_with_its_end_token_and_nothing_after_it():
    assert encode_example(EXAMPLE, _tokenizer()).ids[-1] == 2


def test_bos_is_added_once_where_the_model_wants_it():
    assert encode_prompt("hi", _tokenizer(add_bos=True))[:2].count(1) == 1
    assert encode_prompt("hi", _tokenizer(None, add_bos=True))[0] == 1
    assert encode_prompt("hi", _tokenizer(None))[0] != 1


def test_without_a_chat_template_the_prompt_is_a_line():
    tokenizer = _tokenizer(None)
    item = encode_example(EXAMPLE, tokenizer)
    assert tokenizer.decode(item.ids, skip_special=False) == "2 + 2?\nIt is 4.\n#### 4<|im_end|>"
    assert tokenizer.decode(item.prompt_ids) == "2 + 2?\n"


def test_long_examples_are_left_out_and_named():
    long = Example(id="long", prompt="?" * 500, answer="#### 1")
    kept, skipped = encode_all([EXAMPLE, long], _tokenizer(), max_tokens=200)
    assert [item.id for item in kept] == ["x"] and skipped == ["long"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}{{ messages[-1].content }}", "renders a prompt differently"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "without an end token"),
    ],
)
def test_templates_that_cannot_be_learnt_from(template, message):
    with pytest.raises(UserError, match=message):
        encode_example(EXAMPLE, _tokenizer(template))
