"""A Llama small enough for tests: real keras-hub layers, weights drawn by NumPy, so alike on every backend."""

from collections.abc import Callable, Sequence

import keras
import keras_hub
import numpy as np

from keras_mtp import backend
from keras_mtp.data.encoding import Encoded
from keras_mtp.losses import LinearCrossEntropy
from tests.autodiff import value_and_gradients

VOCABULARY = 50


def backbone(*, tied: bool = True, dtype: str = "float32", seed: int = 1, **overrides) -> keras.Model:
    """Three blocks, hidden size 32, four query heads on two key-value heads."""
    sizes = {
        "vocabulary_size": VOCABULARY,
        "num_layers": 3,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "hidden_dim": 32,
        "intermediate_dim": 48,
    }
    model = keras_hub.models.Llama3Backbone(**(sizes | overrides), tie_word_embeddings=tied, dtype=dtype)
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.2, v.shape) + (len(v.shape) == 1) for v in model.weights])
    return model


def token_ids(rows: int = 2, tokens: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, tokens)).astype("int32")


def encoded(count: int, *, seed: int = 0, shortest: int = 6, longest: int = 20) -> list[Encoded]:
    """Examples whose answer is a rule (each token one more than the last), so that there is something to learn."""
    rng = np.random.default_rng(seed)
    items = []
    for i in range(count):
        length = int(rng.integers(shortest, longest + 1))
        start = int(rng.integers(3, length - 1))
        ids = np.concatenate([rng.integers(0, VOCABULARY, start), np.arange(length - start) % VOCABULARY])
        items.append(Encoded(id=f"tiny/{i}", ids=ids.astype("int32"), is_answer=np.arange(length) >= start))
    return items


def arrays(variables) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(v.value) for v in variables]


def program(function: Callable, variables: Sequence | None = None) -> Callable:
    """A layer, or a function of tensors that reads some variables, as one program where the backend is JAX.

    Its operations, compiled one by one for every new shape, would take five times as long.
    """
    if keras.config.backend() != "jax":
        return function
    return backend.compiled(function, function.variables if variables is None else variables)


def forward(function: Callable, variables: Sequence | None = None) -> Callable:
    """That program, giving NumPy arrays."""
    run = program(function, variables)
    return lambda *inputs: keras.tree.map_structure(keras.ops.convert_to_numpy, run(*inputs))


LEARNING_RATE = 0.05


def make_one_step(model: keras.Model, ids: np.ndarray, **view) -> None:
    """One SGD step of an `MTPCausalLM` as a training view with these options."""
    losses, targets, weights = _objective(model, ids, **view)
    training_view = model.training_view(**view)
    training_view.compile(keras.optimizers.SGD(LEARNING_RATE), loss=losses)
    training_view.train_on_batch(ids, dict.fromkeys(losses, targets), dict.fromkeys(losses, weights))


def gradients(model: keras.Model, ids: np.ndarray, **view) -> dict[str, np.ndarray]:
    """By name, what that step follows: the gradient of every weight that it may train."""
    losses, targets, weights = _objective(model, ids, **view)
    training_view = model.training_view(**view)

    def scaled(scale, ids):
        states = training_view(ids)
        return scale * sum(loss(targets, states[name], weights) for name, loss in losses.items())

    variables = model.trainable_variables
    _, (_, *found) = value_and_gradients(scaled, variables)(np.float32(1), ids)
    # Keras numbers what it names, so the first part of a path is another in every model.
    names = [f"{place} {v.path.partition('/')[2]}" for place, v in enumerate(variables)]
    return dict(zip(names, found, strict=True))


def _objective(model: keras.Model, ids: np.ndarray, only_heads: bool = False, **view) -> tuple:
    """(losses by head, targets, weights): labels on tokens that all rows share too."""
    names = model.head_names[1:] if only_heads else model.head_names
    unembedding = model.backbone.token_embedding
    losses = {name: LinearCrossEntropy(unembedding, trained=name == "head_1") for name in names}
    return losses, np.roll(ids, -1, 1), np.full(ids.shape, 1 / ids.size, "float32")
