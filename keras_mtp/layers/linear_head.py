"""The cheapest head: one D x D matrix beside the identity."""

import keras

from keras_mtp.layers.mtp_head import MTPHead, random_weights


@keras.saving.register_keras_serializable("keras_mtp")
class LinearHead(MTPHead):
    """A residual linear map of a trunk state: `h + W h`.

    Where W starts at zero, the head at first says what its state says by itself: after the last block, what head_1 says.

    Args:
        start: "zero" (the default) or "random": normal numbers of standard deviation 0.02.
        seed: int. Seeds the random start; drawn by NumPy, so it is the same on every backend.
        attach: "last_block" (the default), "before_last_block" or "default", see `MTPHead`.

    Call arguments:
        hidden_states: float tensor (B, T, D), the state that it reads.

    Returns:
        Float tensor (B, T, D).

    Raises:
        ValueError: `start` or `attach` is no known name.

    Example:

    ```python
    model = keras_mtp.MTPCausalLM(backbone, heads=[keras_mtp.LinearHead()])
    ```

    Reference: arXiv 2404.19737, section 4.3 (linear heads); arXiv 2401.10774 (residual heads that start at zero).
    """

    def __init__(self, start: str = "zero", seed: int = 0, **kwargs):
        super().__init__(**kwargs)
        if start not in ("zero", "random"):
            raise ValueError(f'`start` must be "zero" or "random". Received: start={start!r}')
        self.start = start
        self.seed = seed

    def build(self, input_shape):
        self.dense = keras.layers.Dense(
            input_shape[-1],
            use_bias=False,
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="dense",
        )
        self.dense.build(input_shape)
        self.built = True

    def adopt(self, backbone):
        self.build((None, None, backbone.hidden_dim))
        if self.start == "random":
            self.dense.set_weights(random_weights(self.dense.weights, self.seed))

    def get_config(self):
        return {**super().get_config(), "start": self.start, "seed": self.seed}

    def call(self, hidden_states):
        return hidden_states + self.dense(hidden_states)
