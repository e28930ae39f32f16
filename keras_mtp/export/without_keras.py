"""Reads a SavedModel back as a server would, in a process that cannot import Keras, and asks it what `check.py` wants to know.

python -m keras_mtp.export.without_keras FOLDER questions.npz answers.npz
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np

from keras_mtp import backend
from keras_mtp.export.served_model import ServedModel

REFUSED = frozenset({"keras", "keras_hub", "tf_keras"})


class NoKeras(MetaPathFinder, Loader):
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

    Raises:
        ValueError: `prefill` and `step` do not say, token for token, what `generate` says.
    """
    sys.meta_path.insert(0, NoKeras())
    tf = backend.tensorflow()
    model = ServedModel(Path(folder))
    signatures = model.signatures
    with np.load(questions) as asked:
        inputs = {name: tf.constant(asked[name]) for name in asked.files}
    token_ids, lengths = inputs["token_ids"], inputs["lengths"]
    alone = inputs | {"token_ids": token_ids[:1, : lengths[0]], "lengths": lengths[:1]}
    said = {
        "serving_default": signatures["serving_default"](token_ids=token_ids),
        "heads": signatures["heads"](token_ids=token_ids),
        "generate": signatures["generate"](**inputs),
        "score": signatures["score"](token_ids=token_ids),
        "alone": signatures["generate"](**alone),
    }
    prompts = [ids[:length].tolist() for ids, length in zip(token_ids.numpy(), lengths.numpy(), strict=True)]
    for name, asked_for in (("generate", prompts), ("alone", prompts[:1])):
        for speculate in (True, False):
            stepwise = model.answer(
                asked_for,
                longest=int(inputs["max_new_tokens"]),
                stop_ids=inputs["stop_ids"].numpy().tolist(),
                speculate=speculate,
            )
            whole = said[name]
            expected = [
                row[:n].tolist()
                for row, n in zip(whole["tokens"].numpy(), whole["lengths"].numpy(), strict=True)
            ]
            if stepwise != expected:
                raise ValueError(f"`prefill` and `step` say {stepwise} where `generate` says {expected}")
    found = {
        f"{name}/{key}": value.numpy() for name, outputs in said.items() for key, value in outputs.items()
    }
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
