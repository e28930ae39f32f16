import dataclasses
import doctest
import hashlib

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import keras_mtp.data.encoding
from keras_mtp.data.byte_level_bpe import byte_level_bpe
from keras_mtp.data.encoding import encode_all, encode_example, encode_prompt
from keras_mtp.data.example import Example, Message
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.backbone import DEFAULT_MODEL, locate
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from keras_mtp.tasks import load_task
from tests.tiny_gguf import CHAT_TEMPLATE

pytestmark = pytest.mark.any_backend

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
EXAMPLE = Example(id="x", prompt="2 + 2?", answer="It is 4.\n#### 4")
CHAT = Example(
    id="chat",
    history=(
        Message("system", "Be  brief. "),
        Message("user", "1 + 1?\n"),
        Message("assistant", " 2\n\n"),
        Message("user", "assistant\nAnd 1 more?"),
        Message("assistant", "assistant\n3"),
    ),
    prompt="Sum?",
    answer="5",
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
STRIPS_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}:{% if loop.last %}{{ m.content }}{% else %}"
    "{{ m.content.split('</think>')[-1] }}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


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
    split = encode_all([EXAMPLE, long], _tokenizer(), max_tokens=200)
    assert [item.id for item in split.examples] == ["x"]
    assert split.skipped == ["long"] and not split.truncated


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages | length }}{{ messages[-1].content }}", "renders a prompt differently"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "without an end token"),
        (CHAT_TEMPLATE.replace("message['content']", "''"), "must render what the assistant says"),
        ("{{ raise_exception('no') }}", "refuses these messages: no"),
    ],
)
def test_templates_that_cannot_be_learnt_from(template, message):
    with pytest.raises(UserError, match=f"^Example x: .*{message}"):
        encode_example(EXAMPLE, _tokenizer(template))


def _marked(tokenizer, item) -> list[str]:
    """The stretches that are learnt, as text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], item.is_answer, [False]])))
    return [tokenizer.decode(item.ids[a:b], skip_special=False) for a, b in edges.reshape(-1, 2)]


def test_the_docstrings_aligned_example():
    special = ["<|end|>", "<|user|>", "<|assistant|>"]
    backend = byte_level_bpe(
        [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())], [], pre_tokenizer="smollm", special=special
    )
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = Tokenizer(backend, eos_id=0, chat_template=template)
    assert doctest.testmod(keras_mtp.data.encoding, extraglobs={"tokenizer": tokenizer}).failed == 0


def test_every_turn_of_the_assistant_is_learnt_with_its_end_token_and_nothing_else():
    tokenizer = _tokenizer()
    item = encode_example(CHAT, tokenizer)
    assert _marked(tokenizer, item) == [" 2\n\n<|im_end|>", "assistant\n3<|im_end|>", "5<|im_end|>"]
    assert item.ids[-1] == 2 and item.is_answer[-1]


def test_ids_and_mask_of_a_chat_are_transformers():
    """Which marks what stands in `{% generation %}`, by character offsets in the whole text."""
    marked = CHAT_TEMPLATE.replace(
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
        "{% endif %}{{ '\n' }}",
    )
    assert marked != CHAT_TEMPLATE
    tokenizer = _tokenizer()
    reference = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    expected = reference.apply_chat_template(
        [turn._asdict() for turn in CHAT.messages],
        chat_template=marked,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    item = encode_example(CHAT, tokenizer)
    assert item.ids.tolist() == expected["input_ids"][:-1]  # less the newline after the last end token
    assert item.is_answer.tolist() == [bool(mark) for mark in expected["assistant_masks"][:-1]]


def test_a_prompt_within_a_chat_is_what_training_saw_before_its_answer():
    chats = [
        (_tokenizer(), CHAT),
        (_tokenizer(None), CHAT),
        (_tokenizer(add_bos=True), CHAT),
        (_metaspace(), SHORT_CHAT),
    ]
    for tokenizer, example in chats:
        item = encode_example(example, tokenizer)
        assert encode_prompt(example.prompt, tokenizer, example.history) == item.prompt_ids


def test_a_chat_without_a_chat_template_is_lines_and_ended_answers():
    tokenizer = _tokenizer(None)
    item = encode_example(CHAT, tokenizer)
    assert tokenizer.decode(item.ids, skip_special=False) == (
        "Be  brief. \n1 + 1?\n\n 2\n\n<|im_end|>assistant\nAnd 1 more?\nassistant\n3<|im_end|>Sum?\n5<|im_end|>"
    )
    assert _marked(tokenizer, item) == [" 2\n\n<|im_end|>", "assistant\n3<|im_end|>", "5<|im_end|>"]


SHORT_CHAT = Example(
    id="short", history=(Message("user", "one"), Message("assistant", "two")), prompt="three", answer="four"
)


def _metaspace() -> Tokenizer:
    """A tokenizer that puts a space in front of any text, as SentencePiece does, with Llama 2's template."""
    tokens = ["<s>", "</s>", "\u2581", *"[]/abcdefghijklmnopqrstuvwxyzINST", "\u2581f", "\u2581t"]
    merges = [("\u2581", "f"), ("\u2581", "t")]
    backend = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return Tokenizer(backend, eos_id=1, bos_id=0, chat_template=LLAMA_2)


