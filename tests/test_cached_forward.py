import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp.generation.cached_forward import CachedForward
from keras_mtp.generation.generator import Generator
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

PROMPTS = [[7, 3, 9, 1, 4, 4, 2], [5, 11, 30], [8], [1, 2, 3, 4, 5]]


def _model(prefix_length=4, **backbone) -> MTPCausalLM:
    return MTPCausalLM(tiny.backbone(**backbone), prefix_length=prefix_length, heads=[TransformerHead()])


def _greedy_uncached(model, prompt, stops, count) -> list[int]:
    """One whole forward per token. The row keeps one length, for right padding reaches no real position."""
    ids = np.zeros((1, 24), "int32")
    ids[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + count):
        token = int(ops.convert_to_numpy(model(ids)["head_1"])[0, end - 1].argmax())
        if token in stops:
            return ids[0, len(prompt) : end].tolist()
        ids[0, end] = token
    return ids[0, len(prompt) : len(prompt) + count].tolist()


@pytest.mark.parametrize("prefix_length", [0, 4])
@pytest.mark.parametrize("rope", [{}, {"rope_max_wavelength": 500}])
def test_cached_equals_uncached(prefix_length, rope):
    model = _model(prefix_length, **rope)
    forward = CachedForward(model)
    ids = tiny.token_ids(2, 9)
    expected = ops.convert_to_numpy(model(ids)["head_1"])
    cache = forward.empty_cache(2, prefix_length + 9)
    hidden, cache = forward.prefill(ids[:, :5], np.array([5, 5]), cache)
    np.testing.assert_allclose(ops.convert_to_numpy(forward.logits(hidden)), expected[:, 4], atol=2e-5)
    # Then several tokens in one pass.
    positions = np.broadcast_to(prefix_length + np.arange(5, 9), (2, 4)).astype("int32")
    visible = np.arange(prefix_length + 9)[None, None] <= positions[:, :, None]
    hidden, _ = forward.step(
        ids[:, 5:], ops.convert_to_tensor(positions), ops.convert_to_tensor(visible), cache, prefix_length + 5
    )
    np.testing.assert_allclose(ops.convert_to_numpy(forward.logits(hidden)), expected[:, 5:], atol=2e-5)


@pytest.mark.parametrize("prefix_length", [0, 4])
def test_ragged_batch_decodes_like_each_prompt_alone_without_a_cache(prefix_length):
    model = _model(prefix_length)
    free = [_greedy_uncached(model, prompt, (), 10) for prompt in PROMPTS]
    stops = {free[0][3], free[1][6]}
    expected = [tokens[: next((i for i, t in enumerate(tokens) if t in stops), 10)] for tokens in free]
    assert len({len(tokens) for tokens in expected}) > 1, "the answers should end at different lengths"
    generator = Generator(model, stop_ids=stops, max_new_tokens=10)
    assert generator(PROMPTS) == expected
    assert generator(PROMPTS, pad_to=12) == expected


def test_the_prefix_counts_once_a_cache_is_used():
    model = _model(4)
    generator = Generator(model, stop_ids={49}, max_new_tokens=8)
    before = generator(PROMPTS)
    model.prefix_embedding.embeddings.assign(-3 * model.prefix_embedding.embeddings)
    after = generator(PROMPTS)
    assert before != after
    assert after == [_greedy_uncached(model, prompt, {49}, 8) for prompt in PROMPTS]


def test_one_new_token():
    model = _model()
    expected = [_greedy_uncached(model, prompt, (), 1) for prompt in PROMPTS]
    assert Generator(model, stop_ids={60}, max_new_tokens=1)(PROMPTS) == expected


def test_mixed_bfloat16_decodes():
    model = MTPCausalLM(tiny.backbone(dtype="mixed_bfloat16"), prefix_length=4)
    assert len(Generator(model, stop_ids={60}, max_new_tokens=3)(PROMPTS)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1"),
        ({"stop_ids": ()}, "at least one token id"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Generator(_model(), **({"stop_ids": {1}, "max_new_tokens": 1} | arguments))


def test_keras_hub_still_has_the_private_parts_we_use():
    block = tiny.backbone().transformer_layers[0]
    for name in ("_self_attention_layer", "_self_attention_layernorm", "_feedforward_layernorm"):
        assert isinstance(getattr(block, name), keras.layers.Layer)
