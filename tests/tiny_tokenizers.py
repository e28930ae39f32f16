"""Three kinds of tokenizers, trained here on a thousand texts: as SmolLM2's, as Llama 3's, as Llama 2's.

They are made by `tokenizers` and `sentencepiece` themselves, without this project's code, so they are references.
"""

import functools
import gzip
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

FIXTURE = Path(__file__).parent / "fixtures" / "tokenizer_ids.jsonl.gz"
VOCABULARY = 700
# Meta's own pattern, from the published tokenizer.json of Llama 3.
LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = {
    "smollm": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama-bpe": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
}


@functools.cache
def texts() -> list[str]:
    """English, code, numbers, other scripts, emoji, control characters, what looks like special tokens."""
    with gzip.open(FIXTURE) as stream:
        _header, *lines = map(json.loads, stream)
    return [line["text"] for line in lines]


@functools.cache
def byte_level(kind: str) -> str:
    """A byte-level BPE tokenizer as JSON; `kind` is llama.cpp's name for how it cuts text."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "smollm")
    cut = {
        "smollm": pre_tokenizers.Digits(individual_digits=True),
        "llama-bpe": pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
    }[kind]
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, byte_level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL[kind]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    return backend.to_str()


@functools.cache
def sentencepiece_model() -> bytes:
    """A SentencePiece model with the settings of Llama 2's."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts() * 3),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        num_threads=1,
    )
    return written.getvalue()
