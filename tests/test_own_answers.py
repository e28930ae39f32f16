"""The model's own answers against an argmax over the whole uncached forward pass."""

import functools

import numpy as np
import pytest

from keras_mtp import Example, MTPCausalLM
from keras_mtp.data.encoding import encode_all, encode_example
from keras_mtp.data.example import Message
from keras_mtp.generation.own_answers import own_answers
from tests import tiny
from tests.tiny_gguf import write_tiny_gguf

QUESTIONS = ("how many apples", "and pears?", "one and one?", "what")
_forward = functools.cache(tiny.forward)  # of a model; compiled once


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> MTPCausalLM:
    path = tmp_path_factory.mktemp("own") / "tiny.gguf"
    write_tiny_gguf(path, num_layers=2)
    return MTPCausalLM.from_preset(str(path), prefix_length=3)


def _examples(model):
    examples = [Example(id=str(i), prompt=text, answer="5") for i, text in enumerate(QUESTIONS)]
    return encode_all(examples, model.tokenizer, 1000).examples


def _continued(model, ids, count: int, stops=()) -> list[int]:
    """Greedy decoding without a cache. The row keeps one length, for right padding reaches no real position."""
    row = np.zeros((1, 96), "int32")
    row[0, : len(ids)] = ids
    for end in range(len(ids), len(ids) + count):
        row[0, end] = _forward(model)(row)["head_1"][0, end - 1].argmax()
        if row[0, end] in stops:
            break
    return row[0, len(ids) : end + 1].tolist()


def _answered(model, examples, **changes):
    settings = {"count": 100, "seed": 0, "max_tokens": max(len(e.ids) for e in examples) + 4, "batch_size": 3}
    return own_answers(model, examples, **(settings | changes))


def test_answers_are_the_models_and_no_example_is_longer_than_allowed(model):
    examples = _examples(model)
    allowed = max(len(e.ids) for e in examples) + 4
    for old, new in zip(examples, _answered(model, examples), strict=True):
        prompt = old.prompt_ids
        said = _continued(model, prompt, allowed - len(prompt), model.tokenizer.eos_ids)
        assert new.id == old.id and new.ids.tolist() == prompt + said
        assert new.is_answer.tolist() == [False] * len(prompt) + [True] * len(said)


def test_an_answer_that_ended_has_the_end_token_of_the_template(model, monkeypatch):
    """The second token that the model says becomes one of those at which it stops."""
    examples = _examples(model)[:1]
    prompt, end = examples[0].prompt_ids, int(examples[0].ids[-1])
    first, second = _continued(model, prompt, 2)
    assert second not in (first, end)
    monkeypatch.setattr(model.tokenizer, "eos_ids", (*model.tokenizer.eos_ids, second))
    (answered,) = _answered(model, examples)
    assert answered.ids.tolist() == [*prompt, first, end]


def test_only_the_last_answer_is_the_models(model):
    history = (Message("user", "one?"), Message("assistant", "two"))
    example = encode_example(Example(id="1", history=history, prompt="and?", answer="5"), model.tokenizer)
    (answered,) = _answered(model, [example])
    assert answered.ids[: len(example.prompt_ids)].tolist() == example.prompt_ids
    assert example.is_answer[: len(example.prompt_ids)].any() and not answered.is_answer[:-5].all()
    assert not answered.is_answer[: len(example.prompt_ids)].any()


def test_no_more_are_answered_than_training_will_look_at(model):
    examples = _examples(model)
    ids = [[item.id for item in _answered(model, examples, count=2, seed=seed)] for seed in range(8)]
    assert all(len(some) == 2 and some == sorted(some) for some in ids)
    assert len({tuple(some) for some in ids}) > 1 and ids[0] == [
        e.id for e in _answered(model, examples, count=2)
    ]
