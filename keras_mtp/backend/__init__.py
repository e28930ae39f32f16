"""The one door to jax, torch and tensorflow: which backend Keras runs on, and what differs between them.

Several devices are a matter of their own, in a file for each backend: see group.py.

Keras reads KERAS_BACKEND once, when it is first imported. `select` therefore runs before anything that imports Keras,
and itself imports neither Keras nor a backend.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib.util
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from keras_mtp.backend.group import Group
from keras_mtp.errors import UserError

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_LARGE_MATRIX, _SLAB = 1 << 26, 1 << 22  # numbers
FUSED_SHAPES = 64  # compiled shapes of one function; torch's own limit of 8 is soon reached
BACKENDS = ("jax", "tensorflow", "torch")  # in the order of preference where nobody chose


def select(name: str | None = None) -> str:
    """Decides the backend and sets the environment that Keras and the backend read when they are imported.

    Args:
        name: one of `BACKENDS`; None means KERAS_BACKEND, else the first that is installed.

    Returns:
        The backend's name.

    Raises:
        UserError: unknown, not installed, or Keras already runs on another one.
    """
    name = chosen(name)
    if importlib.util.find_spec(name) is None:
        raise UserError(f'The backend {name} is not installed. Run: pip install "keras_mtp[{name}]"')
    if "keras" in sys.modules and (running := sys.modules["keras"].backend.backend()) != name:
        raise UserError(
            f"Keras already runs on {running} and cannot change to {name}. Set KERAS_BACKEND={name}, or choose the "
            "backend, before Keras is imported."
        )
    os.environ["KERAS_BACKEND"] = name
    _set_defaults(name)
    if name != "tensorflow":
        _keep_freed_memory()
    return name


def chosen(name: str | None = None) -> str:
    """The backend that `select` would take; it need not be installed if it was named.

    Raises:
        UserError: unknown.
    """
    name, origin = (name, "--backend") if name else (os.environ.get("KERAS_BACKEND"), "KERAS_BACKEND")
    name = name or _first_installed()
    if name not in BACKENDS:
        raise UserError(f"`{origin}` must be one of {', '.join(BACKENDS)}. Received: {origin}={name}.")
    return name


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Keeps TensorFlow's greetings out of a first import of Keras; everything else on standard error gets through.

    TensorFlow 2.21 logs before its logging is set up, so that TF_CPP_MIN_LOG_LEVEL does not reach these lines. The import
    itself is a quarter shorter than by itself, see `uncollected_imports`.
    """
    with tempfile.TemporaryFile() as said, uncollected_imports():
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if not line.startswith(
                    (b"I0000 ", b"WARNING: All log messages before absl::InitializeLog()")
                ):
                    os.write(2, line)


@contextlib.contextmanager
def uncollected_imports() -> Iterator[None]:
    """Keeps Python's garbage collector from what is imported, which stays until the process ends.

    Keras, keras-hub and a backend are half a million objects. Looking through them takes 0.3 s, many times while they are
    imported and again each time that a model is built or traced.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def share_tensorflow() -> None:
    """Before TensorFlow reads data beside another backend: with its first operation it would take a GPU's whole memory."""
    with quiet_imports():
        import tensorflow as tf
    if os.environ.get("KERAS_BACKEND") != "tensorflow":
        with contextlib.suppress(RuntimeError):  # it has begun already; too late to change
            tf.config.set_visible_devices([], "GPU")


def _first_installed() -> str:
    for name in BACKENDS:
        if importlib.util.find_spec(name) is not None:
            return name
    raise UserError(
        'No backend is installed. Run: pip install "keras_mtp[jax]" (or [tensorflow], or [torch]).'
    )


