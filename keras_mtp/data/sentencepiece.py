"""SentencePiece's byte-pair encoding, as Llama 2 uses it, on Hugging Face `tokenizers`.

A file of this kind has no list of merges but a score for every piece: of all neighbours that make a piece, those that
make the best one are merged first. That is a list of merges in disguise, the best piece's first.

Text is written with "▁" for a space; one is put in front of it, and again after every special token; a character
without a piece is spelled by its bytes.

Reference: llama.cpp, `src/llama-vocab.cpp`, `llm_tokenizer_spm` and `LLAMA_VOCAB_TYPE_SPM`; Kudo and Richardson 2018,
SentencePiece, arXiv 1808.06226.
"""

import enum
import itertools
import json
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from keras_mtp.errors import UserError

SPACE = "▁"


class Kind(enum.IntEnum):
    """What a piece is, by SentencePiece's own numbers, which GGUF files use as well."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def sentencepiece_bpe(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    special: Sequence[str] = (),
    add_space_prefix: bool = True,
) -> tokenizers.Tokenizer:
    """Builds SentencePiece's BPE from its pieces.

    Args:
        pieces: texts in the order of their ids.
        scores: of each piece; the higher, the earlier it is merged.
        kinds: a `Kind` for each piece.
        special: pieces to be treated as control tokens whatever their kind.
        add_space_prefix: bool. Whether a text gets a space in front, as if it followed another word.

    Raises:
        UserError: the lists do not fit, bytes are missing, or the scores leave the order of two merges open.

    Example:

    ```python
    bpe = sentencepiece_bpe(pieces, scores, kinds)
    bpe.encode("two words").tokens  # ["▁two", "▁words"]
    ```
    """
    ids = {piece: index for index, piece in enumerate(pieces)}
    _check(ids, pieces, scores, kinds)
    unknown = next((piece for piece, kind in zip(pieces, kinds, strict=True) if kind == Kind.UNKNOWN), None)
    merges = _merges(pieces, scores, kinds)
    model = models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prefix = [normalizers.Prepend(SPACE)] if add_space_prefix else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if add_space_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    control = {*special, *_of(Kind.CONTROL, pieces, kinds), *_of(Kind.UNKNOWN, pieces, kinds)}
    backend.add_special_tokens([_added(piece, special=True) for piece in pieces if piece in control])
    user_defined = _of(Kind.USER_DEFINED, pieces, kinds)
    backend.add_tokens([_added(piece, special=False) for piece in user_defined if piece not in control])
    return backend


def without_prefix(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer, less the space that it may put in front of a text; itself if it puts none."""
    content = json.loads(backend.to_str())
    changed = dict(content)
    changed["normalizer"] = _unprefixed(content["normalizer"], "normalizers")
    changed["pre_tokenizer"] = _unprefixed(content["pre_tokenizer"], "pretokenizers")
    return backend if changed == content else tokenizers.Tokenizer.from_str(json.dumps(changed))


def _unprefixed(step: dict | None, steps: str) -> dict | None:
    """One step of the JSON form, or a sequence of them, without whatever puts a space in front."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        inner = [_unprefixed(each, steps) for each in step[steps]]
        return step | {steps: [each for each in inner if each is not None]}
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if "add_prefix_space" in step else step


def _added(piece: str, *, special: bool) -> AddedToken:
    return AddedToken(piece, special=special, normalized=False)


def _of(kind: Kind, pieces: Sequence[str], kinds: Sequence[int]) -> list[str]:
    return [piece for piece, its_kind in zip(pieces, kinds, strict=True) if its_kind == kind]


def _check(ids: dict[str, int], pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> None:
    if not all(isinstance(piece, str) for piece in pieces):
        raise UserError(
            "The tokenizer's pieces must be texts. Received: bytes that are not UTF-8. Use another file."
        )
    if not len(ids) == len(pieces) == len(scores) == len(kinds):
        raise UserError(
            "The tokenizer must name every piece once, with a score and a kind. Use another file."
        )
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]:
        raise UserError(
            f"The tokenizer must have a piece for every byte. Received: none for {missing[0]}. Use another file."
        )
    if unused := _of(Kind.UNUSED, pieces, kinds):
        raise UserError(
            f"The tokenizer has unused pieces, the first is {unused[0]!r:.40}: these are not supported. Use another file."
        )


def _merges(pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int]) -> list[tuple[str, str]]:
    """Every way to make a piece from two others, the best piece's first."""
    normal = {
        piece: score for piece, score, kind in zip(pieces, scores, kinds, strict=True) if kind == Kind.NORMAL
    }
    pairs = {piece: _pairs(piece, normal) for piece in normal}
    made = sorted((piece for piece in pairs if pairs[piece]), key=lambda piece: -normal[piece])
    for better, worse in itertools.pairwise(made):
        if not normal[better] > normal[worse]:
            raise UserError(
                f"The tokenizer's pieces must differ in score. Received: {normal[better]} for both {better!r:.40} and "
                f"{worse!r:.40}, so it is open which is merged first. Use another file."
            )
    return [pair for piece in made for pair in pairs[piece]]


def _pairs(piece: str, normal: Mapping[str, float]) -> list[tuple[str, str]]:
    cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in normal and right in normal]
