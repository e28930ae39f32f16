import doctest

import numpy as np
import pytest

import keras_mtp.data.targets
from keras_mtp.data.targets import head_targets, pad
from tests import tiny


def test_the_aligned_example_of_the_docstring():
    assert doctest.testmod(keras_mtp.data.targets, extraglobs={"np": np}).failed == 0


def test_the_two_heads_of_the_design():
    ids, is_answer = np.array([[5, 6, 7, 8, 9]]), np.array([[0, 0, 1, 1, 1]], bool)
    targets, weights = head_targets(ids, is_answer, ("head_1", "head_2"))
    assert targets["head_1"].tolist() == [[6, 7, 8, 9, 0]] and weights["head_1"].tolist() == [[0, 1, 1, 1, 0]]
    assert targets["head_2"].tolist() == [[7, 8, 9, 0, 0]] and weights["head_2"].tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 30])
def test_head_k_at_t_is_token_t_plus_k_and_counts_only_answers(k):
    items = tiny.encoded(20)
    ids, is_answer = pad(items, 24)
    targets, weights = head_targets(ids, is_answer, (f"head_{k}",))
    for row, item in enumerate(items):
        for t in range(24):
            ahead = t + k
            counts = ahead < len(item.ids) and bool(item.is_answer[ahead])
            assert weights[f"head_{k}"][row, t] == counts
            if counts:
                assert targets[f"head_{k}"][row, t] == item.ids[ahead]


def test_a_placebo_learns_what_head_1_learns():
    names = ("head_1", "head_2", "head_3")
    targets, weights = head_targets(*pad(tiny.encoded(20), 24), names, target="next")
    for name in names:
        np.testing.assert_array_equal(targets[name], targets["head_1"])
        np.testing.assert_array_equal(weights[name], weights["head_1"])


def test_no_weight_on_prompt_or_padding_and_one_per_answer_token():
    items = tiny.encoded(20)
    _, weights = head_targets(*pad(items, 24), ("head_1",))
    assert weights["head_1"].sum() == sum(item.is_answer.sum() for item in items)


def test_pad_adds_empty_rows():
    ids, is_answer = pad(tiny.encoded(2), 24, rows=5)
    assert ids.shape == is_answer.shape == (5, 24)
    assert not is_answer[2:].any()
