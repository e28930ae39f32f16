"""What Keras' `fit` needs on TensorFlow: a step traced once, whatever the lengths of its batches, computed as written, and freed."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def traced_for_fit() -> Iterator[None]:
    """For `fit`, and for what must compute as it does: TensorFlow's graphs compute as written, and are freed with their model."""
    import keras

    if keras.config.backend() != "tensorflow":
        yield
        return
    with _sums_as_written(), _gradients_forgotten():
        yield


@contextlib.contextmanager
def _sums_as_written() -> Iterator[None]:
    """Keeps TensorFlow's graph optimizer from bringing sums into another order, which takes no time that could be measured.

    What it makes of the trunk's gradients depends on all that a graph computes, for instance on heads that train nothing of
    the trunk: within 100 steps the loss of a control with such heads was 2e-4 from that of a run without any, and now it has
    the same digits.
    test_training.py::test_detached_heads_are_a_true_control pins it.
    """
    from tensorflow.config import optimizer

    before = optimizer.get_experimental_options().get("arithmetic_optimization", True)
    optimizer.set_experimental_options({"arithmetic_optimization": False})
    try:
        yield
    finally:
        optimizer.set_experimental_options({"arithmetic_optimization": before})


@contextlib.contextmanager
def _gradients_forgotten() -> Iterator[None]:
    """Lets what is traced within be freed with the model that it was traced for.

    TensorFlow 2.21 registers the gradient of each `custom_gradient` under a name of its own and never forgets it, nor the whole
    graph that it was traced in: a toy's step kept 250 MB. Once the step has been traced nobody asks for it again.
    test_training.py::test_a_trained_model_leaves_no_graph pins it.
    """
    from tensorflow.python.framework.ops import gradient_registry

    registered = gradient_registry._registry
    before = set(registered)
    try:
        yield
    finally:
        for name in registered.keys() - before:
            if name.startswith("CustomGradient-"):
                del registered[name]


def build_for_fit(model, widths: dict[str, int]) -> None:
    """Makes the variables of a compiled model's optimizer and losses before `fit`, where `fit` would make them too late.

    TensorFlow: Keras 3.15 makes them while the step is being traced, and TensorFlow then traces the step once more, half
    of the time until it runs. test_training.py::test_a_step_is_traced_once pins it.

    Args:
        model: compiled, not yet fitted. widths: {output's name: size of its last axis}; outputs are (B, T, size).
    """
    import keras
    from keras import ops

    if keras.config.backend() != "tensorflow":
        return
    model.optimizer.build(model.trainable_variables)
    model.compute_loss(
        y={name: ops.zeros((1, 1), "int32") for name in widths},
        y_pred={name: ops.zeros((1, 1, size), model.compute_dtype) for name, size in widths.items()},
        sample_weight={name: ops.ones((1, 1)) for name in widths},
    )


def fit_input(batches):
    """A `PyDataset` of (ids, targets, weights) as `Model.fit` should get it.

    TensorFlow: Keras 3.15 fixes the tensor shapes after the first two batches (keras/src/trainers/data_adapters/
    py_dataset_adapter.py, NUM_BATCHES_FOR_TENSOR_SPEC), and a third of another length fails. So it gets a
    `tf.data.Dataset` with free lengths; test_training.py::test_upstream_still_fixes_shapes fails once that is right.
    Its tuning is off: there is nothing to tune, and the end of a tuned iterator often waits 10 s for the tuner to wake up.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    signature = keras.tree.map_structure(
        lambda array: tf.TensorSpec((None,) * array.ndim, array.dtype), batches[0]
    )
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches.num_batches)).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
