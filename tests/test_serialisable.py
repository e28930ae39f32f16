"""One contract for every serialisable class of the package, found by walking it."""

import importlib
import inspect
import json
import pkgutil

import keras
import numpy as np
import pytest

import keras_mtp
from keras_mtp.layers.linear_head import LinearHead
from keras_mtp.layers.prefix_embedding import PrefixEmbedding
from keras_mtp.layers.sequential_head import SequentialHead
from keras_mtp.layers.transformer_head import BlockHead, TransformerHead
from keras_mtp.layers.untrained import Untrained
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.training import PerOptimizerStep
from tests import tiny


def _bound(head):
    head.bind(tiny.backbone(), keras.DTypePolicy("float32"))
    return head


def _dense():
    dense = keras.layers.Dense(32)
    dense.build((None, None, 32))
    return dense


# How to make one of each, ready to be called on (B, T, 32) states (the sequential head on two such); the model takes
# token ids.
MAKE = {
    PrefixEmbedding: lambda **kw: PrefixEmbedding(4, **kw),
    LinearHead: lambda **kw: LinearHead(**kw),
    TransformerHead: lambda **kw: _bound(TransformerHead(**kw)),
    SequentialHead: lambda **kw: _bound(SequentialHead(**kw)),
    Untrained: lambda **kw: Untrained(_dense(), **kw),
    PerOptimizerStep: lambda: PerOptimizerStep(keras.optimizers.schedules.CosineDecay(0.1, 8), 4),
    MTPCausalLM: lambda: MTPCausalLM(
        tiny.backbone(),
        prefix_length=3,
        heads=[TransformerHead(), LinearHead(), SequentialHead()],
        draft_vocabulary=[2, 7],
    ),
}
LAYERS = [cls for cls in MAKE if issubclass(cls, keras.layers.Layer) and cls is not MTPCausalLM]
BOUND = [cls for cls in LAYERS if issubclass(cls, BlockHead)]
TRAINED = [cls for cls in LAYERS if cls is not Untrained]


def _registered_classes() -> set[type]:
    found = set()
    for module in pkgutil.walk_packages(keras_mtp.__path__, "keras_mtp."):
        if module.name.endswith("__main__"):
            continue
        for _, cls in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if (
                cls.__module__.startswith("keras_mtp.")
                and keras.saving.get_registered_name(cls) != cls.__name__
            ):
                found.add(cls)
    return found


def _states(seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 5, 32)).astype("float32")


def _inputs(cls) -> list[np.ndarray]:
    return [_states(seed) for seed in range(2 if getattr(cls, "reads_tokens", False) else 1)]


def _functional(layer) -> keras.Model:
    inputs = [keras.Input((None, 32)) for _ in _inputs(type(layer))]
    return keras.Model(inputs, layer(*inputs))


def _call(thing, inputs):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, thing(*inputs))


def test_every_registered_class_is_under_contract():
    assert _registered_classes() == set(MAKE)


@pytest.mark.parametrize("cls", MAKE)
def test_config_has_every_argument_of_the_constructor(cls):
    arguments = set(inspect.signature(cls.__init__).parameters) - {"self", "kwargs"}
    assert arguments <= set(MAKE[cls]().get_config())


@pytest.mark.parametrize("cls", [*LAYERS, PerOptimizerStep])
def test_config_survives_json(cls):
    thing = MAKE[cls]()
    text = json.loads(json.dumps(keras.saving.serialize_keras_object(thing)))
    again = keras.saving.deserialize_keras_object(text)
    assert json.dumps(again.get_config()) == json.dumps(thing.get_config())  # JSON knows no tuples


@pytest.mark.parametrize("cls", LAYERS)
def test_symbolic_shape_is_the_eager_shape(cls):
    layer = MAKE[cls]()
    inputs = _inputs(cls)
    symbolic = layer(*(keras.KerasTensor(array.shape) for array in inputs))
    assert tuple(symbolic.shape) == _call(layer, inputs).shape


@pytest.mark.parametrize("cls", [*LAYERS, MTPCausalLM])
def test_keras_file_gives_the_same_outputs(cls, tmp_path):
    is_model = cls is MTPCausalLM
    thing = MAKE[cls]() if is_model else _functional(MAKE[cls]())
    thing.save(tmp_path / "it.keras")
    again = keras.models.load_model(tmp_path / "it.keras")
    inputs = [tiny.token_ids() if is_model else _inputs(cls)]
    keras.tree.map_structure(np.testing.assert_array_equal, _call(again, inputs), _call(thing, inputs))


@pytest.mark.parametrize("cls", TRAINED)
def test_one_step_moves_every_trainable_weight(cls):
    model, inputs = _functional(MAKE[cls]()), _inputs(cls)
    before = tiny.arrays(model.trainable_variables)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    targets = np.random.default_rng(3).normal(size=_call(model, [inputs]).shape)
    model.train_on_batch(inputs, targets)
    for variable, value, old in zip(
        model.trainable_variables, tiny.arrays(model.trainable_variables), before, strict=True
    ):
        assert not np.array_equal(value, old), variable.path


def test_schedule_counts_optimizer_steps():
    per_step, schedule = MAKE[PerOptimizerStep](), keras.optimizers.schedules.CosineDecay(0.1, 8)
    rates = [float(keras.ops.convert_to_numpy(per_step(keras.ops.array(i)))) for i in range(9)]
    assert rates[:4] == [rates[0]] * 4 and rates[4:8] == [rates[4]] * 4
    assert rates[4] == pytest.approx(float(keras.ops.convert_to_numpy(schedule(1))))


def test_untrained_moves_nothing_but_lets_gradients_through():
    dense = _dense()
    inputs = keras.Input((None, 32))
    first = keras.layers.Dense(32)
    model = keras.Model(inputs, Untrained(dense)(first(inputs)))
    before = tiny.arrays(dense.variables), tiny_first(first)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.train_on_batch(_states(), _states(1))
    for value, old in zip(tiny.arrays(dense.variables), before[0], strict=True):
        np.testing.assert_array_equal(value, old)
    assert not np.array_equal(tiny_first(first), before[1])


def tiny_first(layer) -> np.ndarray:
    return tiny.arrays(layer.variables)[0]


@pytest.mark.parametrize("cls", TRAINED)
def test_mixed_bfloat16_keeps_float32_weights(cls):
    policy = keras.DTypePolicy("mixed_bfloat16")
    layer = cls() if cls in BOUND else MAKE[cls](dtype=policy)
    if cls in BOUND:
        layer.bind(tiny.backbone(dtype="bfloat16"), policy)
    outputs = layer(*(keras.ops.cast(states, "bfloat16") for states in _inputs(cls)))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert {v.dtype for v in layer.trainable_variables} == {"float32"}
