"""A shape with random weights as a model."""

import numpy as np
import pytest
from keras import ops

from keras_mtp.errors import UserError
from keras_mtp.models import shapes
from keras_mtp.models.backbone import base_info, context_length, load_backbone
from tests import tiny

TINY = """
[tiny]
vocabulary_size = 300
num_layers = 2
num_query_heads = 4
num_key_value_heads = 2
hidden_dim = 64
intermediate_dim = 96
layer_norm_epsilon = 1e-5
rope_wavelength = 500000.0
rope_scaling = { factor = 32.0, low = 1.0, high = 4.0, length = 8192 }
tied = true
"""


@pytest.fixture
def _tiny(tmp_path, monkeypatch):
    (tmp_path / "shapes.toml").write_text(TINY)
    monkeypatch.setattr(shapes, "FILE", tmp_path / "shapes.toml")
    shapes.shapes.cache_clear()
    yield
    shapes.shapes.cache_clear()


@pytest.mark.usefixtures("_tiny")
def test_it_is_the_shape_and_the_same_every_time():
    backbone, tokenizer = load_backbone("random:tiny")
    assert (backbone.num_layers, backbone.hidden_dim, backbone.token_embedding.tie_weights) == (2, 64, True)
    again, _ = load_backbone("random:tiny")
    table, *rest = tiny.arrays(backbone.weights)
    assert 0.019 < table.std() < 0.021 and abs(table.mean()) < 1e-3
    for ours, theirs in zip([table, *rest], tiny.arrays(again.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.std() > 0 or (ours == 1).all()  # a norm's scale
    assert len({array.tobytes() for array in rest if array.std() > 0}) == 2 * 7
    quantised, _ = load_backbone("random:tiny", quantize="int8")
    scale = ops.convert_to_numpy(quantised.token_embedding.embeddings_scale)
    np.testing.assert_allclose(scale, 127 / np.abs(table).max(1), rtol=1e-4)
    text = "12 + 7? \u00e9\u4e00"
    assert tokenizer.decode(tokenizer.encode(text)) == text and max(tokenizer.encode(text)) < 256
    assert tokenizer.eos_id == 256


@pytest.mark.any_backend
@pytest.mark.usefixtures("_tiny")
def test_a_run_knows_it_by_name_and_hash():
    base = base_info("random:tiny")
    assert (base.name, base.source, base.licence) == ("tiny with random weights", "random:tiny", "none")
    assert len(base.sha256) == 64 and base.architecture["hidden_dim"] == 64
    assert context_length("random:tiny") is None


@pytest.mark.any_backend
def test_published_shapes_have_hashes_of_their_own():
    hashes = {base_info(f"random:{name}").sha256 for name in shapes.shapes()}
    assert len(hashes) == len(shapes.shapes())
    with pytest.raises(UserError, match=r"must be one of smollm2_135m, .* Received: 'llama9'"):
        base_info("random:llama9")
