"""Fine-tuning of pretrained Llama-type language models with multi-token prediction, on Keras 3.

Importing this package does nothing but look the names up: Keras is imported with the first public name that is used, so
that the backend can still be chosen after `import keras_mtp`. Then, or at once if Keras is imported already, the
classes are registered and `keras.models.load_model` knows them.
"""

import importlib
import sys
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_mtp.data.example import Example as Example
    from keras_mtp.data.targets import head_targets as head_targets
    from keras_mtp.data.targets import training_arrays as training_arrays
    from keras_mtp.errors import UserError as UserError
    from keras_mtp.generation.sampling import Sampling as Sampling
    from keras_mtp.layers.linear_head import LinearHead as LinearHead
    from keras_mtp.layers.mtp_head import MTPHead as MTPHead
    from keras_mtp.layers.prefix_embedding import PrefixEmbedding as PrefixEmbedding
    from keras_mtp.layers.sequential_head import SequentialHead as SequentialHead
    from keras_mtp.layers.transformer_head import TransformerHead as TransformerHead
    from keras_mtp.losses import LinearCrossEntropy as LinearCrossEntropy
    from keras_mtp.models.backbone import load_backbone as load_backbone
    from keras_mtp.models.mtp_causal_lm import MTPCausalLM as MTPCausalLM
    from keras_mtp.runs import load as load

_MODULES = {
    "Example": "data.example",
    "LinearCrossEntropy": "losses",
    "LinearHead": "layers.linear_head",
    "MTPCausalLM": "models.mtp_causal_lm",
    "MTPHead": "layers.mtp_head",
    "PrefixEmbedding": "layers.prefix_embedding",
    "Sampling": "generation.sampling",
    "SequentialHead": "layers.sequential_head",
    "TransformerHead": "layers.transformer_head",
    "UserError": "errors",
    "head_targets": "data.targets",
    "load": "runs",
    "load_backbone": "models.backbone",
    "training_arrays": "data.targets",
}
_REGISTERED = (
    "layers.linear_head",
    "layers.sequential_head",
    "layers.transformer_head",
    "models.mtp_causal_lm",
    "training",
)

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _register()
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]


def _register() -> None:
    """Imports the modules whose classes Keras must know to load a saved model."""
    for module in _REGISTERED:
        importlib.import_module(f"{__name__}.{module}")


if "keras" in sys.modules:
    _register()
