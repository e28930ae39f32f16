"""Reads a SavedModel back as a server would, in a process that cannot import Keras, and asks it what `check.py` wants to know.

python -m keras_mtp.export.without_keras FOLDER questions.npz answers.npz
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

import numpy as np

from keras_mtp import backend

REFUSED = frozenset({"keras", "keras_hub", "tf_keras"})


class _NoKeras(MetaPathFinder, Loader):
    """Makes importing Keras fail, wherever the import stands. TensorFlow may ask where Keras lies, which it always does."""

    def find_spec(self, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path) if name.partition(".")[0] in REFUSED else None
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module):
        raise ImportError(f"{module.__name__} is refused: a served model must do without it.")


def main(folder: str, questions: str, answers: str) -> None:
    """Writes what every signature says, by `signature/output`; `alone/...` is `generate` of the first prompt alone.

    Args:
        folder: of the SavedModel. questions: .npz with the inputs of `generate`. answers: .npz to be written.
    """
    sys.meta_path.insert(0, _NoKeras())
    tf = backend.tensorflow()
    signatures = tf.saved_model.load(folder).signatures
    with np.load(questions) as asked:
        inputs = {name: tf.constant(asked[name]) for name in asked.files}
    token_ids, lengths = inputs["token_ids"], inputs["lengths"]
    alone = inputs | {"token_ids": token_ids[:1, : lengths[0]], "lengths": lengths[:1]}
    said = {
        "serving_default": signatures["serving_default"](token_ids=token_ids),
        "heads": signatures["heads"](token_ids=token_ids),
        "generate": signatures["generate"](**inputs),
        "alone": signatures["generate"](**alone),
    }
    found = {
        f"{name}/{key}": value.numpy() for name, outputs in said.items() for key, value in outputs.items()
    }
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
