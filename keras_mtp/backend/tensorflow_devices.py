"""Several devices on TensorFlow: `tf.distribute`, with the devices of one process or, by TF_CONFIG, of several.

    one process         MirroredStrategy over its GPUs (without any, over the logical devices a CPU was split into)
    several             MultiWorkerMirroredStrategy over all devices of all processes

Keras' `fit` runs a step on each device of a strategy, sums the gradients and gives the losses of the whole batch. Four things that
Keras 3.15 does wrong are put right here, where it says so; test_distribution.py::test_upstream_still_fails_on_several_devices fails
once one is right in Keras.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mtp.backend.group import Group, gone
from keras_mtp.backend.process_exit import end_at_once
from keras_mtp.errors import UserError


class TensorFlowGroup(Group):
    """See `Group`.

    Raises:
        UserError: there are not `data` devices, or TensorFlow began before this process could join others.
    """

    def __init__(self, data: int, model: int):
        super().__init__(data, model)
        if model > 1:
            raise UserError(
                f"`distribution.model` must be 1 on TensorFlow, which cannot split the weights. Received: {model}. Use --backend jax."
            )
        workers, self.process = _told()
        self.processes = max(len(workers), 1)
        self.strategy = _across_processes() if self.processes > 1 else _in_one_process(data)
        if self.strategy.num_replicas_in_sync != data:
            raise UserError(
                "`distribution.data` must be the number of devices, those of all processes. Received: "
                f"distribution.data={data}, and {self.strategy.num_replicas_in_sync} devices in {self.processes} processes."
            )

    @staticmethod
    def launched() -> bool:
        return '"worker"' in os.environ.get("TF_CONFIG", "")

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def optimizer_class(self, kind: Any) -> Any:
        return type(kind.__name__, (_Summed, kind), {})

    def prepare(self, view: Any) -> None:
        from keras import ops

        # Keras would average the first batch over the devices, to learn shapes from it, as if it were a single tensor
        # (`_maybe_symbolic_build` in keras/src/backend/tensorflow/trainer.py). `build_for_fit` has made all it wants to make.
        assert view.jit_compile is not None  # decided here, while Keras knows that there are several devices
        view._distribute_strategy = None
        if self.processes > 1:
            # Keras takes the mean of the losses over their first axis, which a scalar has not (`reduce_per_replica`, same file).
            scalars = view.compute_metrics
            view.compute_metrics = lambda *arguments, **options: {
                name: ops.reshape(value, (1,)) for name, value in scalars(*arguments, **options).items()
            }

    def fit_input(self, batches: Any) -> Any:
        """`batches` is a `tf.data.Dataset`; this process's devices take turns at parts of it."""
        import tensorflow as tf

        count = self.data // self.processes

        def split(*batch):
            return tf.nest.map_structure(lambda a: tf.reshape(a, (count, -1, tf.shape(a)[-1])), batch)

        # Of a dataset with an end, the processes would ask each other before every batch who has one.
        parts = batches.map(split).unbatch().repeat()
        return self.strategy.distribute_datasets_from_function(lambda context: parts)

    def summed(self, tensors: Sequence) -> Sequence:
        return [self._total(self.whole(tensor)) for tensor in tensors]

    def whole(self, tensor: Any) -> np.ndarray:
        import tensorflow as tf

        return tf.convert_to_tensor(tensor).numpy()  # of a variable that has a copy on each device, the first

    def from_chief(self, data: bytes) -> bytes:
        size = self._total(np.array([len(data) if self.is_chief else 0]))[0]
        padded = np.zeros(size + 1, "int32")  # TensorFlow crashes where there is nothing to sum
        if self.is_chief:
            padded[:size] = np.frombuffer(data, "uint8")
        return self._total(padded)[:size].astype("uint8").tobytes()

    def largest(self, number: int) -> int:
        numbers = np.zeros(self.processes, "int64")
        numbers[self.process] = number
        return int(self._total(numbers).max())

    def _total(self, array: np.ndarray) -> np.ndarray:
        """The sum of all processes' arrays."""
        if self.processes == 1:
            return array
        import tensorflow as tf

        # Every device of this process stands for an equal part of it; the first has it all.
        def part(context):
            first = context.replica_id_in_sync_group % (self.data // self.processes) == 0
            return tf.constant(array if first else np.zeros_like(array))

        parts = self.strategy.experimental_distribute_values_from_function(part)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None).numpy()

    def explained(self, error: BaseException) -> BaseException:
        import tensorflow as tf

        aborted = isinstance(error, tf.errors.OpError) and "Collective ops is aborted" in str(error)
        return gone(error) if aborted or isinstance(error, tf.errors.UnavailableError) else error

    def leave(self, *, failed: bool) -> None:
        if failed and self.processes > 1:  # TensorFlow would wait at the end for the others
            end_at_once()


