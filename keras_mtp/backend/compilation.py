"""Functions compiled: whole ones where no gradient is needed, and the elementwise work inside a training step."""

import functools
import warnings
from collections.abc import Callable, Sequence

FUSED_SHAPES = 64  # compiled shapes of one function; torch's own limit of 8 is soon reached


def compiled(
    function: Callable, variables: Sequence, *, xla: bool = False, consumed: Sequence[int] = ()
) -> Callable:
    """`function` as the backend runs it fastest without gradients: jitted by JAX, traced by TensorFlow, plain in torch.

    Args:
        function: takes nested structures of tensors; reads Keras variables, changes none.
        variables: every Keras variable it reads. JAX takes their values as arguments: closed over, the weights would be
            constants of the program, copied into it and never updated.
        xla: have TensorFlow compile it too. A loop that writes a little into a large tensor needs it: without, the
            tensor is copied in every turn.
        consumed: places of arguments that nobody looks at after a call. JAX then writes results into their memory, where it
            would else hold both at once; torch changes what is to be changed in place anyway.

    Returns:
        A function of the same arguments (NumPy arrays are welcome) that sees the variables as they are at each call.
    """
    import keras

    name = keras.config.backend()
    if name == "jax":
        return _jax_compiled(function, variables, consumed)
    if name == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function, autograph=False, jit_compile=xla or None)
        return lambda *arguments: traced(*keras.tree.map_structure(tf.convert_to_tensor, arguments))
    import torch

    def without_gradients(*arguments):
        with torch.no_grad():
            return function(*keras.tree.map_structure(keras.ops.convert_to_tensor, arguments))

    return without_gradients


def _jax_compiled(function: Callable, variables: Sequence, consumed: Sequence[int]) -> Callable:
    import jax
    import keras

    variables = list({id(v): v for v in variables}.values())

    @functools.partial(jax.jit, donate_argnums=tuple(1 + place for place in consumed))
    def stateless(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    return lambda *arguments: stateless([v.value for v in variables], *arguments)


def fused(function: Callable) -> Callable:
    """`function` of tensors, its elementwise work fused, where the backend would go through it operation by operation.

    That is torch, by `torch.compile`: once for every shape, some ten seconds each, kept on disk from one process to the
    next. JAX and TensorFlow compile the whole step anyway. Where torch cannot compile (it needs a C++ compiler, on a
    GPU Triton), a warning says so once and `function` runs as it is.
    """
    import keras

    return _TorchFused(function) if keras.config.backend() == "torch" else function


class _TorchFused:
    """See `fused`."""

    def __init__(self, function: Callable):
        import torch

        self.function = function
        # Symbolic shapes make kernels that are slower than none, and the batches have few shapes.
        self.compiled = torch.compile(function, dynamic=False)
        self.failure = torch._dynamo.exc.TorchDynamoException
        self.many_shapes = torch._dynamo.config.patch(recompile_limit=FUSED_SHAPES)

    def __call__(self, *arguments):
        # Keras first tries a layer on tensors without values, to learn its output's shape.
        symbolic = any(getattr(argument, "is_meta", False) for argument in arguments)
        if self.compiled is not None and not symbolic:
            try:
                with self.many_shapes:
                    return self.compiled(*arguments)
            except self.failure as error:
                reason = str(error).strip().partition("\n")[0]
                warnings.warn(f"torch.compile failed, so training runs uncompiled: {reason}", stacklevel=2)
                self.compiled = None
        return self.function(*arguments)
