"""What a run's memory is counted as, against sizes read off a real model, and how the parts move with the recipe."""

import dataclasses
import math

import keras
import keras_hub
import pytest

from keras_mtp import memory_plan
from keras_mtp.at_once import ADMITTED
from keras_mtp.backend import BACKENDS
from keras_mtp.flops import Positions, Sizes
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.memory_plan import PARTS, Workload, counted
from keras_mtp.models import filling, tuned_weights
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny

pytestmark = pytest.mark.any_backend

SIZES = Sizes(
    hidden_dim=64,
    query_dim=64,
    key_value_dim=32,
    head_dim=16,
    intermediate_dim=96,
    num_layers=5,
    vocabulary_size=500,
)
BATCH = Positions(rows=8, own=32, shared=4)
WORKLOAD = Workload(
    sizes=SIZES,
    tied=True,
    training=BATCH,
    held_out=BATCH,
    chunk_rows=128,
    prefix_length=4,
    heads=2,
    warmup=True,
)
ONES = {"program": 1000.0, **dict.fromkeys(PARTS, 1.0)}


def changed(**changes) -> dict[str, dict[str, float]]:
    return counted(dataclasses.replace(WORKLOAD, **changes))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "head"),
    [("transformer", TransformerHead), ("sequential", SequentialHead), ("linear", LinearHead)],
)
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("prefix+lora", {"prefix_length": 3, "lora_rank": 2, "lora_targets": ("query", "output", "down")}),
        ("prefix_kv", {"prefix_length": 3, "prefix_kind": "key_values"}),
    ],
)
def test_weights_are_those_of_the_model(tied, kind, head, method, arguments):
    backbone = tiny.backbone(tied=tied)
    pretrained = backbone.count_params()
    model = MTPCausalLM(backbone, heads=[head()], **arguments)
    found = Workload(
        sizes=Sizes.of(backbone),
        tied=tied,
        method=method,
        heads=1,
        kind=kind,
        training=BATCH,
        held_out=BATCH,
        chunk_rows=1,
        **{name: value for name, value in arguments.items() if name != "prefix_kind"},
    )
    assert found.trunk_weights == pretrained
    assert found.head_weights == sum(h.count_params() for h in model.heads)
    assert found.added_weights == tuned_weights.count(model)


@pytest.mark.parametrize(("mode", "tied"), [("int8", True), ("int8", False), ("int4", True), ("int4", False)])
def test_quantised_weights_take_what_they_take_in_keras(mode, tied):
    sizes = {"vocabulary_size": 64, "num_layers": 3, "num_query_heads": 4, "num_key_value_heads": 2}
    backbone = keras_hub.models.Llama3Backbone(
        **sizes,
        hidden_dim=64,
        intermediate_dim=96,
        tie_word_embeddings=tied,
        dtype=filling.policy("mixed_bfloat16", mode),
    )
    stored = sum(math.prod(v.shape) * keras.ops.convert_to_numpy(v).itemsize for v in backbone.variables)
    found = dataclasses.replace(WORKLOAD, sizes=Sizes.of(backbone), tied=tied, quantize=mode)
    assert found.trunk_bytes == stored


def test_of_quantised_weights_one_matrix_at_a_time_is_floating_point():
    plain, short = changed(compute_bytes=2)["training"], changed(compute_bytes=2, quantize="int8")["training"]
    assert plain["kernel"] == 0 and short["kernel"] == 2 * 500 * 64
    assert (
        short["quantised"] < plain["weights"] / 1.9
        and "weights" not in short
        and short["activations"] == plain["activations"]
    )


def test_lora_keeps_what_it_is_multiplied_with_and_copies_for_answers():
    plain = changed(prefix_length=0)["training"]
    narrow, wide = (
        changed(method="lora", prefix_length=0, lora_rank=2, lora_targets=names)["training"]
        for names in (("query", "value"), ("query", "down"))
    )
    assert plain["products"] == 0 and narrow["products"] == 5 * BATCH.count * 4 * 64
    assert wide["products"] - narrow["products"] == 5 * BATCH.count * 4 * 96
    assert plain["deltas"] == 0 and narrow["deltas"] == 5 * BATCH.count * 4 * (64 + 32)
    assert narrow["merged"] == 5 * 4 * (64 * 64 + 64 * 32)


