import functools

import numpy as np
import pytest

from keras_mtp.generation.generator import Generator
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

PROMPTS = [[7, 3, 9, 1, 4, 4, 2], [5, 11, 30], [8], [1, 2, 3, 4, 5]]
_forward = functools.cache(tiny.forward)  # of a model; compiled once


def _model(prefix_length=4, **backbone) -> MTPCausalLM:
    return MTPCausalLM(
        tiny.backbone(num_layers=2, **backbone), prefix_length=prefix_length, heads=[TransformerHead()]
    )


def _greedy_uncached(model, prompt, stops, count) -> list[int]:
    """One whole forward per token. The row keeps one length, for right padding reaches no real position."""
    ids = np.zeros((1, 24), "int32")
    ids[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + count):
        token = int(_forward(model)(ids)["head_1"][0, end - 1].argmax())
        if token in stops:
            return ids[0, len(prompt) : end].tolist()
        ids[0, end] = token
    return ids[0, len(prompt) : len(prompt) + count].tolist()


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


def test_no_new_token_and_one():
    model = _model()
    assert Generator(model, stop_ids={60}, max_new_tokens=0)(PROMPTS) == [[], [], [], []]
    expected = [_greedy_uncached(model, prompt, (), 1) for prompt in PROMPTS]
    assert Generator(model, stop_ids={60}, max_new_tokens=1)(PROMPTS) == expected
    assert Generator(model, stop_ids={60}, max_new_tokens=1, speculate=True)(PROMPTS) == expected


def test_mixed_bfloat16_decodes():
    model = MTPCausalLM(tiny.backbone(num_layers=2, dtype="mixed_bfloat16"), prefix_length=4)
    assert len(Generator(model, stop_ids={60}, max_new_tokens=3)(PROMPTS)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_new_tokens": -1}, "`max_new_tokens` must be at least 0"),
        ({"stop_ids": ()}, "at least one token id"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Generator(_model(), **({"stop_ids": {1}, "max_new_tokens": 1} | arguments))