_Optimizer: Any = object  # what comes behind `_Summed` is a class of Keras' optimizers


class _Summed(_Optimizer):
    """Sums the gradients of a step, of all its micro-batches together, before it clips them.

    Keras clips what one device has and sums thereafter (`_backend_update_step` in keras/src/backend/tensorflow/optimizer.py).
    """

    def _clip_gradients(self, gradients):
        import tensorflow as tf

        summed = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        return super()._clip_gradients(summed)

    def _all_reduce_sum_gradients(self, gradients_and_variables):
        return gradients_and_variables

    def _backend_apply_gradients(self, gradients, variables):
        """With accumulation Keras asks on each device whether a step is due, and within that condition devices cannot speak to one
        another (keras/src/optimizers/base_optimizer.py). So it is asked once for all, as its own LossScaleOptimizer does."""
        import tensorflow as tf
        from keras import ops

        if not self.gradient_accumulation_steps:
            super()._backend_apply_gradients(gradients, variables)
            return

        def for_all(strategy, gradients):
            def on_each(update):
                strategy.extended.call_for_each_replica(update, args=(gradients, variables))

            is_due = (self._iterations + 1) % self.gradient_accumulation_steps == 0
            ops.cond(is_due, lambda: on_each(self._step), lambda: on_each(self._accumulate))

        tf.distribute.get_replica_context().merge_call(for_all, args=(gradients,))

    def _accumulate(self, gradients, variables):
        self._backend_increment_gradient_accumulators(gradients, self._accumulators(variables))

    def _step(self, gradients, variables):
        pairs = zip(gradients, self._accumulators(variables), strict=True)
        mean = [(new + old) / self.gradient_accumulation_steps for new, old in pairs]
        clipped = self._clip_gradients(mean)
        self._apply_weight_decay(variables)
        self._backend_update_step(clipped, variables, self.learning_rate)
        self._backend_reset_gradient_accumulators()

    def _accumulators(self, variables):
        return [self._accumulated_gradients[self._get_variable_index(v)] for v in variables]


def _told() -> tuple[list[str], int]:
    """The addresses of all processes and the number of this one, as TF_CONFIG says.

    Raises:
        UserError: it says something else.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return [], 0
    try:
        config = json.loads(text)
        cluster = config["cluster"]
        workers, number = cluster["worker"], config["task"]["index"]
        understood = set(cluster) == {"worker"} and number in range(len(workers))
    except (ValueError, KeyError, TypeError):
        understood = False
    if not understood:
        raise UserError(
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}, with a worker for '
            f"each process. Received: TF_CONFIG={text:.200}"
        )
    return workers, number


def _across_processes() -> Any:
    import tensorflow as tf

    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise UserError(
            "The processes must reach one another at the addresses in TF_CONFIG, and join before TensorFlow computes anything. "
            f"Received: {error!s:.300}"
        ) from error


def _in_one_process(count: int) -> Any:
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    if len(names) < count:
        raise UserError(
            f"`distribution.data` must be at most the number of devices. Received: distribution.data={count}, and {len(names)} {kind}s "
            "in this process. Set it to that, or start more processes, each with its TF_CONFIG."
        )
    return tf.distribute.MirroredStrategy(names[:count])
