import gguf
import numpy as np
import pytest

from keras_mtp.errors import UserError
from keras_mtp.models import gguf as gguf_format
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_llama import read_sizes, read_weight
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from tests.tiny_gguf import write_tiny_gguf


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tiny.gguf"


def _load_all(path):
    """Everything that `load_backbone` reads, without Keras."""
    file = GGUFFile(path)
    sizes = read_sizes(file)
    read_tokenizer(file)
    return {name: read_weight(file, sizes, name) for name in file.shapes}


@pytest.mark.parametrize("tied", [True, False])
def test_float32_weights_come_back_exactly(path, tied):
    written = write_tiny_gguf(path, tied=tied)
    read = _load_all(path)
    assert read.keys() == written.keys()
    for name, weight in written.items():
        np.testing.assert_array_equal(read[name], weight, err_msg=name)


def test_the_sizes_are_those_written(path):
    write_tiny_gguf(path, tied=False, num_layers=2, hidden=48, heads=6, kv_heads=3, inner=40)
    sizes = read_sizes(GGUFFile(path))
    assert (sizes.num_layers, sizes.hidden_dim, sizes.intermediate_dim) == (2, 48, 40)
    assert (sizes.num_query_heads, sizes.num_key_value_heads, sizes.head_dim) == (6, 3, 8)
    assert (sizes.layer_norm_epsilon, sizes.rope_wavelength, sizes.rope_scaling) == (1e-5, 1e5, None)
    assert not sizes.tied


def test_q8_0_weights_come_back_within_half_a_step(path):
    written = write_tiny_gguf(path, quantization="Q8_0")
    read = _load_all(path)
    for name, weight in written.items():
        # One scale for 32 weights, 127 steps to the largest; the scale itself is a float16.
        step = np.abs(weight).max() / 127 if weight.ndim > 1 else 0.0
        np.testing.assert_allclose(read[name], weight, rtol=0, atol=0.55 * step, err_msg=name)


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_the_format_is_read_as_the_gguf_package_reads_it(path, quantization, monkeypatch):
    monkeypatch.setattr(gguf_format, "_SLAB_WEIGHTS", 100)  # several slabs even here
    write_tiny_gguf(path, quantization=quantization)
    file, reader = GGUFFile(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert file.metadata == expected
    assert list(file.shapes) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), weight)


REFUSED_METADATA = {
    "other architecture": ({"general.architecture": "qwen2"}, "`general.architecture` must be 'llama'"),
    "experts": ({"llama.expert_count": 8}, "`llama.expert_count` = 8 is not supported"),
    "sliding window": ({"llama.attention.sliding_window": 128}, "`llama.attention.sliding_window` = 128"),
    "linear rope without factor": (
        {"llama.rope.scaling.type": "linear"},
        "it has no `llama.rope.scaling.factor`",
    ),
    "linear rope by 0": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0},
        "must be numbers above 0",
    ),
    "a part": ({"split.count": 3}, "it is one part of 3"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, "`llama.rope.scaling.type` = 'yarn'"),
    "rope factor": (
        {"llama.rope.scaling.factor": 2.0},
        "`llama.rope.scaling.factor` = 2.0 stands there without",
    ),
    "partial rope": ({"llama.rope.dimension_count": 4}, "`llama.rope.dimension_count` must be 8"),
    "wide heads": ({"llama.attention.key_length": 16}, "`llama.attention.key_length` must be 8"),
    "sizes per layer": ({"llama.attention.head_count_kv": [2, 2, 2]}, "head_count_kv` must be of type int"),
    "odd heads": ({"llama.attention.head_count": 5}, "do not divide evenly"),
    "no layers": ({"llama.block_count": 0}, "`llama.block_count` must be at least 1"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "it has no `llama.attention.layer_norm"),
    "more layers": ({"llama.block_count": 4}, "9 tensors are missing, the first is blk.3.attn_norm.weight"),
    "fewer layers": ({"llama.block_count": 2}, "9 tensors are no part of a plain Llama"),
    "other width": ({"llama.feed_forward_length": 65}, r"ffn_gate.weight must have shape \(65, 32\)"),
    "wordpiece": ({"tokenizer.ggml.model": "bert"}, "`tokenizer.ggml.model` must be 'gpt2' or 'llama'"),
    "no scores": (
        {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": None},
        "no `tokenizer.ggml.scores`",
    ),
    "other cut": (
        {"tokenizer.ggml.pre": "qwen2"},
        "must be one of gpt-2, llama-bpe, smollm. Received: 'qwen2'",
    ),
    "unknown cut": ({"tokenizer.ggml.pre": None}, "it has no `tokenizer.ggml.pre`"),
    "no end token": ({"tokenizer.ggml.eos_token_id": None}, "it has no `tokenizer.ggml.eos_token_id`"),
    "end token too high": ({"tokenizer.ggml.eos_token_id": 9999}, "is 9999, which is no token"),
    "missing types": ({"tokenizer.ggml.token_type": [1, 1]}, "name every token once and give each a type"),
    "strange merges": ({"tokenizer.ggml.merges": ["zz zz"]}, "merges do not fit its tokens"),
    "broken template": ({"tokenizer.chat_template": "{% for %}"}, "not valid Jinja2"),
}


