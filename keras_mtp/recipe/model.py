"""The table `[model]`."""

import dataclasses
from typing import ClassVar

from keras_mtp.recipe.table import Table, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecipe(Table):
    """The pretrained model, whose weights stay as they are unless tuning.method is full."""

    _path: ClassVar[str] = "model."
    name: str = field(
        "smollm2-135m",
        "A Llama: smollm2-135m, a GGUF file, a model's folder, hf://org/name, a keras-hub preset, or random:NAME, the shape of "
        "a published model (llama3.2_1b, llama3.2_3b, smollm2_135m) with random weights, to try what it would take.",
    )
    dtype: str = field(
        "float32",
        "How the pretrained weights are stored; bfloat16 halves the memory and needs training.dtype=mixed_bfloat16, with "
        "which they are stored in bfloat16 whatever this says: frozen, they would be rounded at every use. With "
        "tuning.method=full they are stored in float32: in bfloat16 most steps would be rounded away.",
        choices=("float32", "bfloat16"),
    )

    quantize: str = field(
        "none",
        "Store the model's matrices in Keras' int8 (a quarter of float32's memory) or int4 (a sixth, but the embeddings in int8); "
        "what is trained stays float32. What is computed with is not rounded, so a matrix is made floating-point, one at a time, "
        "whenever it is used: a step takes longer, most of all with int4. Not with tuning.method=full.",
        choices=("none", "int8", "int4"),
    )
