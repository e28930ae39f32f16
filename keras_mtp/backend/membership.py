"""Whether this process is one of several, how it joins them, and which of them speaks."""

from keras_mtp.backend.group import Group

_group = [Group()]  # that this process joined


def launched(name: str) -> bool:
    """Whether this process was started as one of several, by a backend's own means."""
    return _group_kind(name).launched()


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


def speaks() -> bool:
    """Whether this process prints results: the chief of those that were started together."""
    return _group[-1].is_chief


def _group_kind(name: str) -> type[Group]:
    if name == "jax":
        from keras_mtp.backend.jax_devices import JaxGroup

        return JaxGroup
    if name == "tensorflow":
        from keras_mtp.backend.tensorflow_devices import TensorFlowGroup

        return TensorFlowGroup
    from keras_mtp.backend.torch_devices import TorchGroup

    return TorchGroup
