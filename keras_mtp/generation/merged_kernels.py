"""LoRA merged into the kernels it changes, once before an answer and not in every pass.

The merged kernels are variables, so that every compiled pass reads the same numbers: exact decoding wants the last bit
alike, which two programs that each add LoRA to a kernel need not give.
"""

import keras
from keras import ops

from keras_mtp.quantised import is_quantised


class MergedKernels:
    """The kernels that LoRA changes, changed: as LoRA is when this is made, or was at the last `make`.

    Args:
        lora: the model's `LoRA`, None if it has none.
    """

    def __init__(self, lora):
        # A quantised kernel is too small to take LoRA's changes, and merged as a float it would be large: they stay apart.
        adapted = [] if lora is None else [dense for _, _, dense in lora.adapted()]
        self.layers = [dense for dense in adapted if not is_quantised(dense)]
        self.variables = [
            keras.Variable(dense.kernel, dtype=dense.compute_dtype, trainable=False) for dense in self.layers
        ]

    def make(self) -> None:
        """Merges LoRA as it is now."""
        for dense, variable in zip(self.layers, self.variables, strict=True):
            variable.assign(dense.kernel)

    def by_layer(self) -> dict:
        """For `BlockWeights.of`."""
        pairs = zip(self.layers, self.variables, strict=True)
        return {id(dense): ops.convert_to_tensor(variable) for dense, variable in pairs}