def _set_defaults(name: str) -> None:
    """Environment defaults; whatever the user has set stays."""
    defaults = {"TF_CPP_MIN_LOG_LEVEL": "2"}  # keras-hub may import TensorFlow on any backend
    if name == "torch":
        # Threads that spin while they wait make a step take six times as long when the machine is busy.
        defaults["OMP_WAIT_POLICY"] = "PASSIVE"
    if name == "jax":
        defaults["JAX_COMPILATION_CACHE_DIR"] = str(_cache_folder() / "jax")
        defaults["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"
        if simulated := re.search(
            r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", "")
        ):
            # By default there are as many threads as devices. A step begins before the last one has ended, and where one
            # of its devices waits for a thread that another step's has, both wait for ever.
            defaults["PJRT_NPROC"] = str(8 * int(simulated[1]))
    for key, value in defaults.items():
        os.environ.setdefault(key, value)


def _keep_freed_memory() -> None:
    """Lets glibc reuse what was freed instead of returning it to the system.

    A training step on a CPU allocates and frees its whole working memory, gigabytes, and the system would clear every
    page of it again: up to a sixth of a step in JAX, a twentieth in torch. TensorFlow gains next to nothing.
    """
    if sys.platform != "linux":
        return
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Gives the system what was freed, between two phases of a run.

    A phase asks for blocks of other sizes than the one before and hardly finds room among what that has freed: on JAX, a
    run that answers test items before it trains would keep what both have taken, the larger and the smaller.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _cache_folder() -> Path:
    if sys.platform == "darwin":
        parent = "~/Library/Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(parent)) / "keras_mtp"


def end_at_once() -> None:
    """From now on this process ends without waiting for those that it was started with: they may be waiting for it."""
    atexit.register(_end, 1)
    _ends_at_once.append(True)


def ended(code: int) -> None:
    """Ends the process here if it is to `end_at_once`; to be called with the exit code when all is said."""
    if _ends_at_once:
        _end(code)


def speaks() -> bool:
    """Whether this process prints results: the chief of those that were started together."""
    return _group[-1].is_chief


_ends_at_once: list[bool] = []
_group = [Group()]  # that this process joined


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# What follows needs Keras, and therefore comes after `select`.


def launched(name: str) -> bool:
    """Whether this process was started as one of several, by a backend's own means."""
    return _group_kind(name).launched()


def _group_kind(name: str) -> type[Group]:
    if name == "jax":
        from keras_mtp.backend.jax_devices import JaxGroup

        return JaxGroup
    if name == "tensorflow":
        from keras_mtp.backend.tensorflow_devices import TensorFlowGroup

        return TensorFlowGroup
    from keras_mtp.backend.torch_devices import TorchGroup

    return TorchGroup


def join(data: int, model: int) -> Group:
    """The processes and devices that train together; where one device is enough, nothing is begun.

    Args:
        data: devices that share a batch. model: devices that share the weights.

    Raises:
        UserError: the backend has not so many, or cannot use them so.
    """
    import keras

    kind = _group_kind(keras.config.backend())
    if data * model > 1 or kind.launched():
        _group[-1] = kind(data, model)
        return _group[-1]
    return Group()


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


def from_numpy(array):
    """A tensor of an array, which must not be changed afterwards: torch takes its memory over, bfloat16 too."""
    import keras

    if keras.config.backend() != "torch":
        return keras.ops.convert_to_tensor(array)
    import numpy as np
    import torch
    from keras.src.backend.torch.core import get_device, to_torch_dtype

    bits = np.ascontiguousarray(array)
    if array.dtype == "bfloat16":
        bits = bits.view("int16")
    return torch.from_numpy(bits).view(to_torch_dtype(array.dtype.name)).to(get_device())


def tensorflow():
    """TensorFlow itself, for what only it can do: `export/` writes and reads its file format. Keras need not be there."""
    with quiet_imports():
        import tensorflow as tf
    return tf


def torch():
    """PyTorch itself, for what only it can do: `export/` traces a graph with it, and asks Hugging Face's libraries."""
    import torch

    return torch


def saved_model_signatures(content: bytes) -> dict:
    """The signatures in a `saved_model.pb`, protocol buffers by name."""
    with quiet_imports():
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    return dict(SavedModel.FromString(content).meta_graphs[0].signature_def)


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


def on_accelerator() -> bool:
    """Whether the backend computes on something else than the CPU."""
    import keras

    name = keras.config.backend()
    if name == "torch":
        import torch

        return torch.accelerator.is_available()
    if name == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def device_bytes() -> int | None:
    """Memory of the accelerator that a run can have, what it has taken already included; None where nothing tells.

    TensorFlow does not tell how much is free.
    """
    import keras

    name = keras.config.backend()
    if name == "torch":
        import torch

        return (
            torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() if torch.cuda.is_available() else None
        )
    if name == "jax":
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    return None


def attention(query, key, value, visible, scale: float):
    """Softmax attention, the softmax in float32, in the form that the backend trains fastest on a CPU.

    Args:
        query: (B, H, R, E). key, value: (B, H, S, E). visible: bool (B or 1, 1, R, S), true somewhere in every row.
        scale: usually 1 / sqrt(E).

    Returns:
        (B, H, R, E).
    """
    import keras
    from keras import ops

    name = keras.config.backend()
    if name == "torch" and keras.backend.standardize_dtype(query.dtype) == "float32":
        import torch

        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=scale
        )
    scores = ops.cast(ops.matmul(query * scale, ops.transpose(key, (0, 1, 3, 2))), "float32")
    scores = ops.where(visible, scores, -1e9)
    if name == "jax":  # normalised after the product with the values, whose rows are shorter
        powers = ops.exp(scores - ops.stop_gradient(ops.max(scores, axis=-1, keepdims=True)))
        total = ops.cast(ops.sum(powers, axis=-1, keepdims=True), value.dtype)
        return ops.matmul(ops.cast(powers, value.dtype), value) / total
    return ops.matmul(ops.cast(ops.softmax(scores, axis=-1), value.dtype), value)


