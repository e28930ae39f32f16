"""GGUF files that are wrong in ways that have broken readers of this format: each costs one line and exit code 2."""

import os
import struct

import numpy as np
import pytest

from tests.malformed import ARRAY, TEXT, gguf_bytes, gguf_file, gguf_with, key, model, refused, tensor, text

pytestmark = pytest.mark.any_backend


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return key("a", ARRAY, struct.pack("<IQ", kind, count) + content)


def alignment(value: int) -> bytes:
    return key("general.alignment", 4, struct.pack("<I", value))


def folder(path):
    (path / "bad.gguf").mkdir()
    return model(path / "bad.gguf")


def pipe(path):
    os.mkfifo(path / "bad.gguf")
    return model(path / "bad.gguf")


def link_to(target: str):
    def prepare(path):
        (path / "bad.gguf").symlink_to(target)
        return model(path / "bad.gguf")

    return prepare


def tokens(**changes):
    return gguf_with(metadata={f"tokenizer.ggml.{name}": value for name, value in changes.items()})


def weights(name: str, value: float):
    return gguf_with(tensors={name: np.full(32, value, "float32")})


HUGE = 2**63
OVERLAP = [tensor("x", (32,)), tensor("y", (32,), offset=64)]
CASES = {
    # what it begins with
    "empty": (gguf_file(b""), r"bad\.gguf is not a whole GGUF file"),
    "four bytes": (gguf_file(b"GGUF"), "bad.gguf is not a whole GGUF file: it ends too early"),
    "counts cut off": (gguf_file(b"GGUF" + struct.pack("<IQ", 3, 0)), "ends too early"),
    "an old format": (gguf_file(gguf_bytes(magic=b"ggjt")), "does not begin with GGUF"),
    "text": (gguf_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "does not begin with GGUF"),
    "version 0": (gguf_file(gguf_bytes(version=0)), "its version is 0, not 2 or 3"),
    "version 1": (gguf_file(gguf_bytes(version=1)), "its version is 1, not 2 or 3"),
    "big-endian": (gguf_file(gguf_bytes(version=3 << 24)), "not 2 or 3 little-endian"),
    # what is no file
    "a folder": (folder, "must hold a config.json"),
    "a pipe": (pipe, "`model.name` must be .* Received: .*bad.gguf"),
    "a device": (link_to("/dev/zero"), "`model.name` must be .* Received: .*bad.gguf"),
    "a dangling link": (link_to("nowhere"), "`model.name` must be .* Received: .*bad.gguf"),
    "a link to itself": (link_to("bad.gguf"), "`model.name` must be .* Received: .*bad.gguf"),
    # counts
    "2^64-1 tensors": (gguf_file(gguf_bytes(tensor_count=2**64 - 1)), "claims 18446744073709551615 tensors"),
    "2^64-1 keys": (gguf_file(gguf_bytes(key_count=2**64 - 1)), "claims 18446744073709551615 keys"),
    "more keys than there are": (gguf_file(gguf_bytes([key("a")], key_count=99, weights=0)), "bad.gguf is not a whole"),
    "more tensors than there are": (gguf_file(gguf_bytes([], [tensor()], tensor_count=99, weights=0)), "bad.gguf is not a whole"),
    # keys
    "key of 2^63 bytes": (gguf_file(gguf_bytes([struct.pack("<Q", HUGE)])), "ends too early"),
    "key of 2^64-1 bytes": (gguf_file(gguf_bytes([struct.pack("<Q", 2**64 - 1)])), "ends too early"),
    "key not UTF-8": (gguf_file(gguf_bytes([key(b"\xff\xfe")])), "can't decode byte 0xff"),
    "key twice": (gguf_file(gguf_bytes([key("a"), key("a")])), "the key 'a' stands there twice"),
    "text of 2^63 bytes": (gguf_file(gguf_bytes([key("a", TEXT, struct.pack("<Q", HUGE))])), "ends too early"),
    "text not UTF-8": (gguf_file(gguf_bytes([key("a", TEXT, text(b"\xed\xa0\x80"))])), "can't decode byte 0xed"),
    "text of 65 MB": (gguf_file(gguf_bytes([key("a", TEXT, text(b"x" * (65 << 20)))])), "says too much about itself"),
    "value of type 13": (gguf_file(gguf_bytes([key("a", 13)])), "a value of type 13"),
    "value of type 2^32-1": (gguf_file(gguf_bytes([key("a", 2**32 - 1)])), "a value of type 4294967295"),
    "array of 2^63 texts": (gguf_file(gguf_bytes([array(TEXT, HUGE)])), "an array of 9223372036854775808"),
    "array of 2^61 numbers, 2^64 bytes": (gguf_file(gguf_bytes([array(10, 2**61)])), "an array of 2305843009213693952"),
    "array of 5 million numbers": (gguf_file(gguf_bytes([array(0, 5_000_000, bytes(5_000_000))])), "more than any Llama"),
    "array of arrays": (gguf_file(gguf_bytes([array(ARRAY, 1, struct.pack("<IQ", 4, 0))])), "an array of type 9"),
    "array of nothing known": (gguf_file(gguf_bytes([array(77, 1)])), "an array of type 77"),
    # alignment
    "alignment 0": (gguf_file(gguf_bytes([alignment(0)], [tensor()])), "its alignment is 0, no power of two"),
    "alignment 24": (gguf_file(gguf_bytes([alignment(24)], [tensor()])), "its alignment is 24, no power of two"),
    "alignment 2^31": (gguf_file(gguf_bytes([alignment(2**31)], [tensor()])), "its last bytes are missing"),
    "alignment in letters": (gguf_file(gguf_bytes([key("general.alignment", TEXT, text("32"))])), "its alignment is '32'"),
    # tensors
    "no dimensions": (gguf_file(gguf_bytes([], [tensor(shape=())])), "tensor 'x' has 0 dimensions"),
    "five dimensions": (gguf_file(gguf_bytes([], [tensor(shape=(1,) * 5)])), "tensor 'x' has 5 dimensions"),
    "2^32-1 dimensions": (gguf_file(gguf_bytes([], [tensor(dims=2**32 - 1)])), "tensor 'x' has 4294967295 dimensions"),
    "a dimension of 0": (gguf_file(gguf_bytes([], [tensor(shape=(32, 0))])), r"tensor 'x' of shape \(0, 32\) cannot be"),
    "a dimension of 2^63": (gguf_file(gguf_bytes([], [tensor(shape=(HUGE,))])), "tensor 'x' goes on past its end"),
    "a dimension of -32": (gguf_file(gguf_bytes([], [tensor(shape=(2**64 - 32,))])), "tensor 'x' goes on past its end"),
    "2^33 times 2^31 times 4 bytes, 0 in 64 bits": (gguf_file(gguf_bytes([], [tensor(shape=(2**33, 2**29, 1, 1))])), "past its end"),
    "offset 2^64-32": (gguf_file(gguf_bytes([], [tensor(offset=2**64 - 32)])), "tensor 'x' goes on past its end"),
    "offset 1": (gguf_file(gguf_bytes([], [tensor(offset=1)])), "tensor 'x' begins at 1, which is no multiple of 32"),
    "one byte short": (gguf_file(gguf_bytes([], [tensor()], weights=127)), "its last bytes are missing"),
    "two that overlap": (gguf_file(gguf_bytes([], OVERLAP)), "tensors 'x' and 'y' overlap"),
    "two in one place": (gguf_file(gguf_bytes([], [tensor("x"), tensor("y")])), "tensors 'x' and 'y' overlap"),
    "two of one name": (gguf_file(gguf_bytes([], [tensor(), tensor(offset=128)])), "two tensors have the name 'x'"),
    "type 99": (gguf_file(gguf_bytes([], [tensor(kind=99)])), "tensor 'x' is stored as type 99, which is none"),
    "a type that was withdrawn": (gguf_file(gguf_bytes([], [tensor(kind=4)])), "stored as type 4, which is none"),
    "half a block": (gguf_file(gguf_bytes([], [tensor(shape=(48,), kind=2)])), r"shape \(48,\) cannot be stored as Q4_0"),
    "name of 2^40 bytes": (gguf_file(gguf_bytes([], [struct.pack("<Q", 2**40)])), "ends too early"),
    "name that steers the terminal": (gguf_file(gguf_bytes([], [tensor("\x1b[2J\x1b]0;x\x07", kind=99)])), r"x1b\[2J"),
    "name of 60,000 characters": (gguf_file(gguf_bytes([], [tensor("x" * 60_000, kind=99)])), "stored as type 99"),
    # what a whole file says about itself
    "no keys at all": (gguf_file(gguf_bytes()), "bad.gguf cannot be loaded: it has no `general.architecture`"),
    "key of 60,000 characters": (gguf_with(metadata={"llama." + "x" * 60_000: 1}), "x` = 1 is not supported"),
    "another vocabulary size": (gguf_with(metadata={"llama.vocab_size": 7}), "`llama.vocab_size` is 7, but"),
    "layers 2^32-1": (gguf_with(metadata={"llama.block_count": 2**32 - 1}), "too few for 4294967295 layers"),
    "heads 2^32-1": (gguf_with(metadata={"llama.attention.head_count": 2**32 - 1}), "do not divide evenly"),
    "epsilon in letters": (gguf_with(metadata={"llama.attention.layer_norm_rms_epsilon": "1e-5"}), "must be of type float"),
    "base of minus infinity": (gguf_with(metadata={"llama.rope.freq_base": float("-inf")}), "must be numbers above 0"),
    "weights not a number": (weights("blk.0.attn_norm.weight", np.nan), "blk.0.attn_norm.weight holds values that are not finite"),
    "weights infinite": (weights("blk.0.ffn_norm.weight", np.inf), "blk.0.ffn_norm.weight holds values that are not finite"),
    "rotary divisors not a number": (gguf_with(tensors={"rope_freqs.weight": np.full(8, np.nan, "float32")}), "`rope_freqs.weight` must"),
    "rotary divisors, a million": (gguf_with(tensors={"rope_freqs.weight": np.ones(10**6, "float32")}), "`rope_freqs.weight` must"),
    "a tensor too many": (gguf_with(tensors={"x" * 60_000: np.ones(1, "float32")}), "no part of a plain Llama"),
    # the tokenizer in it
    "tokens are numbers": (tokens(tokens=[7] * 263), "`tokenizer.ggml.tokens` must be a list of str"),
    "a token twice": (tokens(tokens=["a", "a"], token_type=[1, 1]), "bad.gguf cannot be loaded"),
    "types are fractions": (tokens(token_type=[1.0]), "`tokenizer.ggml.token_type` must be a list of int"),
    "fewer types than tokens": (tokens(token_type=[1]), "give each a type"),
    "merges are numbers": (tokens(merges=[1]), "`tokenizer.ggml.merges` must be a list of str"),
    "merges of unknown tokens": (tokens(merges=["qq zz"]), "merges do not fit its tokens"),
    "merge that makes no token": (tokens(merges=["Q Q"]), "merges do not fit its tokens"),
    "merge without a space": (tokens(merges=["QQ"]), "merges do not fit its tokens"),
    "end token beyond the vocabulary": (tokens(eos_token_id=2**32 - 1), "eos_token_id` is 4294967295, which is no token"),
    "begin token in letters": (tokens(bos_token_id="<s>"), "bos_token_id` must be of type int"),
    "template is a number": (gguf_with(metadata={"tokenizer.chat_template": 7}), "must be of type str"),
    "template that loops": (
        gguf_with(metadata={"tokenizer.chat_template": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3}),
        "The chat template refuses .* loops too often",
    ),
    "template that reaches for Python": (
        gguf_with(metadata={"tokenizer.chat_template": "{{ ''.__class__.__mro__[1].__subclasses__() }}"}),
        "The chat template refuses these messages",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare, words = CASES[case]
    refused(prepare(tmp_path), tmp_path, words)


def test_what_the_cases_start_from_is_read(tmp_path):
    from keras_mtp.models.backbone import load_backbone
    from keras_mtp.models.gguf import GGUFFile

    prepare = gguf_file(
        gguf_bytes([key("a"), alignment(64)], [tensor("x"), tensor("y", offset=128)], weights=512)
    )
    assert set(GGUFFile(tmp_path / prepare(tmp_path)[2]).shapes) == {"x", "y"}
    load_backbone(gguf_with()(tmp_path)[2])
