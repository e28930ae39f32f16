"""A finished run as an ONNX graph: token_ids (B, T) -> logits (B, T, V) of head_1, B and T free, prefix and LoRA in it.

Traced by `torch.onnx` with torch.export, which leaves shapes free. Keras' own `model.export(format="onnx")` takes the older
tracer where shapes are free, whose graph of a prefix of embeddings ONNX Runtime 1.32 refuses (an axis of -1).
"""

import logging
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from keras_mtp import backend
from keras_mtp.errors import UserError
from keras_mtp.export import pages
from keras_mtp.export.another_program import asked, compare_logits, expected
from keras_mtp.export.exported import Exported, complete
from keras_mtp.export.folder import made_whole
from keras_mtp.export.tokenizer_files import write_tokenizer
from keras_mtp.models.backbone import BaseInfo

FILE = "model.onnx"
PROGRAM = "in_onnxruntime"


def export(model: keras.Model, folder: Path, *, base: BaseInfo, files: Sequence[Path] = ()) -> Exported:
    """Writes the graph, the tokenizer, the licence and a page on how to run it.

    Args:
        model: an `MTPCausalLM` with its tokenizer, in float32; Keras runs on torch. Heads are left out; LoRA stays merged.
        folder: to be made; must not exist.
        base: the pretrained model under it. files: to be copied into the folder, such as the run's recipe.

    Raises:
        UserError: the folder exists, Keras runs on another backend, or ONNX Runtime says something else than the model.
            Nothing is left behind then.
    """
    if keras.config.backend() != "torch":
        raise UserError(
            f"An ONNX graph is traced by torch. Keras runs on {keras.config.backend()}. Set KERAS_BACKEND=torch; the run "
            "may be of any backend."
        )
    with made_whole(folder) as temporary:
        want = expected(model)
        if model.lora is not None:
            model.lora.merge()
        _write(model, temporary / FILE)
        agreement = compare_logits(asked(PROGRAM, [temporary], want.questions), want, "float32")
        write_tokenizer(model.tokenizer, temporary)
        megabytes = complete(temporary, base, pages.of_graph(model, base), files)
    return Exported(
        folder=folder,
        what="an ONNX graph",
        read_by=f"ONNX Runtime {version('onnxruntime')}",
        left_out=model.head_names[1:],
        megabytes=megabytes,
        agreement=agreement,
    )


def _write(model: keras.Model, path: Path) -> None:
    torch = backend.torch()
    first = keras.Model(model.inputs, model.output["head_1"])  # and nothing of the other heads
    example = keras.ops.convert_to_tensor(np.ones((2, 5), "int32"))
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of how torch.export looks at Keras' layers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            first.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["token_ids"],
            output_names=["logits"],
            dynamic_shapes={"args": (free,)},
        )
    program.save(path)
