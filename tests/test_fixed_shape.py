"""What exact mode rests on, bit for bit: a token's state depends neither on its place in a pass nor on its neighbours."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp import backend
from keras_mtp.generation.attention import CHUNK, attend_filled
from keras_mtp.generation.cached_forward import CachedForward
from keras_mtp.generation.fixed_shape import fixed_shape
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny


def test_shapes():
    assert [fixed_shape(1, k) for k in (1, 2, 3, 4, 5)] == [(1, 4), (1, 4), (1, 4), (1, 4), (1, 8)]
    assert [fixed_shape(b, 3) for b in (2, 3, 4, 7, 9)] == [(2, 4), (4, 4), (4, 4), (8, 3), (16, 3)]
    assert fixed_shape(32, 1) == (32, 1)


@pytest.fixture(params=[1, 2])
def threads(request):
    """Of torch's products, which are asked for in as many parts."""
    if keras.config.backend() != "torch":
        yield request.param if request.param == 1 else pytest.skip("torch's")
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("rows", [4, 8, 16, 24, 32, 40, 64])
def test_rows_of_a_product(rows, transpose_b, threads):
    rng = np.random.default_rng(0)
    for size, columns in ((576, 192), (576, 1536), (1536, 576), (576, 4099), (64, 64)):
        x, weight = rng.normal(size=(rows, size)).astype("float32"), rng.normal(size=(size, columns))
        weight = weight.T if transpose_b else weight
        product = functools.partial(backend.matmul, transpose_b=transpose_b)
        product = backend.compiled(product, [], xla=True)
        weight = ops.convert_to_tensor(weight.astype("float32"))
        expected = ops.convert_to_numpy(product(x, weight))
        for shift in range(1, min(rows, 9)):
            moved = np.roll(x, shift, axis=0)
            moved[0] = rng.normal(size=size)
            found = ops.convert_to_numpy(product(moved, weight))
            np.testing.assert_array_equal(found[shift:], expected[: rows - shift])


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("shape", [(1, 576), (3, 576), (64, 576), (65, 576), (2, 4, 576), (1, 575)])
def test_a_product_is_the_product(shape, transpose_b, threads):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape), rng.normal(size=(shape[-1], 4098))
    given = ops.convert_to_tensor((weight.T if transpose_b else weight).astype("float32"))
    found = backend.matmul(ops.convert_to_tensor(x.astype("float32")), given, transpose_b=transpose_b)
    np.testing.assert_allclose(ops.convert_to_numpy(found), x @ weight, atol=1e-3)


@pytest.mark.parametrize("new", [1, 4])
def test_attention_does_not_depend_on_how_far_the_other_rows_are(new):
    rng, slots = np.random.default_rng(0), 20 * CHUNK
    keys, values = (rng.normal(size=(2, 3, slots, 64)).astype("float32") for _ in range(2))
    query = rng.normal(size=(2, new, 9, 64)).astype("float32")
    attend = backend.compiled(functools.partial(attend_filled, scale=0.125), [], xla=True)
    for first in (100, 300, 9 * CHUNK + 5):
        found = {}
        for second in (3, 200, 15 * CHUNK, 19 * CHUNK + 60):
            positions = np.array([[first], [second]], "int32") + np.arange(new, dtype="int32")
            found[second] = ops.convert_to_numpy(attend(query, keys, values, positions))[0]
        for row in found.values():
            np.testing.assert_array_equal(row, found[3])


@pytest.mark.parametrize(("batch_size", "tokens"), [(1, 4), (2, 2), (2, 4), (8, 3)])
def test_a_token_is_computed_alike_in_every_place_of_a_pass(batch_size, tokens):
    backbone = tiny.backbone(hidden_dim=96, intermediate_dim=160, num_query_heads=6)
    model = MTPCausalLM(backbone, prefix_length=4)
    forward = CachedForward(model)
    step = backend.compiled(lambda *new: forward.step(forward.weights(), *new), model.variables, xla=True)
    ids = tiny.token_ids(batch_size, 200)
    read = 4 + CHUNK - 2  # the next tokens lie on both sides of a chunk's end
    start = np.full(batch_size, 4, "int32")
    _, filled = step(
        ids[:, : read - 4], start, forward.read_prefix(forward.empty_cache(batch_size, 2 * CHUNK))
    )
    filled = keras.tree.map_structure(lambda x: ops.convert_to_numpy(x).copy(), filled)
    found = []
    for ahead in range(tokens):  # as speculation does: the tokens before are known, and so is what follows
        cache = keras.tree.map_structure(lambda x: ops.convert_to_tensor(x.copy()), filled)
        places = np.full(batch_size, read, "int32")
        if ahead:
            before = np.zeros((batch_size, tokens), "int32")
            before[:, :ahead] = ids[:, read - 4 : read - 4 + ahead]
            _, cache = step(before, places, cache)
        following = ids[:, read - 4 + ahead : read - 4 + ahead + tokens]
        states, _ = step(following, places + ahead, cache)
        logits = ops.convert_to_numpy(forward.logits(ops.reshape(states, (-1, 96))))
        found.append(logits.reshape(batch_size, tokens, -1))
    for ahead in range(1, tokens):
        np.testing.assert_array_equal(found[ahead][:, : tokens - ahead], found[0][:, ahead:])
