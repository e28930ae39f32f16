"""Every method on a tiny model: what it trains, keeps, and says when text is decoded."""

import functools

import keras
import numpy as np
import pytest

from keras_mtp import checkpoint
from keras_mtp.data.encoding import Encoded
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.generation import statistics
from keras_mtp.generation.generator import Generator
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.models.tuned_weights import count, tuned_variables
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import head_losses, train
from tests import tiny
from tests.autodiff import value_and_gradients
from tests.test_checkpoint import BASE

# What `MTPCausalLM` is given for each, what the names of its trained weights begin with, and a rate that suits it.
PREFIX = {"prefix_length": 4, "prefix_start": [1, 2, 3]}
KEY_VALUES = {**PREFIX, "prefix_kind": "key_values"}
LORA = {"lora_rank": 4, "lora_alpha": 8.0}
METHODS = {
    "prefix": (PREFIX, {"prefix"}, 0.05),
    "prefix_kv": (KEY_VALUES, {"prefix"}, 0.05),
    "lora": (LORA, {"lora"}, 0.03),
    "full": ({"freeze_backbone": False}, {"backbone"}, 0.01),
    "heads": ({}, set(), 0.0),
    "prefix+lora": (PREFIX | LORA, {"prefix", "lora"}, 0.03),
    "prefix_kv+lora": (KEY_VALUES | LORA, {"prefix", "lora"}, 0.03),
}
TUNING = [name for name in METHODS if name != "heads"]


def _model(method: str, heads=(), **backbone) -> MTPCausalLM:
    return MTPCausalLM(tiny.backbone(**({"num_layers": 2} | backbone)), heads=heads, **METHODS[method][0])


def _recipe(method: str, **changes) -> Recipe:
    values = {
        "tuning.method": method,
        "prefix.length": 4,
        "heads.warmup_steps": 3,
        "heads.learning_rate": 0.01,
        "heads.freeze": method != "heads",
        "training.steps": 12,
        "training.batch_size": 4,
        "training.learning_rate": METHODS[method][2],
        "evaluation.every": 12,
        "data.buckets": 1,
    }
    return updated(Recipe(name="tiny"), values | {key.replace("__", "."): v for key, v in changes.items()})


def _train(model, method: str, folder, examples: list[Encoded] | None = None, **changes) -> list[dict]:
    log = MetricsLog(folder / "metrics.csv", model.head_names)
    judge = HeldOutEvaluation(model, tiny.encoded(6, seed=9), 4)
    train(
        model,
        examples or tiny.encoded(40),
        _recipe(method, heads__count=len(model.heads), **changes),
        log,
        judge,
    )
    log.close()
    return log.rows


@functools.cache
def _trained(method: str, folder) -> tuple[MTPCausalLM, dict[str, np.ndarray], list[dict]]:
    """A model of each method with two heads after training, its backbone and what it tunes before, and the log's rows."""
    model = _model(method, [TransformerHead(), LinearHead()])
    variables = {f"trunk/{v.path}": v for v in model.backbone.weights} | tuned_variables(model)
    before = dict(zip(variables, tiny.arrays(variables.values()), strict=True))
    return model, before, _train(model, method, folder)