@pytest.mark.parametrize("case", REFUSED_METADATA)
def test_what_is_not_understood_is_refused_by_name(path, case):
    metadata, message = REFUSED_METADATA[case]
    write_tiny_gguf(path, metadata=metadata)
    with pytest.raises(UserError, match=message):
        _load_all(path)


REFUSED_TENSORS = {
    "bias": ({"blk.0.attn_q.bias": np.zeros(32, "float32")}, "no part of a plain Llama.* blk.0.attn_q.bias"),
    "missing": ({"blk.1.ffn_up.weight": None}, "1 tensors are missing, the first is blk.1.ffn_up.weight"),
    "shape": ({"blk.2.attn_v.weight": np.zeros((32, 16), "float32")}, r"must have shape \(16, 32\), but has"),
    "rope": (
        {"rope_freqs.weight": np.array([1, 1, 2, 3], "float32")},
        "`rope_freqs.weight` is not Llama 3.1's",
    ),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_tensors_that_do_not_fit_are_refused_by_name(path, case):
    tensors, message = REFUSED_TENSORS[case]
    write_tiny_gguf(path, tensors=tensors)
    with pytest.raises(UserError, match=message):
        _load_all(path)


def test_a_type_that_cannot_be_dequantised_is_refused(path):
    write_tiny_gguf(path, num_layers=1)
    file = GGUFFile(path)
    assert gguf.GGMLQuantizationType.I32 not in gguf.quants._type_traits
    data = bytearray(path.read_bytes())
    start = data.index(b"blk.0.attn_q.weight") + len("blk.0.attn_q.weight") + 4 + 2 * 8
    data[start : start + 4] = int(gguf.GGMLQuantizationType.I32).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match="stored as I32, which cannot be read"):
        _load_all(path)
    assert file.shapes == GGUFFile(path).shapes


@pytest.mark.parametrize(
    "content", [b"", b"GG", b"not a GGUF file at all, only some text", b"GGUF" + bytes(40)]
)
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a whole GGUF file"):
        GGUFFile(path)


def test_a_file_cut_short_anywhere_is_refused(path):
    write_tiny_gguf(path, num_layers=1)
    data = path.read_bytes()
    for end in [*range(0, len(data), len(data) // 200), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(UserError, match="Download it again"):
            GGUFFile(path)


def test_damage_in_the_header_never_ends_in_another_error(path):
    """Any byte of the header may be wrong: the file loads, or it is refused."""
    write_tiny_gguf(path, num_layers=1)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[rng.integers(4000)] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            _load_all(path)
        except UserError:
            refused += 1
    assert 50 < refused < 400
