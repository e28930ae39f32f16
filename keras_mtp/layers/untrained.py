"""A layer read but not trained: gradients reach its input and stop at its weights.

The far heads share the trunk's final norm and unembedding. When the trunk itself is trained, a far head's loss must not
pull those shared weights: they belong to head_1.
"""

import keras
from keras import ops

from keras_mtp.quantised import plain_policy


@keras.saving.register_keras_serializable("keras_mtp")
class Untrained(keras.layers.Layer):
    """Applies another layer with its weights held constant.

    Args:
        layer: the built layer to apply. It stays the owner of its weights and is trained wherever else it is used.

    Call arguments:
        inputs: what `layer` takes; keyword arguments are passed on.

    Returns:
        What `layer` returns. Its gradient with respect to `inputs` is `layer`'s; with respect to the weights, zero.

    Example:

    ```python
    dense = keras.layers.Dense(3)
    dense.build((None, 3))
    keras_mtp.layers.untrained.Untrained(dense)(keras.ops.ones((2, 3)))
    ```
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs):
        kwargs.setdefault("dtype", plain_policy(layer))
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        self.built = True

    def call(self, inputs, **kwargs):
        # All of them, also those not trainable: inside this scope, JAX's own scope with their values is out of sight.
        constants = [(v, ops.stop_gradient(v.value)) for v in self.layer.variables]
        with keras.StatelessScope(state_mapping=constants):
            return self.layer(inputs, **kwargs)

    def compute_output_spec(self, inputs, **kwargs):
        return self.layer.compute_output_spec(inputs, **kwargs)

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)
