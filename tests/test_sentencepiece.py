"""Llama 2's kind of tokenizer, built from pieces and scores, compared with SentencePiece itself on a thousand texts."""

import functools
import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from keras_mtp.data.sentencepiece import Kind, sentencepiece_bpe
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from tests import tiny_tokenizers
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend


@functools.cache
def reference() -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tiny_tokenizers.sentencepiece_model())


@functools.cache
def vocabulary() -> tuple[tuple[str, ...], tuple[float, ...], tuple[int, ...]]:
    proto = sentencepiece_model_pb2.ModelProto.FromString(tiny_tokenizers.sentencepiece_model())
    return tuple(zip(*((piece.piece, piece.score, piece.type) for piece in proto.pieces), strict=True))


def metadata(**changes) -> dict:
    """The keys that llama.cpp's converter writes for a SentencePiece model."""
    pieces, scores, kinds = map(list, vocabulary())
    keys = {"model": "llama", "pre": "default", "tokens": pieces, "scores": scores, "token_type": kinds}
    keys |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "padding_token_id": None}
    keys |= {"merges": None, "add_space_prefix": None, "add_bos_token": None} | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def read(folder, **changes) -> Tokenizer:
    write_tiny_gguf(folder / "tiny.gguf", num_layers=1, metadata=metadata(**changes))
    return read_tokenizer(GGUFFile(folder / "tiny.gguf"))


def test_ids_and_texts_are_sentencepieces_on_a_thousand_texts(tmp_path):
    tokenizer, spelled = read(tmp_path), 0
    for text in tiny_tokenizers.texts():
        expected = reference().encode(text)
        assert tokenizer.encode(text) == expected, text
        assert tokenizer.decode(expected) == reference().decode(expected), text
        spelled += any(vocabulary()[2][index] == Kind.BYTE for index in expected)
    assert spelled > 100  # characters without a piece of their own are among them


def test_ids_are_sentencepieces_where_the_same_piece_can_be_made_in_several_ways(tmp_path):
    tokenizer, rng = read(tmp_path), random.Random(0)
    parts = ["a", "aa", " ", "  ", "the", "e", "\n", "t", "o", "oo", "n", "ll", "ss", "1", "..", "="]
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 30)))
        assert tokenizer.encode(text) == reference().encode(text), text


def test_the_roles_are_llama_cpps_defaults_where_the_file_leaves_them_out(tmp_path):
    gone = {"bos_token_id": None, "eos_token_id": None, "unknown_token_id": None}
    tokenizer = read(tmp_path, **gone)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.add_bos and not read(tmp_path, add_bos_token=False).add_bos


def test_no_space_is_put_in_front_where_the_file_says_so(tmp_path):
    tokenizer = read(tmp_path, add_space_prefix=False)
    assert tokenizer.encode(" the") == reference().encode("the")
    assert tokenizer.decode(reference().encode("the")) == " the"


def test_special_tokens_are_read_only_when_asked_and_a_space_follows_them(tmp_path):
    """llama.cpp puts the space in front again after every special token."""
    tokenizer = read(tmp_path)
    assert tokenizer.encode("<s>the</s>the", special=True) == [
        1,
        *reference().encode("the"),
        2,
        *reference().encode("the"),
    ]
    assert tokenizer.encode("</s>") == reference().encode("</s>")
    assert 2 not in tokenizer.encode("</s>")


def test_an_answer_goes_on_where_its_prompt_ended(tmp_path):
    """Encoded apart and joined they are what SentencePiece makes of the whole; " the" is one piece, not two spaces."""
    tokenizer = read(tmp_path)
    for prompt, answer in [("How many?\n", "the"), ("x\n", " the apples"), ("1\n", "  2"), ("", "")]:
        apart = tokenizer.encode(prompt) + tokenizer.encode(answer, continues=True)
        assert apart == reference().encode(prompt + answer), (prompt, answer)
    assert tokenizer.encode("the</s>", special=True, continues=True)[-1] == 2
    assert 2 not in tokenizer.encode("the</s>", continues=True)


def test_a_text_that_goes_on_keeps_the_space_in_front_of_it(tmp_path):
    tokenizer = read(tmp_path)
    ids = tokenizer.encode("x the apples")
    for place in range(1, len(ids)):
        before, behind = tokenizer.decode(ids[:place]), tokenizer.decode(ids[place:], continues=True)
        assert before + behind == "x the apples"
    assert tokenizer.decode(tokenizer.encode("the")) == "the"


def test_user_defined_pieces_are_always_read(tmp_path):
    pieces, _scores, kinds = map(list, vocabulary())
    place = max(index for index, piece in enumerate(pieces) if len(piece) == 1)
    pieces[place], kinds[place] = "<tool>", Kind.USER_DEFINED.value
    tokenizer = read(tmp_path, tokens=pieces, token_type=kinds)
    assert place in tokenizer.encode("the <tool> the")


def _without_bytes(pieces, scores, kinds):
    return [piece.replace("<0x41>", "<0x41_>") for piece in pieces], scores, kinds


def _with_unused(pieces, scores, kinds):
    return pieces, scores, [*kinds[:-1], Kind.UNUSED]


def _with_equal_scores(pieces, scores, kinds):
    return (
        pieces,
        [
            min(score, -1.0) if kind == Kind.NORMAL else score
            for score, kind in zip(scores, kinds, strict=True)
        ],
        kinds,
    )


def _with_a_score_that_is_none(pieces, scores, kinds):
    return pieces, [float("nan")] * len(scores), kinds


def _with_too_few_scores(pieces, scores, kinds):
    return pieces, scores[:-1], kinds


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_bytes, "must have a piece for every byte. Received: none for 65"),
        (_with_unused, "has unused pieces"),
        (_with_equal_scores, "must differ in score"),
        (_with_a_score_that_is_none, "must differ in score"),
        (_with_too_few_scores, "with a score and a kind"),
    ],
)
def test_a_vocabulary_that_leaves_something_open_is_refused(damage, message):
    with pytest.raises(UserError, match=message):
        sentencepiece_bpe(*damage(*map(list, vocabulary())))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "it has no `tokenizer.ggml.scores`"),
        ({"pre": "llama-bpe"}, "must be 'default' with SentencePiece"),
        ({"remove_extra_whitespaces": True}, "`tokenizer.ggml.remove_extra_whitespaces` must be False"),
        ({"precompiled_charsmap": [1, 2]}, "rewrites characters"),
    ],
)
def test_a_file_that_asks_for_more_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)
