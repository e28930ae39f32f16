import dataclasses
import itertools

import keras
import numpy as np
import pytest

from keras_mtp import backend
from keras_mtp.data.batches import Batches
from keras_mtp.data.encoding import Encoded
from keras_mtp.data.lengths import MOST_BUCKETS, bucket_lengths, enough_buckets
from keras_mtp.data.splits import places_by_source, split_held_out
from keras_mtp.errors import UserError
from tests import tiny


def _batches(**overrides) -> Batches:
    arguments = {"heads": ("head_1", "head_2"), "steps": 30, "batch_size": 4, "seed": 0} | overrides
    return Batches(tiny.encoded(41, longest=60), **arguments)


def _ids(batches: Batches) -> list[list[int]]:
    return [batches.step_examples(step).tolist() for step in range(batches.steps)]


def test_order_is_a_function_of_seed_and_purpose_alone():
    assert _ids(_batches()) == _ids(_batches(heads=("head_4",)))
    assert _ids(_batches()) != _ids(_batches(seed=1))
    assert _ids(_batches()) != _ids(_batches(purpose="warmup"))


def test_any_step_can_be_entered_without_those_before():
    assert _batches().step_examples(23).tolist() == _ids(_batches())[23]


def test_an_epoch_visits_every_example_at_most_once_and_leaves_out_less_than_a_batch():
    seen = np.concatenate([_batches().step_examples(step) for step in range(10)])
    assert len(seen) == len(set(seen.tolist())) == 40


def test_what_an_epoch_leaves_out_changes():
    left_out = {
        frozenset(range(41)) - set(_batches().epoch_order(epoch).ravel().tolist()) for epoch in range(8)
    }
    assert len(left_out) > 1


def test_weights_of_each_head_sum_to_one():
    for index in range(5):
        _, targets, weights = _batches()[index]
        assert targets.keys() == weights.keys() == {"head_1", "head_2"}
        for weight in weights.values():
            assert weight.sum() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "shares"), [("ramp_up", [0.25, 0.5, 0.75, 1.0]), ("decay", [1.0, 0.75, 0.5, 0.25])]
)
def test_a_schedule_weighs_the_further_heads_and_leaves_head_1_alone(schedule, shares):
    batches = _batches(steps=4, schedule=schedule, accumulation=2)
    for step, share in enumerate(shares):
        halves = [batches[2 * step + micro][2] for micro in range(2)]
        # Keras averages over the two halves: each weighs twice.
        assert sum(weights["head_1"].sum() for weights in halves) == pytest.approx(2.0, abs=1e-6)
        assert sum(weights["head_2"].sum() for weights in halves) == pytest.approx(2 * share, abs=1e-6)
        assert batches.weight("head_2", step) == pytest.approx(share)


def test_accumulation_splits_the_same_batch():
    whole, split = _batches(), _batches(accumulation=2)
    assert split.num_batches == 2 * whole.num_batches
    x, targets, weights = whole[3]
    halves = split[6], split[7]
    np.testing.assert_array_equal(np.concatenate([h[0] for h in halves]), x)
    for name in targets:
        np.testing.assert_array_equal(np.concatenate([h[1][name] for h in halves]), targets[name])
        # Keras averages the gradients of the halves: each weighs twice.
        np.testing.assert_allclose(np.concatenate([h[2][name] for h in halves]) / 2, weights[name], rtol=1e-6)


def test_heads_are_those_asked_for():
    _, targets, _ = _batches(heads=("head_2",))[0]
    assert list(targets) == ["head_2"]


def test_few_lengths_and_little_padding():
    batches = _batches(steps=100, buckets=3)
    widths = {batches[i][0].shape[1] for i in range(100)}
    assert len(widths) <= 3
    assert 0 < batches.padding_share(100) < _batches(steps=100, buckets=1).padding_share(100)
    assert batches.tokens(0) == batches[0][0].size


def test_no_more_buckets_than_keep_padding_under_a_tenth():
    lengths = np.array([96] * 50 + [104] * 50 + [400] * 10)
    assert enough_buckets(lengths) == 2
    assert enough_buckets(np.array([100] * 10)) == 1
    assert enough_buckets(np.geomspace(8, 4000, 20).astype(int)) == MOST_BUCKETS
    batches = _batches(steps=100, buckets=0)
    assert len(batches.bucket_lengths) == enough_buckets(batches.lengths)


def test_buckets_are_the_best_there_are():
    lengths = np.array([8] * 10 + [16] * 10 + [64] * 10 + [72])
    assert bucket_lengths(lengths, 1).tolist() == [72]
    assert bucket_lengths(lengths, 2).tolist() == [16, 72]
    assert bucket_lengths(lengths, 9).tolist() == [8, 16, 64, 72]


def test_too_few_examples_for_a_batch():
    with pytest.raises(UserError, match=r"Received: 3 examples for training\.batch_size=4"):
        Batches(tiny.encoded(3), heads=("head_1",), steps=1, batch_size=4)


def test_held_out_slice_is_fixed_and_apart():
    items = tiny.encoded(200)
    train, held_out = split_held_out(items, 10)
    train_again, more = split_held_out(items, 15)
    assert [i.id for i in train] == [i.id for i in train_again]
    assert [i.id for i in more[:10]] == [i.id for i in held_out]
    assert len(more) == 15 and len(train) == 180
    assert not {i.id for i in more} & {i.id for i in train}


def test_examples_are_found_by_source_the_largest_first():
    items = [
        dataclasses.replace(item, source=source)
        for item, source in zip(tiny.encoded(6), "bacaba", strict=True)
    ]
    assert places_by_source(items) == {"a": [1, 3, 5], "b": [0, 4], "c": [2]}
    assert list(places_by_source(items)) == ["a", "b", "c"] and places_by_source(tiny.encoded(3)) == {}


def test_what_says_the_same_as_a_held_out_item_is_not_trained_on():
    items = tiny.encoded(40)
    twins = [Encoded(id=f"twin {item.id}", ids=item.ids, is_answer=item.is_answer) for item in items]
    train, held_out = split_held_out(items + twins, 80)
    seen = {item.ids.tobytes() for item in held_out}
    assert len(held_out) == 8 and not any(item.ids.tobytes() in seen for item in train)
    assert {i.ids.tobytes() for i in items} == seen | {i.ids.tobytes() for i in train}


def _consumed(source, count) -> list[tuple[bytes, ...]]:
    """The token ids of the first batches, as training would be given them."""
    found = (
        itertools.islice(source, count)
        if not hasattr(source, "num_batches")
        else map(source.__getitem__, range(count))
    )
    return [np.asarray(ids).tobytes() for ids, *_ in found]


def test_whoever_goes_on_anywhere_gets_what_is_left_in_the_same_order():
    """300 steps over three epochs, two micro-batches each, gone on with after every step; the shapes differ from batch to batch."""
    batches = Batches(
        tiny.encoded(400),
        heads=("head_1", "head_2"),
        steps=300,
        batch_size=4,
        accumulation=2,
        buckets=3,
        seed=5,
    )
    whole = _consumed(backend.fit_input(batches.after(0)), 600)
    assert len({len(ids) for ids in whole}) > 1 and len(set(whole)) > 590
    for step in range(300):
        # All that is left, but on TensorFlow, whose stream of Python objects is slow, mostly the first few.
        count = (
            600 - 2 * step
            if keras.config.backend() != "tensorflow" or step % 60 == 0
            else min(6, 600 - 2 * step)
        )
        assert _consumed(backend.fit_input(batches.after(step)), count) == whole[2 * step : 2 * step + count]
