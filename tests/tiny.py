"""A Llama small enough for tests: real keras-hub layers, weights drawn by NumPy, so alike on every backend."""

import keras
import keras_hub
import numpy as np

from keras_mtp.data.encoding import Encoded
from keras_mtp.losses import LinearCrossEntropy

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


def after_one_step(model: keras.Model, ids: np.ndarray, **view) -> dict[str, np.ndarray]:
    """All weights of an `MTPCausalLM`, by name, after one SGD step of a training view with these options."""
    names = model.head_names[1:] if view.get("only_heads") else model.head_names
    unembedding = model.backbone.token_embedding
    losses = {name: LinearCrossEntropy(unembedding, trained=name == "head_1") for name in names}
    training_view = model.training_view(**view)
    training_view.compile(keras.optimizers.SGD(0.05), loss=losses)
    weights = np.full(ids.shape, 1 / ids.size, "float32")  # labels on tokens that all rows share too
    targets = dict.fromkeys(names, np.roll(ids, -1, 1))
    training_view.train_on_batch(ids, targets, sample_weight=dict.fromkeys(names, weights))
    return {v.path.split("/", 1)[1]: arrays([v])[0] for v in model.variables}