def test_an_answer_gets_no_space_that_the_whole_text_has_not():
    tokenizer = _metaspace()
    item = encode_example(SHORT_CHAT, tokenizer)
    text = "<s>[INST] one [/INST] two </s><s>[INST] three [/INST] four </s>"
    assert item.ids.tolist() == tokenizer.encode(text, special=True)
    assert [tokenizer.backend.id_to_token(i) for i in item.ids[item.is_answer]][:2] == ["\u2581t", "w"]


def test_a_template_that_drops_reasoning_is_refused_where_it_does():
    tokenizer = _tokenizer(STRIPS_REASONING)
    assert encode_example(CHAT, tokenizer).is_answer.any()
    turns = (Message("user", "a"), Message("assistant", "hm</think>b"))
    with pytest.raises(
        UserError, match=r"^Example think: The chat template must be append-only.*seen at turn 4"
    ):
        encode_example(Example(id="think", history=turns, prompt="c", answer="d"), tokenizer)


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>user\nhi<|im_end|>"])
def test_text_that_would_be_read_as_a_special_token_is_refused(text):
    for example in (
        Example(id="x", prompt=f"a {text}", answer="b"),
        Example(id="x", prompt="a", answer=f"b {text}"),
    ):
        with pytest.raises(UserError, match=r"^Example x: A turn must not hold the text of a special token"):
            encode_example(example, _tokenizer())


def test_text_that_would_be_read_as_a_special_token_can_be_skipped():
    marked = Example(id="x", prompt="a", answer="b <|im_end|>")
    split = encode_all([EXAMPLE, marked], _tokenizer(), 200, special_text="skip")
    assert [item.id for item in split.examples] == [EXAMPLE.id]
    assert (split.marked, split.skipped) == (["x"], [])
    with pytest.raises(UserError, match=r"^Example x: .*data\.special_text=skip"):
        encode_all([EXAMPLE, marked], _tokenizer(), 200)


def test_an_encoded_example_keeps_its_source():
    example = dataclasses.replace(EXAMPLE, source="sums")
    (item,) = encode_all([example], _tokenizer(), 200).examples
    (cut,) = encode_all([example], _tokenizer(), len(item.ids) - 1, "truncate").examples
    assert (item.source, cut.source) == ("sums", "sums") and len(cut.ids) < len(item.ids)


def test_truncation_keeps_what_can_be_learnt():
    tokenizer = _tokenizer()
    whole = encode_example(CHAT, tokenizer)
    labels = np.flatnonzero(whole.is_answer)
    for max_tokens in range(16, len(whole.ids) + 2):
        split = encode_all([CHAT], tokenizer, max_tokens, "truncate")
        if max_tokens <= labels[0]:
            assert split.skipped == ["chat"] and not split.examples and not split.truncated
            continue
        (item,) = split.examples
        assert split.truncated == ([] if max_tokens >= len(whole.ids) else ["chat"]) and not split.skipped
        assert len(item.ids) == labels[labels < max_tokens][-1] + 1
        assert item.ids.tolist() == whole.ids[: len(item.ids)].tolist()
        assert item.is_answer.tolist() == whole.is_answer[: len(item.ids)].tolist()


def test_the_ids_of_word_problems_stay_what_they_were():
    """Runs made before can be continued and compared: no id may change."""
    tokenizer = read_tokenizer(GGUFFile(locate(DEFAULT_MODEL)))
    digest = hashlib.sha256()
    for example in load_task("gsm8k", "builtin").examples("train")[:50]:
        item = encode_example(example, tokenizer)
        digest.update(item.ids.astype("<i4").tobytes() + item.is_answer.tobytes())
    assert digest.hexdigest() == "aef62c59cbda376bb290f059f21aa15f7b660b9059a8437c9c388575823a2f04"
