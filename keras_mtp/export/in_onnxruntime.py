"""Reads an export with ONNX Runtime, and answers what `another_program.py` asks. A program of its own.

python -m keras_mtp.export.in_onnxruntime questions.npz answers.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(questions: str, answers: str, folder: str) -> None:
    """Answers in NumPy's file `answers`.

    Args:
        questions: .npz with `token_ids/...`. folder: that holds `model.onnx`.
    """
    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(questions) as asked:
        said = {
            name.replace("token_ids", "logits"): session.run(["logits"], {"token_ids": asked[name]})[0]
            for name in asked.files
        }
    np.savez(answers, allow_pickle=False, **said)


if __name__ == "__main__":
    main(*sys.argv[1:])
