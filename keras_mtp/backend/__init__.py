"""The one door to jax, torch and tensorflow: which backend Keras runs on, and what differs between them.

    selection           which backend, and the environment that it reads
    imports             Keras and the backends, imported quietly; TensorFlow and torch themselves
    allocator           freed memory, kept or returned to the system
    devices             what is computed on, and its memory
    group               several devices: jax_devices, tensorflow_devices and torch_devices are the backends' own
    membership          whether this process is one of several, and which of them speaks
    process_exit        the end of one whose others may wait for it

    compilation         functions, compiled or fused
    recording           functions that torch runs again without Keras
    autodiff            gradients of several scalars
    fit                 what `Model.fit` needs
    softmax_attention   attention
    rows                rows of a cache
    matrix_products     products that copy no transposed matrix, and keep none that can be made again
    temporaries         such matrices, made late and in pieces
    in_place            results in memory that is there already

Importing it imports neither Keras nor a backend. The second half needs Keras, and therefore comes after `select`: each
function asks which backend runs and imports it then.
"""

from keras_mtp.backend.allocator import return_freed_memory, return_large_blocks
from keras_mtp.backend.autodiff import gradients
from keras_mtp.backend.compilation import compiled, fused
from keras_mtp.backend.devices import device_bytes, device_name, on_accelerator
from keras_mtp.backend.fit import build_for_fit, fit_input, traced_for_fit
from keras_mtp.backend.imports import (
    first_imports,
    quiet_imports,
    saved_model_signatures,
    share_tensorflow,
    tensorflow,
    torch,
)
from keras_mtp.backend.in_place import exp_of_difference, from_numpy, scaled_once
from keras_mtp.backend.matrix_products import frozen_matmul, matmul
from keras_mtp.backend.membership import join, launched, speaks
from keras_mtp.backend.process_exit import end_at_once, ended
from keras_mtp.backend.recording import recorded
from keras_mtp.backend.rows import put_rows, write_rows
from keras_mtp.backend.selection import BACKENDS, chosen, select
from keras_mtp.backend.softmax_attention import attention
from keras_mtp.backend.temporaries import in_slabs, not_before

__all__ = [
    "BACKENDS",
    "attention",
    "build_for_fit",
    "chosen",
    "compiled",
    "device_bytes",
    "device_name",
    "end_at_once",
    "ended",
    "exp_of_difference",
    "first_imports",
    "fit_input",
    "from_numpy",
    "frozen_matmul",
    "fused",
    "gradients",
    "in_slabs",
    "join",
    "launched",
    "matmul",
    "not_before",
    "on_accelerator",
    "put_rows",
    "quiet_imports",
    "recorded",
    "return_freed_memory",
    "return_large_blocks",
    "saved_model_signatures",
    "scaled_once",
    "select",
    "share_tensorflow",
    "speaks",
    "tensorflow",
    "torch",
    "traced_for_fit",
    "write_rows",
]
