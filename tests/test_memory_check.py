"""A run that cannot fit is refused before it trains, and told what would fit."""

import dataclasses
import re
from types import SimpleNamespace

import keras
import pytest

from keras_mtp import memory, memory_check, memory_plan, pipeline
from keras_mtp.data.batches import Batches
from keras_mtp.errors import UserError
from keras_mtp.flops import Sizes
from keras_mtp.models.backbone import base_info
from keras_mtp.recipe import updated
from keras_mtp.workload import NOTHING, that_fit, workload
from tests import tiny, tiny_run
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend

EXAMPLES = tiny.encoded(40, longest=60)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory_check")
    tiny_run.write_inputs(folder)
    return tiny_run.recipe(folder, training__batch_size=8, evaluation__batch_size=4, data__buckets=0)


@pytest.fixture(scope="module")
def base(recipe):
    return base_info(recipe.model.name)


def needed(recipe, base):
    return workload(
        recipe,
        Sizes.of(SimpleNamespace(**base.architecture)),
        tied=True,
        chunk_rows=128,
        training=memory_check.training_positions(recipe, EXAMPLES, 64),
        held_out=memory_check.held_out_positions(recipe, EXAMPLES[:8]),
        cache=(32, 128),
    )


def factors(recipe):
    return memory_plan.factors(keras.config.backend(), recipe.training.dtype)


def test_the_lengths_are_those_of_the_batches_that_the_run_will_see(recipe):
    batches = [
        Batches(EXAMPLES, heads=("head_1",), steps=steps, batch_size=8, buckets=0, purpose=purpose)
        for purpose, steps in (("warmup", 2), ("joint", 3))
    ]
    widths = {each[index][0].shape[1] for each in batches for index in range(each.num_batches)}
    assert len(widths) > 1 and memory_check.padded_lengths(recipe, EXAMPLES) == widths


def test_positions_are_those_of_a_micro_batch_with_its_prefix(recipe):
    whole = memory_check.training_positions(recipe, EXAMPLES, 64)
    assert whole.rows == 8 and whole.own + whole.shared == 64 + recipe.prefix.length
    halved = memory_check.training_positions(updated(recipe, {"training.accumulation": 2}), EXAMPLES, 64)
    assert halved == dataclasses.replace(whole, rows=4)
    kept = memory_check.training_positions(updated(recipe, {"tuning.method": "prefix_kv"}), EXAMPLES, 64)
    assert kept.kept == 3 and whole.kept == 0 and whole.shared - kept.shared == 3


def test_settings_that_fit_are_named_and_the_smallest_change_comes_first(recipe, base):
    # Training decides, whatever the factors of a backend are.
    whole_run = dataclasses.replace(needed(recipe, base), held_out=NOTHING, cache_rows=0)

    def fitting(free, *fixed):
        return next(that_fit(recipe, whole_run, factors(recipe), free, fixed), None)

    def peak(**changes):
        return memory_plan.predict(dataclasses.replace(whole_run, **changes), factors(recipe)).peak_bytes

    def rows(count):
        return dataclasses.replace(whole_run.training, rows=count)

    whole, half = peak(), peak(training=rows(4), accumulated=True)
    assert half < whole
    assert fitting(whole) == {}
    assert fitting(half) == {"training.accumulation": 2}
    assert fitting(half - 1)["training.accumulation"] == 4
    assert fitting(half, "training.accumulation") != {"training.accumulation": 2}
    assert fitting(1000) is None


def test_devices_of_one_cpu_share_its_memory_and_divide_what_is_named(recipe, base, monkeypatch):
    """What fits is found for all of them together, and each must still have a share of every micro-batch."""
    for devices, accumulation in ((2, 2), (4, 2), (8, None)):
        several = updated(recipe, {"distribution.data": devices})
        positions = memory_check.training_positions(memory_check.in_one_memory(several), EXAMPLES, 64)
        assert positions.rows == 8

        def check(recipe=several, positions=positions):
            return memory_check._checked(recipe, base, memory.Clock(), training=positions)

        peak = check().peak_bytes
        with monkeypatch.context() as patched:
            patched.setattr(memory_check, "_free_bytes", lambda _, peak=peak: peak - 1)
            with pytest.raises(UserError) as refused:
                check()
        named = re.search(r"training\.accumulation=(\d+)", str(refused.value))
        assert (named and int(named[1])) == accumulation


def test_a_run_that_does_not_fit_says_what_it_needs_and_what_there_is():
    parts = {"weights": 2.0 * 2**30, "activations": 6.0 * 2**30, "logits": 0.5 * 2**30, "states": 1.0}
    recipe = tiny_run.load_recipe("gsm8k")
    prediction = memory_plan.Prediction(workload=None, phases={"training": parts})
    text = memory_check.refusal(prediction, 4 * 2**30, {"training.accumulation": 2})
    assert "8.50 GiB" in text and "Free: 4.00 GiB" in text and "activations 6.00 GiB" in text
    assert "fits with training.accumulation=2" in text and "training.memory_check=false" in text
    assert "training.remat" not in text
    nothing = memory_check.refusal(prediction, 4 * 2**30, None)
    assert "Not even" in nothing and "data.max_tokens" in nothing and "smaller model" in nothing
    assert recipe.training.memory_check


def test_an_endless_model_is_refused_before_it_is_loaded(recipe, base):
    """The weights alone, of a model with a thousand times the width."""
    vast = dataclasses.replace(base, architecture=base.architecture | {"intermediate_dim": 10**10})
    with pytest.raises(UserError, match=r"must fit into memory. Predicted: .* Not even"):
        memory_check.before_loading(recipe, vast, memory.Clock())
    memory_check.before_loading(updated(recipe, {"training.memory_check": False}), vast, memory.Clock())
    memory_check.before_loading(recipe, base, memory.Clock())


def test_a_run_is_refused_before_it_trains(recipe, tmp_path):
    """Batches so large that no machine has the memory; only lengths are looked at, nothing is computed."""
    write_tiny_gguf(tmp_path / "tiny.gguf", num_layers=2)
    vast = updated(recipe, {"evaluation.batch_size": 10**9, "evaluation.test_limit": 0})
    with pytest.raises(UserError, match=r"It fits with evaluation.batch_size=\d+"):
        pipeline.run(vast, tmp_path / "run", progress=False)
    assert not (tmp_path / "run/metrics.csv").exists()
