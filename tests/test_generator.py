import functools

import numpy as np
import pytest

from keras_mtp.at_once import ADMITTED
from keras_mtp.generation.generator import Generator
from keras_mtp.generation.sampling import Sampling
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
    assert generator.asked(stop_ids=stops, max_new_tokens=4, sampling=Sampling())(PROMPTS) == [
        row[:4] for row in expected
    ]


def test_the_prefix_counts_once_a_cache_is_used():
    model = _model(4)
    generator = Generator(model, stop_ids={49}, max_new_tokens=8)
    before = generator(PROMPTS)
    model.prefix_embedding.embeddings.assign(-3 * model.prefix_embedding.embeddings)
    after = generator(PROMPTS)
    assert before != after
    assert after == [_greedy_uncached(model, prompt, {49}, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.5, seed=3)], ids=["greedy", "drawn"])
def test_any_number_of_prompts_is_answered_as_all_of_them_together(sampling):
    model, rng = _model(), np.random.default_rng(0)
    prompts = [rng.integers(1, 40, size).tolist() for size in rng.integers(1, 80, 21)]
    wish = {"stop_ids": {60}, "max_new_tokens": 12, "sampling": sampling}
    free = Generator(model, **wish)(prompts)
    wish["stop_ids"] = {answer[place] for place, answer in enumerate(free[:9], start=2)}
    expected = Generator(model, **wish)(prompts)
    assert len({len(answer) for answer in expected}) > 3, "the answers should end at different lengths"
    generator = Generator(model, **wish, rows=2 * ADMITTED)
    assert generator.answer_all(prompts) == expected
    assert generator.answer_all(prompts[:1]) == expected[:1]
    assert generator.answer_all([]) == []


def test_rows_that_are_given_new_prompts_get_room_for_them(monkeypatch):
    """Newcomers have as many slots as all others, though the cache has grown."""
    model = _model()
    monkeypatch.setattr("keras_mtp.generation.batch.AHEAD", 4)
    prompts = [[n] for n in range(1, 13)]
    wish = {"stop_ids": {60}, "max_new_tokens": 150}
    expected = Generator(model, **wish)(prompts)
    assert Generator(model, **wish, rows=ADMITTED).answer_all(prompts) == expected


def test_no_new_token_and_one():
    model = _model()
    assert Generator(model, stop_ids={60}, max_new_tokens=0)(PROMPTS) == [[], [], [], []]
    expected = [_greedy_uncached(model, prompt, (), 1) for prompt in PROMPTS]
    assert Generator(model, stop_ids={60}, max_new_tokens=1)(PROMPTS) == expected
    assert Generator(model, stop_ids={60}, max_new_tokens=1).answer_all(PROMPTS) == expected
    assert Generator(model, stop_ids={60}, max_new_tokens=0).answer_all(PROMPTS) == [[], [], [], []]
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
