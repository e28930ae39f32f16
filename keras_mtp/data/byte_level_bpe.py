"""Byte-level BPE by Hugging Face `tokenizers`, set up as llama.cpp sets it up.

A model file gives the vocabulary, the merges and the name of a *pre-tokenizer*: how text is cut before any merge.
That decides the ids as much as the merges do, so only names whose ids were compared with llama.cpp's are accepted.

Reference: llama.cpp, `src/llama-vocab.cpp`, `llm_tokenizer_bpe`.
"""

import re
from collections.abc import Mapping, Sequence

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from keras_mtp.errors import UserError

_LLAMA3_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_bpe(
    tokens: Sequence[str] | Mapping[str, int],
    merges: Sequence[str],
    *,
    pre_tokenizer: str,
    special: Sequence[str] = (),
    user_defined: Sequence[str] = (),
) -> tokenizers.Tokenizer:
    """Builds byte-level BPE from a vocabulary and its merges.

    Args:
        tokens: token texts in byte-level spelling ("Ġthe"), in the order of their ids; or the id of each.
        merges: "left right", most frequent first.
        pre_tokenizer: llama.cpp's name for how text is cut first, one of `PRE_TOKENIZERS`.
        special: tokens that only `Tokenizer.encode(..., special=True)` sees in a text; decoding can skip them.
        user_defined: tokens found in any text before it is cut.

    Raises:
        UserError: unknown pre-tokenizer, or merges that do not fit the vocabulary.
    """
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise UserError(
            f"The tokenizer's pre-tokenizer must be one of {', '.join(sorted(PRE_TOKENIZERS))}. Received: "
            f"{pre_tokenizer!r}. How it cuts text is not known here, and a wrong cut gives wrong token ids."
        )
    ids = (
        dict(tokens) if isinstance(tokens, Mapping) else {token: index for index, token in enumerate(tokens)}
    )
    try:
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
        # Llama 3 takes a whole word that is in the vocabulary before it looks at any merge.
        model = models.BPE(
            vocab=dict(ids), merges=pairs, ignore_merges=PRE_TOKENIZERS[pre_tokenizer] is _llama3
        )
    except Exception as error:  # which is all that tokenizers raises
        raise UserError(
            f"The tokenizer's merges do not fit its tokens: {error}. Use another file."
        ) from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _apart_from_missing_bytes(PRE_TOKENIZERS[pre_tokenizer](), ids)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in user_defined])
    return backend


def _apart_from_missing_bytes(
    cut: pre_tokenizers.PreTokenizer, ids: Mapping[str, int]
) -> pre_tokenizers.PreTokenizer:
    """Bytes without a token are dropped; cutting there keeps what stands on either side from being merged.

    SmolLM2 has no token for some control characters. llama.cpp drops them after merging, `tokenizers` before.
    """
    missing = [char for char in pre_tokenizers.ByteLevel.alphabet() if char not in ids]
    if not missing:
        return cut
    pattern = Regex("[" + "".join(re.escape(char) for char in sorted(missing)) + "]")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.Split(pattern, "isolated")])


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    """GPT-2's, after every digit has been set apart."""
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), _gpt2()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_LLAMA3_PATTERN), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS = {"smollm": _smollm, "gpt-2": _gpt2, "llama-bpe": _llama3}
