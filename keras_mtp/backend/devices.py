"""What the backend computes on: an accelerator or the CPU, and how much memory it has."""


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


def device_name() -> str:
    """What the backend computes on, as people call it: "the CPU", "NVIDIA H200"."""
    import keras

    name = keras.config.backend()
    if not on_accelerator():
        return "the CPU"
    if name == "torch":
        import torch

        return (
            torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else str(torch.accelerator.current_accelerator())
        )
    if name == "jax":
        import jax

        return jax.devices()[0].device_kind
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    return tf.config.experimental.get_device_details(gpu).get("device_name", "a GPU")


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
