"""Several devices on torch: a process for each, started by torchrun, which sum their gradients (`torch.distributed`).

`torch.nn.parallel.DistributedDataParallel` is not used. It sums the gradients of a module that is called through it, and Keras'
`fit` calls the model itself (`self(x)`, `train_step` in keras/src/backend/torch/trainer.py), not a module around it. It would also
divide by the number of processes, which the weights in our losses have done, and sum once for every micro-batch.
"""

import os
from collections.abc import Sequence
from typing import Any

from keras_mtp.backend.group import Group, gone
from keras_mtp.backend.process_exit import end_at_once
from keras_mtp.errors import UserError

BUCKET_BYTES = 32 << 20  # gradients summed at a time: few calls, and never a second copy of all gradients


class TorchGroup(Group):
    """See `Group`. Processes on CPUs talk by gloo, those with a GPU each by NCCL.

    Raises:
        UserError: torchrun did not start `data` processes, or more of them on a machine than it has GPUs.
    """

    def __init__(self, data: int, model: int):
        super().__init__(data, model)
        if model > 1:
            raise UserError(
                f"`distribution.model` must be 1 on torch, which cannot split the weights. Received: {model}. Use --backend jax."
            )
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self.process = int(os.environ.get("RANK", "0"))
        if data != self.processes:
            raise UserError(
                "`distribution.data` must be the number of processes: on torch each device has one of its own. Received: "
                f"distribution.data={data}, and {self.processes} processes. Start them so: torchrun --nproc-per-node {data} "
                "-m -- keras_mtp recipe ..."
            )
        _meet()

    @staticmethod
    def launched() -> bool:
        return "WORLD_SIZE" in os.environ

    def optimizer_class(self, kind: Any) -> Any:
        class Summed(type(kind())):  # type: ignore[misc]  # Keras makes another class of `kind`, torch's own
            """Sums the gradients of an optimizer step, of all its micro-batches together, before it clips them."""

            def _clip_gradients(self, gradients):
                sum_up(gradients)
                return super()._clip_gradients(gradients)

        return Summed

    def total(self, values: Sequence[float]) -> list[float]:
        return _reduced(values, "SUM")

    def summed(self, tensors: Sequence) -> Sequence:
        sum_up(tensors)
        return tensors

    def from_chief(self, data: bytes) -> bytes:
        import torch

        message = [data]
        torch.distributed.broadcast_object_list(message)
        return message[0]

    def largest(self, number: int) -> int:
        return int(_reduced([number], "MAX")[0])

    def explained(self, error: BaseException) -> BaseException:
        import torch

        from_gloo = isinstance(error, RuntimeError) and "/gloo/" in str(error)  # of no type of its own
        return gone(error) if from_gloo or isinstance(error, torch.distributed.DistError) else error

    def leave(self, *, failed: bool) -> None:
        import torch

        if failed:  # NCCL would wait for the others
            end_at_once()
        else:
            torch.distributed.destroy_process_group()


def _meet() -> None:
    """Takes this process's GPU, where there are any, and waits for the other processes."""
    import torch

    gpus, place = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        if place >= gpus:
            raise UserError(
                f"Each process of a machine must have a GPU of its own. Received: {gpus} GPUs, and more processes. Start torchrun "
                f"with --nproc-per-node {gpus}."
            )
        torch.cuda.set_device(place)  # which Keras' "cuda" then means
    try:
        torch.distributed.init_process_group("nccl" if gpus else "gloo")
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes must reach one another. Received: {error!s:.300} Start them all with torchrun."
        ) from error


def _reduced(numbers: Sequence[float], how: str) -> list[float]:
    """The sum, or what else, of all processes' numbers, place by place."""
    import torch

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(numbers, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(found, getattr(torch.distributed.ReduceOp, how))
    return found.tolist()


def sum_up(tensors: Sequence) -> None:
    """Makes each tensor, in place, the sum of all processes', to the last bit the same in all of them."""
    import torch

    for bucket in buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))


def buckets(tensors: Sequence, limit: int = BUCKET_BYTES) -> list[list]:
    """The tensors in groups of one dtype and at most `limit` bytes; a larger tensor is a group of its own."""
    found: list[list] = []
    room, dtype = 0, None
    for tensor in tensors:
        if tensor.nbytes > room or tensor.dtype != dtype:
            found.append([])
            room, dtype = limit, tensor.dtype
        found[-1].append(tensor)
        room -= tensor.nbytes
    return found
