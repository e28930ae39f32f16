"""The tokenizer that a GGUF file describes: vocabulary, merges or scores, special tokens, chat template.

Reference: llama.cpp, `src/llama-vocab.cpp`, `llama_vocab::impl::load`, with its defaults for what a file leaves out.
"""

from dataclasses import dataclass
from typing import Any

import gguf
import tokenizers

from keras_mtp.data.byte_level_bpe import byte_level_bpe
from keras_mtp.data.sentencepiece import sentencepiece_bpe
from keras_mtp.data.tokenizer import END_TEXTS, Tokenizer
from keras_mtp.models.gguf import GGUFFile

_SPECIAL_TYPES = {gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN}


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    """What llama.cpp takes where a file says nothing."""

    add_bos: bool
    bos: int | None = None
    eos: int | None = None
    unknown: int | None = None


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """Builds the file's tokenizer.

    Raises:
        UserError: it is neither byte-level BPE nor SentencePiece, or something about it is not understood.
    """
    model = file.need("tokenizer.ggml.model", str)
    tokens = _list_of(file, "tokens", str)
    kinds = _list_of(file, "token_type", int)
    if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        file.refuse("`tokenizer.ggml.tokens` must name every token once and give each a type")
    if model == "gpt2":
        backend = _byte_level(file, tokens, kinds)
        defaults = _Defaults(add_bos=file.need("tokenizer.ggml.pre", str) == "llama-bpe")
    elif model == "llama":
        backend = _sentencepiece(file, tokens, kinds)
        defaults = _Defaults(add_bos=True, bos=1, eos=2, unknown=0)
    else:
        file.refuse(f"`tokenizer.ggml.model` must be 'gpt2' or 'llama', but is {model!r}")
    bos_id, eos_id = _token_id(file, "bos", defaults.bos), _token_id(file, "eos", defaults.eos)
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool, defaults.add_bos)
    if eos_id is None or (add_bos and bos_id is None):
        file.refuse("it has no `tokenizer.ggml.eos_token_id`, or no bos where texts begin with one")
    ends = [index for index, token in enumerate(tokens) if token in END_TEXTS]
    return Tokenizer(
        backend,
        eos_id=eos_id,
        eos_ids=[end for end in (*ends, _token_id(file, "eot"), _token_id(file, "eom")) if end is not None],
        bos_id=bos_id,
        pad_id=_token_id(file, "padding"),
        unk_id=_token_id(file, "unknown", defaults.unknown),
        add_bos=add_bos,
        chat_template=file.get("tokenizer.chat_template", str),
    )


def _list_of(file: GGUFFile, name: str, kind: type) -> list[Any]:
    values = file.need(f"tokenizer.ggml.{name}", list)
    if not all(type(value) is kind for value in values):
        file.refuse(f"`tokenizer.ggml.{name}` must be a list of {kind.__name__}")
    return values


def _byte_level(file: GGUFFile, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    typed = list(zip(tokens, kinds, strict=True))
    special = [token for token, kind in typed if kind in _SPECIAL_TYPES or token in END_TEXTS]
    user_defined = [token for token, kind in typed if kind == gguf.TokenType.USER_DEFINED]
    return byte_level_bpe(
        tokens,
        _list_of(file, "merges", str),
        pre_tokenizer=file.need("tokenizer.ggml.pre", str),
        special=special,
        user_defined=[token for token in user_defined if token not in special],
    )


def _sentencepiece(file: GGUFFile, tokens: list[str], kinds: list[int]) -> tokenizers.Tokenizer:
    for key in ("remove_extra_whitespaces", "escape_whitespaces", "treat_whitespace_as_suffix"):
        usual = key == "escape_whitespaces"
        if file.get(f"tokenizer.ggml.{key}", bool, usual) != usual:
            file.refuse(f"`tokenizer.ggml.{key}` must be {usual}")
    if "tokenizer.ggml.precompiled_charsmap" in file.metadata:
        file.refuse("`tokenizer.ggml.precompiled_charsmap`, which rewrites characters, is not supported")
    if (pre := file.get("tokenizer.ggml.pre", str, "default")) != "default":
        file.refuse(f"`tokenizer.ggml.pre` must be 'default' with SentencePiece, but is {pre!r}")
    return sentencepiece_bpe(
        tokens,
        _list_of(file, "scores", float),
        kinds,
        special=[token for token in tokens if token in END_TEXTS],
        add_space_prefix=file.get("tokenizer.ggml.add_space_prefix", bool, True),
    )


def _token_id(file: GGUFFile, name: str, default: int | None = None) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    index = file.get(key, int, default)
    if index is not None and not 0 <= index < len(file.need("tokenizer.ggml.tokens", list)):
        file.refuse(f"`{key}` is {index}, which is no token")
    return index