def write_rows(buffer, new, start):
    """`buffer` with `new` in it, every row from a place of its own on; torch changes `buffer` itself.

    Args:
        buffer: (B, ..., S, E). new: (B, ..., R, E). start: int tensor (B,); `start + R` must not pass S.
    """
    import keras
    from keras import ops

    name = keras.config.backend()
    if name == "tensorflow" and None in buffer.shape:
        return _tensorflow_write_rows(buffer, new, start)
    # On an accelerator rows written one after another each wait for the last: 15.2 ms a pass of 8 rows on an H200 with
    # JAX, 9.9 written at once.
    if name != "tensorflow" and on_accelerator():
        return (_jax_write_rows if name == "jax" else _torch_write_rows)(buffer, new, start)
    if name == "torch":
        for row, first in enumerate(start.tolist()):
            buffer[row].narrow(-2, first, new.shape[-2]).copy_(new[row])
        return buffer

    def write(row, buffer):
        place = [0] * len(buffer.shape)
        place[0], place[-2] = row, start[row]
        return ops.slice_update(buffer, place, ops.slice(new, [row, *place[1:-2], 0, 0], (1, *new.shape[1:])))

    rows = buffer.shape[0]
    return write(0, buffer) if rows == 1 else ops.fori_loop(0, rows, write, buffer)


def _tensorflow_write_rows(buffer, new, start):
    """Of plain operations: a graph with free sizes is one to export, and TensorFlow Serving has no XLA for the others."""
    import tensorflow as tf

    *places, slots = tf.meshgrid(*(tf.range(size) for size in tf.unstack(tf.shape(new)[:-1])), indexing="ij")
    slots += tf.reshape(start, [-1, *[1] * (len(buffer.shape) - 2)])
    return tf.tensor_scatter_nd_update(buffer, tf.stack([*places, slots], axis=-1), new)


def _jax_write_rows(buffer, new, start):
    import jax

    def write(buffer, new, start):
        place = [0] * buffer.ndim
        place[-2] = start
        return jax.lax.dynamic_update_slice(buffer, new, place)

    return jax.vmap(write)(buffer, new.astype(buffer.dtype), start)


def _torch_write_rows(buffer, new, start):
    import torch

    places = start.long()[:, None] + torch.arange(new.shape[-2], device=buffer.device)
    places = places.reshape(len(start), *[1] * (buffer.ndim - 3), -1, 1)
    return buffer.scatter_(-2, places.expand(new.shape), new.to(buffer.dtype))


def put_rows(values, index, new):
    """`values` with `new` in some of its rows; torch changes `values` itself.

    Args:
        values: (N, ...). index: int tensor (C,), no place twice. new: (C, ...).
    """
    import keras
    from keras import ops

    if keras.config.backend() == "torch":
        return values.index_copy_(0, index.long(), new)
    return ops.scatter_update(values, ops.expand_dims(index, -1), new)


def exp_of_difference(a, b):
    """`exp(a - b)`; torch, which would hold three tensors of that size, makes it in `a`, not to be used again.

    Args:
        a: (N, M). b: (N, 1).
    """
    import keras
    from keras import ops

    if keras.config.backend() == "torch":
        return a.sub_(b).exp_()
    return ops.exp(a - b)


def scaled_once(gradient, factor):
    """`gradient * factor`, for a gradient that was made ahead of the backward pass; torch makes it in `gradient`.

    torch keeps `gradient` until the whole graph is freed: a product beside it would cost every head its size again.

    Raises:
        RuntimeError: torch, a second backward pass through the same graph.
    """
    import keras

    if keras.config.backend() != "torch":
        return gradient * factor
    if getattr(gradient, "is_scaled", False):
        raise RuntimeError(
            "This loss allows one backward pass: it scales its gradient in place. Compute it again."
        )
    gradient.is_scaled = True
    return gradient.mul_(factor)


