"""Several devices on JAX: Keras' own `keras.distribution`, in one process or in several.

    data                DataParallel: every device has all weights and some rows of a batch
    data x model        ModelParallel: weights are split over `model` devices, see `_SPLIT`

The trunk reads a batch as one long row (models/training_view.py) and the loss goes through rows in an order of its own
(losses.py): left to itself, XLA would bring all rows to every device for either. So both are run by `jax.shard_map` over
the batch's axis: a device sees its own rows and nothing else. The model's axis stays XLA's.
"""

import contextlib
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_mtp.backend.group import Group, gone
from keras_mtp.backend.process_exit import end_at_once
from keras_mtp.errors import UserError

BATCH, MODEL = "batch", "model"  # the mesh's axes
# What JAX's errors say, of no type of their own, where another process cannot be reached any more.
_LOST = re.compile(r"gloo|nccl|rccl|coordination service|connection reset|heartbeat", re.IGNORECASE)


class JaxGroup(Group):
    """See `Group`.

    Raises:
        UserError: there are not so many devices, or some process would have none.
    """

    def __init__(self, data: int, model: int):
        super().__init__(data, model)
        _initialise()
        import jax

        self.process, self.processes = jax.process_index(), jax.process_count()
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self._require(len(devices))
        self.keras = _distribution([f"{d.platform}:{d.id}" for d in devices[: data * model]], data, model)

    def _require(self, devices: int) -> None:
        wanted = self.data * self.model
        if wanted > devices or (self.processes > 1 and wanted != devices):
            raise UserError(
                "`distribution.data` times `distribution.model` must be the number of devices. Received: "
                f"{self.data} x {self.model}, and {devices} devices in {self.processes} processes."
            )
        if self.data % self.processes and self.processes % self.data:
            raise UserError(
                "`distribution.data` must divide the number of processes or be a multiple of it. Received: "
                f"{self.data}, and {self.processes} processes."
            )

    @staticmethod
    def launched() -> bool:
        return bool(_address())

    def scope(self) -> contextlib.AbstractContextManager:
        return self.keras.scope()

    def distributed(self, arrays: Any) -> Any:
        import jax

        def placed(array):
            layout = self.keras.get_data_layout(array.shape).backend_layout
            return jax.make_array_from_process_local_data(layout, np.asarray(array))

        return jax.tree.map(placed, arrays)

    def by_rows(self, function: Callable, *, summed: bool = False) -> Callable:
        if self.data == 1:
            return function
        import jax
        from jax.sharding import PartitionSpec

        def of_one_device(*tensors):
            found = function(*tensors)
            return jax.lax.psum(found, BATCH) if summed else found

        rows = PartitionSpec(BATCH)
        split = jax.shard_map(
            of_one_device,
            mesh=self.keras.device_mesh.backend_mesh,
            in_specs=rows,
            out_specs=PartitionSpec() if summed else rows,
            axis_names={BATCH},
            check_vma=False,  # a loop's carry begins as zeros, alike on all devices, and ends different on each
        )

        def apply(*tensors):
            # A batch that cannot be split evenly is computed by every device, for instance Keras' symbolic one.
            return (function if tensors[0].shape[0] % self.data else split)(*tensors)

        return apply

    def whole(self, tensor: Any) -> np.ndarray:
        import jax
        from jax.experimental import multihost_utils

        if not isinstance(tensor, jax.Array) or tensor.is_fully_addressable or tensor.is_fully_replicated:
            return np.asarray(tensor)
        return np.asarray(multihost_utils.process_allgather(tensor, tiled=True))

    def from_chief(self, data: bytes) -> bytes:
        if self.processes == 1:
            return data
        from jax.experimental import multihost_utils

        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
        content = np.zeros(size, "uint8")
        if self.is_chief:
            content[:] = np.frombuffer(data, "uint8")
        return np.asarray(multihost_utils.broadcast_one_to_all(content)).tobytes()

    def largest(self, number: int) -> int:
        if self.processes == 1:
            return number
        from jax.experimental import multihost_utils

        return int(np.max(multihost_utils.process_allgather(np.int32(number))))

    def explained(self, error: BaseException) -> BaseException:
        found = _LOST.search(str(error))
        if self.processes == 1 or isinstance(error, UserError) or not found:
            return error
        return gone(str(error)[found.start() :])

    def leave(self, *, failed: bool) -> None:
        if failed and self.processes > 1:
            # JAX would wait at the end for the others, for minutes, and they for this process.
            end_at_once()


