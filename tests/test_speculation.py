"""Whatever the heads say, the tokens are those of exact decoding without them."""

import dataclasses

import numpy as np
import pytest

from keras_mtp.generation import batch, statistics
from keras_mtp.generation.generator import Generator
from keras_mtp.generation.sampling import Sampling
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

RAGGED = [[7, 3, 9, 1, 4, 4, 2], [5, 11, 30], [8], [1, 2, 3, 4, 5], [9, 9], [40], [12, 13, 14, 15]]
COUNT = 32  # ids of the model that counts


class _Both:
    """A model, and both ways of decoding with it, compiled once."""

    def __init__(self, model: MTPCausalLM, **arguments):
        self.model = model
        arguments = {"stop_ids": {49}, "max_new_tokens": 30} | arguments
        self.plain = Generator(model, exact=True, **arguments)
        self.speculative = Generator(model, speculate=True, **arguments)

    def same(self, prompts):
        tokens = self.plain(prompts)
        answers = self.speculative.answer(prompts)
        assert answers.tokens == tokens
        return answers


def _model(prefix_length=4) -> MTPCausalLM:
    heads = [TransformerHead(start="random"), SequentialHead(start="random"), LinearHead()]
    return MTPCausalLM(tiny.backbone(num_layers=2), prefix_length=prefix_length, heads=heads)


@pytest.fixture(scope="module")
def both() -> _Both:
    return _Both(_model())


def _set(heads, value) -> None:
    for head in heads:
        head.set_weights([value(v) for v in head.get_weights()])


@pytest.mark.parametrize(
    "value",
    [
        lambda old: np.random.default_rng(3).normal(0, 1, old.shape),
        lambda old: -2 * np.eye(*old.shape) if old.ndim == 2 else -old,  # as unlikely as can be
        lambda old: np.full_like(old, np.nan),
        lambda old: np.full_like(old, np.inf),
    ],
    ids=["random", "wrong", "nan", "inf"],
)
def test_useless_heads_change_nothing_and_are_given_up(both, value):
    before = [head.get_weights() for head in both.model.heads]
    _set(both.model.heads, value)
    statistics = both.same(RAGGED).statistics
    assert not statistics.speculated
    both.same(RAGGED[:1])
    for head, weights in zip(both.model.heads, before, strict=True):
        head.set_weights(weights)


@pytest.mark.parametrize("draft_vocabulary", [(9,), range(0, 50, 3)])
def test_no_choice_of_a_draft_vocabulary_changes_what_is_said(draft_vocabulary):
    model = MTPCausalLM(tiny.backbone(num_layers=2), heads=_model().heads, draft_vocabulary=draft_vocabulary)
    _Both(model).same(RAGGED)


def test_sampled_tokens_are_the_same_too():
    model, sampling = _model(), Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=5)
    both = _Both(model, sampling=sampling)
    answers = both.same(RAGGED)
    both.plain.sampling = dataclasses.replace(sampling, seed=6)
    assert answers.tokens != both.plain(RAGGED), "another seed should say something else"


def test_a_cache_that_fills_up_gets_room(monkeypatch):
    model = _model()
    roomy = Generator(model, stop_ids={60}, max_new_tokens=80, exact=True)([[5] * 55, [7]])
    monkeypatch.setattr(batch, "AHEAD", 1)
    monkeypatch.setattr(statistics, "PAYS", 0.0)
    both = _Both(model, stop_ids={60}, max_new_tokens=80)
    assert both.same([[5] * 55, [7]]).tokens == roomy
    assert [len(tokens) for tokens in roomy] == [80, 80]


@pytest.fixture(scope="module")
def counting() -> MTPCausalLM:
    """Says after every token the next number, and its heads are always right."""
    backbone = tiny.backbone(num_layers=2, tied=False, vocabulary_size=COUNT)
    for block in backbone.transformer_layers:
        for dense in (block._self_attention_layer._output_dense, block._feedforward_output_dense):
            dense.kernel.assign(np.zeros(dense.kernel.shape))
    successor = np.roll(np.eye(COUNT), 1, axis=1)
    backbone.token_embedding.embeddings.assign(np.eye(COUNT))
    backbone.token_embedding.reverse_embeddings.assign(successor)
    backbone.layer_norm.scale.assign(np.ones(32))
    model = MTPCausalLM(backbone, prefix_length=3, heads=[LinearHead(), LinearHead(), LinearHead()])
    for k, head in enumerate(model.heads, start=1):
        head.set_weights([np.linalg.matrix_power(successor, k) - np.eye(COUNT)])
    return model


@pytest.fixture(scope="module")
def counter(counting):
    """Lets it count; what is compiled for one test does for the next."""
    generator = Generator(counting, stop_ids={99}, max_new_tokens=1, speculate=True)

    def count(prompts, *, longest: int, stop: int = 99):
        generator.max_new_tokens, generator.stop_ids = longest, np.array([stop], "int32")
        return generator.answer(prompts)

    return count


def test_heads_that_are_right_give_k_tokens_a_pass(counter):
    answers = counter([[3], [8, 30]], longest=21)
    assert answers.tokens == [[(4 + i) % COUNT for i in range(21)], [(31 + i) % COUNT for i in range(21)]]
    assert answers.statistics.histogram == (0, 0, 0, 10) and answers.statistics.tokens_per_pass == 4.0


def test_a_stop_token_in_every_place_of_an_accepted_run(counter):
    prompts = [[12 - n] for n in range(1, 8)]
    assert counter(prompts, longest=20, stop=12).tokens == [list(range(13 - n, 12)) for n in range(1, 8)]


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 5, 6])
def test_the_longest_answer_ends_in_every_place_of_an_accepted_run(counter, longest):
    assert counter([[3]], longest=longest).tokens == [list(range(4, 4 + longest))]


def test_drafts_for_another_place_are_all_refused(counting, counter):
    weights = [head.get_weights() for head in counting.heads]
    for head, moved in zip(counting.heads, [*weights[1:], weights[0]], strict=True):
        head.set_weights(moved)
    answers = counter([[3]], longest=60)
    assert answers.tokens == [[(4 + i) % COUNT for i in range(60)]]
    assert not answers.statistics.speculated
    for head, own in zip(counting.heads, weights, strict=True):
        head.set_weights(own)
