"""Weights on their way into a backbone: the values that Keras would give them, and no more memory than they take."""

import gc
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend.common import global_state

from keras_mtp.layers.lora import projection
from keras_mtp.models import filling, llama
from keras_mtp.models.hugging_face import hugging_face_name
from keras_mtp.models.llama import LlamaSizes, sizes_of, weight_shapes
from keras_mtp.rounding import BLOCK
from keras_mtp.tuning import PROJECTIONS
from tests import quantised_twins, tiny
from tests.tiny_gguf import write_tiny_gguf

CONFIGS = {
    "int8": keras.quantizers.Int8QuantizationConfig(activation_quantizer=None),
    "int4": keras.quantizers.Int4QuantizationConfig(block_size=BLOCK),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mode", CONFIGS)
def test_a_quantised_backbone_is_what_keras_makes_of_a_float_one(mode, tied, monkeypatch):
    monkeypatch.setattr(
        gc, "collect", lambda: 0
    )  # with every weight that Keras replaces: most of this test's time
    theirs = tiny.backbone(tied=tied)
    ours = quantised_twins.loaded(theirs, quantize=mode)
    theirs.token_embedding.quantize(config=CONFIGS["int8"])  # with int4 too
    for block in theirs.transformer_layers:
        for name in PROJECTIONS:
            projection(block, name).quantize(config=CONFIGS[mode])
    assert len(ours.weights) == len(theirs.weights)
    for our, their in zip(ours.weights, theirs.weights, strict=True):
        assert (our.dtype, tuple(our.shape)) == (their.dtype, tuple(their.shape))
        our, their = (ops.convert_to_numpy(v) for v in (our, their))
        np.testing.assert_allclose(our, their, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_bfloat16"])
def test_a_float_backbone_holds_the_weights(dtype):
    plain = tiny.backbone(tied=False)
    ours = quantised_twins.loaded(plain, dtype=dtype)
    stored = "bfloat16" if dtype == "bfloat16" else "float32"
    for our, their in zip(ours.weights, plain.weights, strict=True):
        assert our.dtype == stored
        expected = ops.convert_to_numpy(ops.cast(ops.cast(their, stored), "float32"))
        np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(our, "float32")), expected)


def test_scales_are_float32_where_bfloat16_is_computed_in():
    backbone = quantised_twins.loaded(tiny.backbone(), dtype="bfloat16", quantize="int4")
    assert {v.dtype for v in backbone.weights} == {"int8", "float32"}
    assert backbone.token_embedding.compute_dtype == "bfloat16"


def test_a_weight_is_read_in_slabs(monkeypatch):
    monkeypatch.setattr(filling, "_SLAB_WEIGHTS", 300)
    in_slabs = quantised_twins.loaded(tiny.backbone(tied=False), quantize="int4")
    monkeypatch.undo()
    at_once = quantised_twins.loaded(tiny.backbone(tied=False), quantize="int4")
    for ours, theirs in zip(tiny.arrays(in_slabs.weights), tiny.arrays(at_once.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_nothing_waits_for_a_value_when_loading_fails():
    """Keras would begin all variables that wait at the end of the next stateless scope."""
    with pytest.raises(ValueError, match="layers"), filling.without_values():
        _build_and_fail(sizes_of(tiny.backbone()))
    assert not global_state.get_global_attribute("uninitialized_variables")


def _build_and_fail(sizes: LlamaSizes) -> None:
    llama.build(sizes, "float32")
    raise ValueError("layers")


# 129 million weights; the embedding, of which JAX and TensorFlow hold a copy for a moment, is a small part of them.
SIZES = LlamaSizes(
    vocabulary_size=700,
    num_layers=6,
    num_query_heads=16,
    num_key_value_heads=4,
    hidden_dim=1024,
    intermediate_dim=6144,
    layer_norm_epsilon=1e-5,
    rope_wavelength=10000.0,
    rope_scaling=None,
    tied=True,
)
BESIDES = 64e6  # bytes that a backend takes with the first weights, however many there are
MEASURE = """
import math, sys
from pathlib import Path
import keras_hub
from keras import ops
from keras_mtp import memory
from keras_mtp.layers.lora import projection
from keras_mtp.models import filling, llama
from keras_mtp.models.{module} import {source}
ops.ones(1) + 1
clock, source = memory.Clock(), {source}(Path(sys.argv[1]))
with filling.without_values():
    backbone = llama.build(source.sizes, filling.policy({dtype!r}, {quantize!r}))
source.fill(backbone)
size = {{"float32": 4, "bfloat16": 2, "int8": 1}}
print(clock.peak_bytes, sum(math.prod(v.shape) * size[v.dtype] for v in backbone.weights))
"""


def _peak_and_size(path: Path, **how: str) -> tuple[int, int]:
    code = MEASURE.format(**how)
    environment = os.environ | {"KERAS_BACKEND": keras.config.backend(), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    peak, size = done.stdout.split()[-2:]
    return int(peak), int(size)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, what a file's pages count as is another matter"
)
def test_safetensors_are_quantised_within_the_quantised_size_and_a_fifth(tmp_path):
    """A folder of 258 MB in bfloat16, all zeros and so without blocks on the disk, becomes 130 MB of int8."""
    _write_zeros(tmp_path, SIZES)
    peak, size = _peak_and_size(
        tmp_path, module="hugging_face", source="HuggingFaceFolder", dtype="bfloat16", quantize="int8"
    )
    assert 1.2e8 < size < 1.4e8 and peak < 1.2 * size + BESIDES


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere, what a file's pages count as is another matter"
)
def test_gguf_is_read_within_the_size_that_it_has_in_memory_and_a_fifth(tmp_path):
    """A file of 60 MB in Q8_0 becomes 220 MB of float32."""
    path = tmp_path / "large.gguf"
    write_tiny_gguf(path, num_layers=8, hidden=512, heads=8, kv_heads=2, inner=4096, quantization="Q8_0")
    peak, size = _peak_and_size(
        path, module="gguf_llama", source="GGUFLlama", dtype="float32", quantize="none"
    )
    assert size > 2e8 and peak < 1.2 * size + BESIDES  # with a second copy it would be 440 MB


def _write_zeros(folder: Path, sizes: LlamaSizes) -> None:
    """A Hugging Face folder with these sizes, every weight 0 in bfloat16."""
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "vocab_size": sizes.vocabulary_size,
        "hidden_size": sizes.hidden_dim,
        "intermediate_size": sizes.intermediate_dim,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_query_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "rms_norm_eps": sizes.layer_norm_epsilon,
        "rope_theta": sizes.rope_wavelength,
        "tie_word_embeddings": sizes.tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in weight_shapes(sizes).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[hugging_face_name(name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
