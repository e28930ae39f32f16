"""The tokenizer that a GGUF file describes: vocabulary, merges, special tokens, chat template.

Reference: llama.cpp, `src/llama-vocab.cpp`, `llama_vocab::impl::load`, with its defaults for what a file leaves out.
"""

import gguf

from keras_mtp.data.tokenizer import Tokenizer, byte_level_bpe
from keras_mtp.models.gguf import GGUFFile

# Where llama.cpp stops whatever the file says, and what it then treats as special: the names that Llamas use.
_END_TEXTS = {"<|eot_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "</s>"}
_SPECIAL_TYPES = {gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN}


def read_tokenizer(file: GGUFFile) -> Tokenizer:
    """Builds the file's tokenizer.

    Raises:
        UserError: it is not byte-level BPE, or something about it is not understood.
    """
    file.expect("tokenizer.ggml.model", "gpt2")
    tokens = file.need("tokenizer.ggml.tokens", list)
    kinds = dict(zip(tokens, file.need("tokenizer.ggml.token_type", list), strict=False))
    if len(kinds) != len(tokens):
        file.refuse("`tokenizer.ggml.tokens` must name every token once and give each a type")
    special = [token for token in tokens if kinds[token] in _SPECIAL_TYPES or token in _END_TEXTS]
    user_defined = [token for token in tokens if kinds[token] == gguf.TokenType.USER_DEFINED]
    pre_tokenizer = file.need("tokenizer.ggml.pre", str)
    backend = byte_level_bpe(
        tokens,
        file.need("tokenizer.ggml.merges", list),
        pre_tokenizer=pre_tokenizer,
        special=special,
        user_defined=[token for token in user_defined if token not in special],
    )
    bos_id, eos_id = _token_id(file, "bos"), _token_id(file, "eos")
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool, pre_tokenizer == "llama-bpe")
    if eos_id is None or (add_bos and bos_id is None):
        file.refuse("it has no `tokenizer.ggml.eos_token_id`, or no bos where texts begin with one")
    ends = [index for index, token in enumerate(tokens) if token in _END_TEXTS]
    return Tokenizer(
        backend,
        eos_id=eos_id,
        eos_ids=[end for end in (*ends, _token_id(file, "eot"), _token_id(file, "eom")) if end is not None],
        bos_id=bos_id,
        pad_id=_token_id(file, "padding"),
        unk_id=_token_id(file, "unknown"),
        add_bos=add_bos,
        chat_template=file.get("tokenizer.chat_template", str),
    )


def _token_id(file: GGUFFile, name: str) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    index = file.get(key, int)
    if index is not None and not 0 <= index < len(file.need("tokenizer.ggml.tokens", list)):
        file.refuse(f"`{key}` is {index}, which is no token")
    return index