def matmul(a, b, *, transpose_b: bool = False):
    """`a @ b`, or `a @ b.T` without a copy of `b`, which TensorFlow's transpose and torch's einsum would make.

    Args:
        a: (N, K). b: (K, M), or (M, K) with `transpose_b`.
    """
    import keras

    if transpose_b and keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.matmul(a, b, transpose_b=True)
    return keras.ops.matmul(a, keras.ops.transpose(b) if transpose_b else b)


def frozen_matmul(x, make: Callable, parts: Sequence):
    """`x @ make(*parts)` with a gradient for `x` alone, `make`'s matrix being made again for it instead of kept.

    Every backend would make it much too early (it needs nothing but weights), and JAX and TensorFlow keep the one of the
    forward pass for the backward pass, since both are the same to them: all of a model's at a time. So it waits for `x`,
    and the second one for what comes back.

    Args:
        x: (N, K). parts: tensors; they get no gradient. make: gives (K, M) in the dtype of `x`.

    Returns:
        (N, M).
    """
    import keras

    name = keras.config.backend()
    make_product = {
        "jax": _jax_frozen_matmul,
        "tensorflow": _tensorflow_frozen_matmul,
        "torch": _torch_frozen_matmul,
    }
    return make_product[name](x, make, tuple(parts))


def _jax_frozen_matmul(x, make: Callable, parts: tuple):
    import jax

    @jax.custom_vjp
    def product(x, parts):
        return x @ make(*not_before(x, parts))

    def backward(parts, gradient):
        return gradient @ make(*not_before(gradient, parts)).T, None

    product.defvjp(lambda x, parts: (product(x, parts), parts), backward)
    return product(x, parts)


def _tensorflow_frozen_matmul(x, make: Callable, parts: tuple):
    import tensorflow as tf

    @tf.custom_gradient
    def product(x):
        def backward(gradient):
            return matmul(gradient, make(*not_before(gradient, parts)), transpose_b=True)

        return tf.matmul(x, make(*not_before(x, parts))), backward

    return product(x)


def _torch_frozen_matmul(x, make: Callable, parts: tuple):
    import torch

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parts):
            ctx.save_for_backward(*parts)
            return x @ make(*parts)

        @staticmethod
        def backward(ctx, gradient):
            return gradient @ make(*ctx.saved_tensors).T, *(None for _ in parts)

    return Product.apply(x, *parts)


def in_slabs(make: Callable, parts: Sequence, axis: int):
    """`make(*parts)`, a matrix of its first part's shape; on torch a large one some rows or columns at a time.

    torch would make several of its size on the way, where XLA makes none and TensorFlow reuses the first.

    Args:
        make: gives the matrix, and of a part of the parts that part of it. axis: along which they are cut, their last where they
            have no such axis.
    """
    import keras

    first = parts[0]
    size = first.shape[axis]
    if keras.config.backend() != "torch" or first.numel() < _LARGE_MATRIX:
        return make(*parts)
    step, whole = -(-size * _SLAB // first.numel()), None
    for start in range(0, size, step):
        count = min(step, size - start)
        piece = make(*(part.narrow(min(axis, part.ndim - 1), start, count) for part in parts))
        if whole is None:
            shape = list(piece.shape)
            shape[axis] = size
            whole = piece.new_empty(shape)
        whole.narrow(axis, start, count).copy_(piece)
    return whole


def not_before(x, parts: Sequence) -> Sequence:
    """`parts`, tensors, of which nothing is made before `x` is there. torch works in order anyway."""
    import keras

    name = keras.config.backend()
    if name == "jax":
        import jax

        if jax.default_backend() == "cpu":  # XLA drops barriers there before it looks for what is made twice
            none = x[(0,) * x.ndim] > jax.numpy.inf  # never true, which XLA cannot know
            return tuple(part + none.astype(part.dtype) for part in parts)
        return jax.lax.optimization_barrier((tuple(parts), x))[0]
    if name == "tensorflow":
        import tensorflow as tf

        with tf.control_dependencies([x]):
            return tuple(tf.identity(part) for part in parts)
    return parts


def _jax_compiled(function: Callable, variables: Sequence, consumed: Sequence[int]) -> Callable:
    import jax
    import keras

    variables = list({id(v): v for v in variables}.values())

    @functools.partial(jax.jit, donate_argnums=tuple(1 + place for place in consumed))
    def stateless(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    return lambda *arguments: stateless([v.value for v in variables], *arguments)


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