def compiled_step(view: Any, batch: Any) -> str:
    """The text of the program (HLO) that `fit` would run for a compiled Keras model and a batch, see `Group.distributed`.

    The model's variables need no values: shapes and layouts decide the program. Those of the optimizer and the metrics that
    are made here have none where this is called in a stateless scope that begins no variables.
    """
    import jax

    for variable in view.variables:
        variable._initialize_layout()  # the optimizer's variables take theirs from these
    view._symbolic_build(data_batch=batch)
    state = tuple(
        [_abstract(variable) for variable in variables]
        for variables in (
            view.trainable_variables,
            view.non_trainable_variables,
            view.optimizer.variables,
            view.metrics_variables,
        )
    )
    shardings = jax.tree.map(lambda value: value.sharding, state)
    step = jax.jit(view.train_step, donate_argnums=0, out_shardings=(None, shardings))
    return step.lower(state, batch).compile().as_text()


def _abstract(variable: Any) -> Any:
    """A variable's shape, type and place."""
    import jax

    variable._initialize_layout()
    layout = getattr(variable._layout, "backend_layout", variable._layout)
    return jax.ShapeDtypeStruct(tuple(variable.shape), variable.dtype, sharding=layout)


def _address() -> str | None:
    return os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")


def _initialise() -> None:
    """Joins the other processes, if this one was started as one of several: as its variables say, or its cluster's."""
    import jax
    import keras

    if jax.distributed.is_initialized():
        return
    count, number = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        keras.distribution.initialize(
            os.environ.get("JAX_COORDINATOR_ADDRESS"),
            None if count is None else int(count),
            None if number is None else int(number),
        )
    except (ValueError, RuntimeError) as error:
        # Without an address there is no cluster that JAX knows, or JAX has begun already, alone.
        if _address() or isinstance(error, jax.errors.JaxRuntimeError):
            raise UserError(
                "All processes of a run must be started, and be told where the first is, how many they are and which each is: by "
                "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by a cluster that JAX knows. Received: "
                f"{error!s:.300}"
            ) from error


# The axes of a weight to split over MODEL, by the end of its path: the first that the devices divide evenly; else every
# device has all of it. Heads and inner units first, so that a block is computed apart and summed twice (Megatron-LM, arXiv
# 1909.08053, section 3); of a vocabulary, every device has a part of the logits.
_SPLIT: dict[str, tuple[int, ...]] = {
    r"token_embedding/embeddings": (0, 1),
    r"token_embedding/reverse_embeddings": (1, 0),
    r"(query|key|value)/(kernel|lora_kernel_a)": (1, 0),
    r"attention_output/kernel": (0, 2, 1),
    r"attention_output/lora_kernel_a": (0, 1),
    r"feedforward_(gate|intermediate)_dense/(kernel|lora_kernel_b)": (1, 0),
    r"feedforward_output_dense/(kernel|lora_kernel_a)": (0, 1),
    r"(projection|linear_head[^/]*/dense|head_\d+/dense)/kernel": (1, 0),
    r"prefix_key_values/block_\d+": (2,),
}


def _distribution(names: list[str], data: int, model: int) -> Any:
    import keras

    mesh = keras.distribution.DeviceMesh
    if model == 1:
        return keras.distribution.DataParallel(mesh((data,), [BATCH], names), auto_shard_dataset=False)

    class ByShape(keras.distribution.ModelParallel):
        """Keras' layout map knows a weight's path only; which axis can be split depends on its shape too."""

        def get_variable_layout(self, variable):
            layout = super().get_variable_layout(variable)
            axis = _split_axis(variable.path, variable.shape, model)
            if getattr(variable, "_layout", None) is not None or axis is None:
                return layout
            axes = [MODEL if place == axis else None for place in range(len(variable.shape))]
            return keras.distribution.TensorLayout(axes, self.device_mesh)

    layouts = keras.distribution.LayoutMap(mesh((data, model), [BATCH, MODEL], names))
    return ByShape(layout_map=layouts, batch_dim_name=BATCH, auto_shard_dataset=False)


def _split_axis(path: str, shape: tuple[int, ...], devices: int) -> int | None:
    for end, axes in _SPLIT.items():
        if re.search(f"(^|/){end}$", path):
            return next((i for i in axes if i < len(shape) and shape[i] % devices == 0), None)
    return None