@pytest.fixture
def trained(tmp_path_factory):
    return lambda method: _trained(method, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("method", METHODS)
def test_training_moves_what_the_method_says_and_nothing_else(method, trained):
    model, before, rows = trained(method)
    tuned = tuned_variables(model)
    assert {name.split("/")[0] for name in tuned} == METHODS[method][1]
    assert count(model) == sum(v.size for v in tiny.arrays(tuned.values()))
    for name, variable in tuned.items():
        assert not np.array_equal(tiny.arrays([variable])[0], before[name]), name
    for variable in model.backbone.weights:
        same = tiny.arrays([variable])[0].tobytes() == before[f"trunk/{variable.path}"].tobytes()
        assert same == (id(variable) not in {id(v) for v in tuned.values()}), variable.path
    stages = ["heads"] if method == "heads" else ["warmup", "joint"]
    assert list(dict.fromkeys(row["stage"] for row in rows)) == stages
    judged = [row for row in rows if "held_out_head_1_loss" in row]
    if method == "heads":
        assert judged[-1]["held_out_head_1_loss"] == judged[0]["held_out_head_1_loss"]
        assert judged[-1]["held_out_head_2_loss"] < judged[0]["held_out_head_2_loss"] - 0.3
    else:
        assert judged[-1]["held_out_head_1_loss"] < judged[0]["held_out_head_1_loss"] - 0.1


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_brings_it_all_back(method, trained, tmp_path):
    model, _, _ = trained(method)
    checkpoint.save(tmp_path / "checkpoint", model, [], base=BASE, steps=1)
    again = _model(method, [TransformerHead(), LinearHead()])
    checkpoint.restore(tmp_path / "checkpoint", again, base=BASE)
    ids = tiny.token_ids()
    logits = tiny.forward(again)(ids)
    for name, expected in tiny.forward(model)(ids).items():
        np.testing.assert_array_equal(logits[name], expected)


@pytest.mark.parametrize(
    ("written", "read"),
    [("prefix", "prefix_kv"), ("prefix_kv", "lora"), ("lora", "prefix+lora"), ("full", "heads")],
)
def test_a_checkpoint_of_another_method_is_refused(written, read, trained, tmp_path):
    checkpoint.save(tmp_path / "checkpoint", trained(written)[0], [], base=BASE, steps=1)
    with pytest.raises(UserError, match=r"does not fit the run's recipe: tensor (prefix|lora|backbone)/"):
        checkpoint.restore(
            tmp_path / "checkpoint", _model(read, [TransformerHead(), LinearHead()]), base=BASE
        )


@pytest.mark.parametrize("method", TUNING)
def test_decoding_says_what_the_model_says(method, trained):
    """Greedily, a token at a time by the whole forward pass; with an end of the prompt that is nearer than the heads look."""
    model, _, _ = trained(method)
    whole = tiny.forward(model)
    for prompt in ([7, 3, 9, 1], [8]):
        text = list(prompt)
        for _ in range(6):
            padded = np.zeros((1, 12), "int32")
            padded[0, : len(text)] = text
            text.append(int(whole(padded)["head_1"][0, len(text) - 1].argmax()))
        said = Generator(model, stop_ids={60}, max_new_tokens=6)([prompt])
        assert said == [text[len(prompt) :]]


@pytest.mark.parametrize("method", ["prefix_kv", "lora", "prefix_kv+lora"])
def test_speculation_says_what_exact_decoding_says(method, trained, monkeypatch):
    monkeypatch.setattr(statistics, "PAYS", 0.0)
    heads = [TransformerHead(start="random"), SequentialHead(start="random"), LinearHead()]
    model, source = _model(method, heads), trained(method)[0]
    for name, variable in tuned_variables(model).items():
        variable.assign(tuned_variables(source)[name])
    prompts = [[7, 3, 9, 1, 4, 4, 2], [5, 11, 30], [8]]
    exact, speculative = (
        Generator(model, stop_ids={60}, max_new_tokens=24, **kind)
        for kind in ({"exact": True}, {"speculate": True})
    )
    answers = speculative.answer(prompts)
    assert answers.tokens == exact(prompts)
    assert answers.statistics.speculated


def test_decoding_follows_lora_as_it_is_now(trained):
    model = _model("lora")
    decode = Generator(model, stop_ids={60}, max_new_tokens=8)
    before = decode([[7, 3, 9]])
    for name, variable in tuned_variables(model).items():
        variable.assign(tuned_variables(trained("lora")[0])[name])
    after = decode([[7, 3, 9]])
    assert after != before
    assert after == Generator(model, stop_ids={60}, max_new_tokens=8)([[7, 3, 9]])


@pytest.mark.parametrize("method", ["prefix_kv", "lora", "full"])
def test_detached_heads_are_a_true_control(method, tmp_path):
    without, detached = _model(method), _model(method, [TransformerHead(), LinearHead()])
    changes = {"heads__warmup_steps": 0, "heads__weight": 1.0, "heads__freeze": False, "training__steps": 6}
    _train(without, method, tmp_path, **(changes | {"heads__freeze": True}))
    _train(detached, method, tmp_path, heads__detach=True, **changes)
    for (name, ours), theirs in zip(
        tuned_variables(detached).items(), tiny.arrays(tuned_variables(without).values()), strict=True
    ):
        apart = 1e-5 if keras.config.backend() == "jax" else 0
        np.testing.assert_allclose(tiny.arrays([ours])[0], theirs, rtol=0, atol=apart, err_msg=name)


@pytest.mark.parametrize("tied", [True, False])
def test_under_full_a_far_head_moves_neither_norm_nor_unembedding(tied):
    """A tied unembedding is the embedding too: there only the batch's tokens get a gradient, through the trunk."""
    model = _model("full", [TransformerHead(), SequentialHead(), LinearHead()], tied=tied)
    ids = tiny.token_ids(2, 7)
    unseen = np.setdiff1d(np.arange(tiny.VOCABULARY), ids)
    own, far = (_gradients(model, ids, names) for names in (["head_1"], model.head_names[1:]))
    norm, table = model.backbone.layer_norm.scale.path, model.backbone.token_embedding.embeddings.path
    assert own[norm].any() and not far[norm].any()
    assert own[table][ids[0]].any() and far[table][ids[0]].any()
    assert not far[table][unseen].any() and own[table][unseen].any() == tied
    if not tied:
        unembedding = model.backbone.token_embedding.reverse_embeddings.path
        assert own[unembedding].any() and not far[unembedding].any()


def _gradients(model, ids, names) -> dict[str, np.ndarray]:
    """Of some heads' losses, as a stage of training has them, with respect to the trunk, by path."""
    view, unembedding = model.training_view(), model.backbone.token_embedding
    targets, weights = np.roll(ids, -1, 1), np.full(ids.shape, 1 / ids.size, "float32")
    losses = head_losses(unembedding, names)

    def scaled(scale, ids):
        states = view(ids)
        return scale * sum(loss(targets, states[name], weights) for name, loss in losses.items())

    variables = model.backbone.weights
    _, (_, *found) = value_and_gradients(scaled, variables)(np.float32(1), ids)
    return dict(zip((v.path for v in variables), found, strict=True))


def test_a_backbone_stored_in_bfloat16_is_not_trained_as_a_whole():
    with pytest.raises(ValueError, match=r"stored in float32.*weights in bfloat16.*mixed_bfloat16"):
        MTPCausalLM(tiny.backbone(dtype="bfloat16"), freeze_backbone=False)


def test_full_computes_in_bfloat16_and_keeps_float32(tmp_path):
    model = _model("full", dtype="mixed_bfloat16")
    rows = _train(model, "full", tmp_path)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    judged = [row["held_out_head_1_loss"] for row in rows if "held_out_head_1_loss" in row]
    assert judged[-1] < judged[0] - 0.1
