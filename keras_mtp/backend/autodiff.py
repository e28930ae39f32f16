"""Gradients of several scalars, each apart, by the means of each backend."""

from collections.abc import Callable, Sequence


def gradients(function: Callable, targets: Sequence, variables: Sequence) -> Callable:
    """The gradients of several scalars with respect to some Keras variables, each scalar's apart.

    Args:
        function: takes nested structures of tensors and gives a list of scalars; reads Keras variables, changes none.
        targets: the variables that the gradients are for. variables: every variable it reads, see `compiled`.

    Returns:
        A function of the same arguments (NumPy arrays are welcome) that gives, for every scalar, a list of tensors like
        `targets`; zeros where it does not depend on them.
    """
    import keras

    name = keras.config.backend()
    make = {"jax": _jax_gradients, "tensorflow": _tensorflow_gradients, "torch": _torch_gradients}[name]
    return make(function, targets, variables)


def _jax_gradients(function: Callable, targets: Sequence, variables: Sequence) -> Callable:
    import jax
    import keras

    of_targets = {id(v) for v in targets}
    others = [v for v in {id(v): v for v in variables}.values() if id(v) not in of_targets]

    @jax.jit
    def stateless(values, other_values, *arguments):
        def scalars(values):
            mapping = [*zip(targets, values, strict=True), *zip(others, other_values, strict=True)]
            with keras.StatelessScope(state_mapping=mapping):
                return function(*arguments)

        found, backward = jax.vjp(scalars, values)
        units = jax.numpy.eye(len(found), dtype=found[0].dtype)
        return [backward(list(unit))[0] for unit in units]

    return lambda *arguments: stateless([v.value for v in targets], [v.value for v in others], *arguments)


def _tensorflow_gradients(function: Callable, targets: Sequence, variables: Sequence) -> Callable:
    import keras
    import tensorflow as tf

    def differentiated(*arguments):
        # Of a variable with a copy on each of several devices, the copy that is read here.
        values = [tf.distribute.get_strategy().experimental_local_results(v.value)[0] for v in targets]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(values)
            scalars = function(*arguments)
        found = [tape.gradient(scalar, values, unconnected_gradients="zero") for scalar in scalars]
        return keras.tree.map_structure(tf.convert_to_tensor, found)  # an embedding's has rows only

    traced = tf.function(differentiated, autograph=False, reduce_retracing=True)
    return lambda *arguments: traced(*keras.tree.map_structure(tf.convert_to_tensor, arguments))


def _torch_gradients(function: Callable, targets: Sequence, variables: Sequence) -> Callable:
    import keras
    import torch

    def of(scalar, values):
        if not scalar.requires_grad:  # cut off from everything that is trained
            return [torch.zeros_like(value) for value in values]
        found = torch.autograd.grad(scalar, values, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]

    def differentiated(*arguments):
        values = [v.value for v in targets]
        scalars = function(*keras.tree.map_structure(keras.ops.convert_to_tensor, arguments))
        return [of(scalar, values) for scalar in scalars]

    return differentiated