def test_programs_and_what_answers_leave_stay():
    phases = changed(cache_rows=32, cache_slots=128, lengths=3, judged_lengths=2)
    blocks = 7 * 2**20
    programs = {name: parts["compiled"] / blocks for name, parts in phases.items()}
    assert programs == {
        "loading": 0,
        "evaluation": 2,
        "generation": 6,
        "warm-up": 9,
        "training": 12,
        "saving": 12,
    }
    assert phases["training"]["left"] == phases["generation"]["cache"] > 0


def test_phases_are_those_that_the_run_has():
    assert list(changed()) == ["loading", "evaluation", "warm-up", "training", "saving"]
    assert list(changed(warmup=False, cache_rows=32, cache_slots=128)) == [
        *("loading", "evaluation", "generation", "training", "saving"),
    ]
    assert (
        changed(cache_rows=32, cache_slots=128)["generation"]["cache"]
        == 4 * 2 * 5 * 32 * (32 + ADMITTED) * 128
    )


def test_a_batch_twice_as_large_has_twice_the_activations():
    small, large = (changed(training=Positions(rows=rows, own=32))["training"] for rows in (4, 8))
    assert large["activations"] == 2 * small["activations"] and large["scores"] == 2 * small["scores"]
    assert large["weights"] == small["weights"] and large["optimizer"] == small["optimizer"]


def test_what_is_trained_decides_optimizer_and_gradients():
    prefix, full = changed()["training"], changed(method="full", prefix_length=0)["training"]
    assert prefix["optimizer"] == 2 * prefix["gradients"] == 8 * 4 * 64
    weights = dataclasses.replace(WORKLOAD, method="full").trunk_weights
    assert full["optimizer"] == 8 * weights
    assert full["activations"] == prefix["activations"] and full["products"] > prefix["products"] == 0
    assert changed(accumulated=True)["training"]["optimizer"] == 3 * 4 * 4 * 64
    assert changed(heads_frozen=False)["training"]["optimizer"] > prefix["optimizer"]


def test_heads_alone_keep_no_activations_of_the_trunk():
    alone = changed(method="heads", heads_alone=True, warmup=False, prefix_length=0)["training"]
    assert 0 < alone["activations"] < changed()["training"]["activations"] / 2
    warmup = changed()["warm-up"]
    assert warmup["optimizer"] == 2 * 4 * WORKLOAD.head_weights


def test_remat_keeps_what_blocks_are_given_and_nothing_else():
    kept = changed(remat=True)["training"]
    assert kept["scores"] == 0
    of_blocks = (5 + 2) * 4 * BATCH.count * 64
    assert of_blocks <= kept["activations"] < of_blocks + 4 * BATCH.count * 64 * 7


def test_bfloat16_halves_frozen_weights_and_shrinks_activations():
    short, long = changed(stored_bytes=2, compute_bytes=2)["training"], changed()["training"]
    assert short["weights"] == long["weights"] / 2
    assert long["activations"] / 2 < short["activations"] < long["activations"]


def test_the_largest_phase_decides():
    found = memory_plan.predict(WORKLOAD, ONES)
    sums = {name: sum(parts.values()) for name, parts in found.phases.items()}
    assert found.phase == "training" and found.peak_bytes == max(sums.values())
    assert found.parts["program"] == 1000
    judged = dataclasses.replace(WORKLOAD, held_out=Positions(rows=4000, own=64))
    assert memory_plan.predict(judged, ONES).phase == "evaluation"


def test_factors_weigh_the_parts():
    plain = memory_plan.predict(WORKLOAD, ONES)
    more = memory_plan.predict(WORKLOAD, ONES | {"activations": 2.0})
    assert more.peak_bytes - plain.peak_bytes == pytest.approx(plain.parts["activations"], abs=1)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_has_been_measured(backend, dtype):
    found = memory_plan.factors(backend, dtype)
    assert found.keys() == {"program", *PARTS}
    assert all(value >= 0 for value in found.values())
    assert 5e7 < found["program"] < 2e9


def test_a_snapshot_is_a_copy_while_training_goes_on():
    assert changed(snapshots=False)["training"]["saved"] == 0
    assert changed(snapshots=True)["training"]["saved"] == changed()["saving"]["saved"] > 0
    full = {"method": "full", "prefix_length": 0, "snapshots": True}
    assert changed(**full)["training"]["saved"] >= 3 * 4 * WORKLOAD.trunk_weights
