"""The cheapest head: one D x D matrix beside the identity."""

import keras

from keras_mtp.layers.mtp_head import MTPHead


@keras.saving.register_keras_serializable("keras_mtp")
class LinearHead(MTPHead):
    """A residual linear map of the trunk's last hidden state: `h + W h`.

    W starts at zero, so at first the head says what the backbone says.

    Call arguments:
        hidden_states: float tensor (B, T, D), the output of the last block before the final norm.

    Returns:
        Float tensor (B, T, D).

    Example:

    ```python
    model = keras_mtp.MTPCausalLM(backbone, heads=[keras_mtp.LinearHead()])
    ```

    Reference: arXiv 2404.19737, section 4.3 (linear heads); arXiv 2401.10774 (residual heads that start at zero).
    """

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

    def call(self, hidden_states):
        return hidden_states + self.dense(hidden_states)
