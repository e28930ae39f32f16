"""`MTPCausalLM.generate`, against an argmax over the whole uncached forward pass."""

import functools

import keras
import numpy as np
import pytest

from keras_mtp import MTPCausalLM, Sampling, UserError
from keras_mtp.data.encoding import encode_prompt
from tests import tiny
from tests.tiny_gguf import write_tiny_gguf

NO_STOP = [10_000]  # an id that never comes
LONGEST = 96  # tokens of a prompt and its continuation
_forward = functools.cache(tiny.forward)  # of a model; compiled once


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> MTPCausalLM:
    path = tmp_path_factory.mktemp("text") / "tiny.gguf"
    write_tiny_gguf(path, num_layers=2)
    return MTPCausalLM.from_preset(str(path), prefix_length=3)


def _continued(model, ids: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache, written out; padded to one length, which is compiled once."""
    begun, row = len(ids), np.zeros((1, LONGEST), "int32")
    row[0, :begun] = ids
    for place in range(begun, begun + count):
        logits = _forward(model)(row)["head_1"]
        row[0, place] = logits[0, place - 1].argmax()
    return row[0, begun : begun + count].tolist()


def test_ids_give_the_ids_of_an_uncached_forward_pass(model):
    expected = _continued(model, [5, 6, 7], 4)
    assert model.generate([5, 6, 7], max_new_tokens=4, stop_ids=NO_STOP) == expected
    assert model.generate(np.array([5, 6, 7]), max_new_tokens=4, stop_ids=NO_STOP) == expected
    assert model.generate([[5, 6, 7], [9]], max_new_tokens=4, stop_ids=NO_STOP) == [
        expected,
        _continued(model, [9], 4),
    ]
    assert model.generate([5, 6, 7], max_new_tokens=4, stop_ids=expected[2:3]) == expected[:2]


def test_a_text_is_a_users_turn_unless_raw(model):
    tokenizer = model.tokenizer
    turn = encode_prompt("how many apples", tokenizer)
    assert "<|im_start|>user\nhow many apples<|im_end|>" in tokenizer.decode(turn, skip_special=False)
    answer = model.generate("how many apples", max_new_tokens=4, stop_ids=NO_STOP)
    assert answer == tokenizer.decode(_continued(model, turn, 4))
    plain = tokenizer.encode("how many apples")
    said = model.generate("how many apples", max_new_tokens=4, stop_ids=NO_STOP, raw=True)
    assert said == tokenizer.decode(_continued(model, plain, 4))
    written_out = tokenizer.decode(turn, skip_special=False)
    assert model.generate(written_out, max_new_tokens=4, stop_ids=NO_STOP, raw=True) == answer


def test_a_raw_text_begins_with_bos_where_the_model_expects_it(tmp_path):
    write_tiny_gguf(tmp_path / "tiny.gguf", metadata={"tokenizer.ggml.add_bos_token": True})
    model = MTPCausalLM.from_preset(str(tmp_path / "tiny.gguf"))
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode("how many")]
    said = model.generate("how many", max_new_tokens=4, stop_ids=NO_STOP, raw=True)
    assert said == model.tokenizer.decode(_continued(model, ids, 4))


def test_a_list_is_answered_with_a_list(model):
    both = model.generate(["how many", [5, 6]], max_new_tokens=3, stop_ids=NO_STOP)
    assert both[0] == model.generate("how many", max_new_tokens=3, stop_ids=NO_STOP)
    assert both[1] == model.generate([5, 6], max_new_tokens=3, stop_ids=NO_STOP)
    assert model.generate([]) == []


def test_training_after_a_call_is_seen_by_the_next(model):
    start = tiny.arrays([model.prefix_embedding.embeddings])[0]
    before = model.generate([5, 6, 7], max_new_tokens=8, stop_ids=NO_STOP)
    model.prefix_embedding.embeddings.assign(np.random.default_rng(1).normal(0, 3, start.shape))
    after = model.generate([5, 6, 7], max_new_tokens=8, stop_ids=NO_STOP)
    assert after == _continued(model, [5, 6, 7], 8) and after != before
    model.prefix_embedding.embeddings.assign(start)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "`prompt` must not be empty"),
        (" \n", "`prompt` must not be empty"),
        ([[]], "must hold at least one, each from 0"),
        ([3, -1], "must hold at least one, each from 0"),
        ([3, 99_999], "must hold at least one, each from 0"),
        ("half \udce4 of a pair", "must be valid Unicode"),
    ],
)
def test_prompts_that_cannot_be_answered(model, prompt, message):
    with pytest.raises(UserError, match=message):
        model.generate(prompt, max_new_tokens=2)


def test_without_a_tokenizer_text_and_a_missing_stop_are_refused():
    model = MTPCausalLM(tiny.backbone(), prefix_length=2)
    with pytest.raises(UserError, match="takes token ids only"):
        model.generate("hello")
    with pytest.raises(ValueError, match="`stop_ids` must hold at least one"):
        model.generate([1, 2])
    assert len(model.generate([1, 2], max_new_tokens=3, stop_ids=NO_STOP)) == 3


def test_a_keras_file_keeps_the_tokenizer(model, tmp_path):
    model.save(tmp_path / "x.keras")
    loaded = keras.models.load_model(tmp_path / "x.keras")
    assert loaded.tokenizer.get_config() == model.tokenizer.get_config()
    assert loaded.generate("how many", max_new_tokens=4) == model.generate("how many", max_new_tokens=4)


def test_text_comes_as_it_is_made_and_ends_at_a_stop_text(model):
    pieces = []
    ask = {"max_new_tokens": 40, "stop_ids": NO_STOP}
    whole = model.generate("how many", on_text=lambda row, text: pieces.append((row, text)), **ask)
    assert "".join(text for _, text in pieces) == whole == model.generate("how many", **ask)
    assert {row for row, _ in pieces} == {0} and len(pieces) > 1
    stop = whole[len(whole) // 2 :][:3]
    cut = whole[: whole.index(stop)]
    assert model.generate("how many", stop=[stop], **ask) == cut
    other = model.generate("apples", **ask)
    assert model.generate(["how many", "apples"], stop=[stop], **ask) == [cut, other.split(stop)[0]]


def test_one_stop_text_need_not_be_a_list(model):
    whole = model.generate("how many", max_new_tokens=12, stop_ids=NO_STOP)
    stop = whole[len(whole) // 2 :][:2]
    assert model.generate("how many", stop=stop, max_new_tokens=12, stop_ids=NO_STOP) == whole.split(stop)[0]


def test_nothing_is_compiled_again_for_another_seed_or_length():
    model = MTPCausalLM(tiny.backbone(num_layers=1))

    def said(count: int, seed: int) -> list[int]:
        sampling = Sampling(temperature=9.0, seed=seed)
        return model.generate([1, 2], max_new_tokens=count, stop_ids=NO_STOP, sampling=sampling)

    assert said(5, 0) == said(5, 0) != said(5, 1) and said(4, 1) == said(5, 1)[:4]
    (generator,) = model._text_generator._generators.values()
    assert len(generator._decodings) == 1


def test_text_needs_a_tokenizer():
    with pytest.raises(UserError, match="`stop` and `on_text` are about text"):
        MTPCausalLM(tiny.backbone()).generate([1], stop=["x"], stop_ids=NO_STOP)
