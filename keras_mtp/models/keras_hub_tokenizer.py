"""The tokenizer of a keras-hub preset, made from the vocabulary in its assets.

    assets/tokenizer/vocabulary.json, merges.txt     Llama 3: byte-level BPE, cut as Llama 3 cuts
    assets/tokenizer/vocabulary.spm                  Llama 2: SentencePiece

A folder that also has Hugging Face's tokenizer files is read by those instead. keras-hub keeps no chat template.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from keras_mtp.data.byte_level_bpe import byte_level_bpe
from keras_mtp.data.sentencepiece import Kind, sentencepiece_bpe
from keras_mtp.data.tokenizer import END_TEXTS, Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models.json_file import LIMIT_BYTES, Settings, read_json, read_text
from keras_mtp.untrusted import open_plain

_ASSETS = Path("assets", "tokenizer")
_VOCABULARY, _MERGES, _PROTO = _ASSETS / "vocabulary.json", _ASSETS / "merges.txt", _ASSETS / "vocabulary.spm"
CONFIG = "tokenizer.json"
_BEGIN_TEXT = "<|begin_of_text|>"
_ADVICE = "Use a Llama preset as keras-hub's `save_to_preset` writes it, tokenizer included."


def files(folder: Path) -> tuple[Path, ...]:
    """The files that decide the tokenizer, as far as they may be there."""
    return tuple(folder / name for name in (CONFIG, _VOCABULARY, _MERGES, _PROTO))


def read_tokenizer(folder: Path, vocabulary_size: int) -> Tokenizer:
    """Builds a preset's tokenizer.

    Raises:
        UserError: the preset has none, or one that is not Llama's.
    """
    if not (folder / CONFIG).is_file():
        _refuse(folder, f"it has no {CONFIG} and so no tokenizer")
    config = Settings(read_json(folder / CONFIG), f"{folder.name}/{CONFIG}", _ADVICE)
    kind = config.need("class_name", str)
    if kind == "Llama3Tokenizer":
        tokenizer = _llama_3(folder, config, vocabulary_size)
    elif kind == "LlamaTokenizer":
        tokenizer = _llama_2(folder)
    else:
        config.refuse(f"`class_name` must be Llama3Tokenizer or LlamaTokenizer, but is {kind!r:.40}")
    _check_highest(folder, tokenizer.backend.get_vocab(), vocabulary_size)
    return tokenizer


def _llama_3(folder: Path, config: Settings, vocabulary_size: int) -> Tokenizer:
    ids = read_json(folder / _VOCABULARY)
    if not all(type(index) is int and index >= 0 for index in ids.values()) or len({*ids.values()}) != len(
        ids
    ):
        _refuse(folder, f"{_VOCABULARY} must give every token an id of its own")
    _check_highest(folder, ids, vocabulary_size)  # before `tokenizers` makes room for that many tokens
    merges = [
        line for line in read_text(folder / _MERGES).split("\n") if line and not line.startswith("#version")
    ]
    settings = Settings(config.need("config", dict), config.place, config.advice)
    special = _special(ids, merges, settings.get("unsplittable_tokens", list, []))
    backend = byte_level_bpe(ids, merges, pre_tokenizer="llama-bpe", special=special)
    eos = settings.get("eos_token", str, "<|end_of_text|>")
    for token in (_BEGIN_TEXT, eos):
        if token not in special:
            _refuse(folder, f"{_VOCABULARY} has no {token}")
    return Tokenizer(
        backend,
        eos_id=ids[eos],
        eos_ids=[ids[token] for token in special if token in END_TEXTS],
        bos_id=ids[_BEGIN_TEXT],
        add_bos=True,
    )


def _check_highest(folder: Path, ids: Mapping[str, int], vocabulary_size: int) -> None:
    if (highest := max(ids.values(), default=-1)) >= vocabulary_size:
        _refuse(
            folder, f"its tokenizer has the id {highest}, but the vocabulary ends at {vocabulary_size - 1}"
        )


def _special(ids: Mapping[str, int], merges: Sequence[str], named: Sequence[str]) -> list[str]:
    """The config names only some special tokens; the others are spelled like them, and no merge makes them."""
    made = {merge.replace(" ", "", 1) for merge in merges}
    return [
        token for token in ids if token in named or (re.fullmatch(r"<\|\w+\|>", token) and token not in made)
    ]


def _llama_2(folder: Path) -> Tokenizer:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        with open_plain(folder / _PROTO) as file:
            content = file.read(LIMIT_BYTES + 1)
        if len(content) > LIMIT_BYTES:
            _refuse(folder, f"{_PROTO} has more than {LIMIT_BYTES:,} bytes")
        proto.ParseFromString(content)
        pieces = [piece.piece for piece in proto.pieces]
    except (OSError, DecodeError, UnicodeDecodeError) as error:
        _refuse(folder, f"{_PROTO} cannot be read ({type(error).__name__})")
    normalizer = proto.normalizer_spec
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE:
        _refuse(folder, f"{_PROTO} is no byte-pair encoding")
    if normalizer.precompiled_charsmap or normalizer.remove_extra_whitespaces:
        _refuse(folder, f"{_PROTO} rewrites the text first, which is not supported")
    kinds = [piece.type for piece in proto.pieces]
    backend = sentencepiece_bpe(
        pieces,
        [piece.score for piece in proto.pieces],
        kinds,
        special=[piece for piece in pieces if piece in END_TEXTS],
        add_space_prefix=normalizer.add_dummy_prefix,
    )
    bos, eos = proto.trainer_spec.bos_id, proto.trainer_spec.eos_id
    if not (0 <= bos < len(pieces) and 0 <= eos < len(pieces)):
        _refuse(folder, f"{_PROTO} has no tokens that begin and end a text")
    return Tokenizer(
        backend,
        eos_id=eos,
        bos_id=bos,
        unk_id=kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None,
        add_bos=True,
    )


def _refuse(folder: Path, reason: str) -> NoReturn:
    raise UserError(f"{folder.name} cannot be loaded: {reason}. {_ADVICE}")
