"""A TensorFlow SavedModel of a finished run: for TensorFlow Serving, or any program with TensorFlow and without Keras.

    serving_default    token_ids                                      -> logits of head_1
    heads              token_ids                                      -> logits of every head
    generate           token_ids, lengths, max_new_tokens, stop_ids   -> tokens, lengths, accepted
    prefill, step      the same, one pass at a time                   -> tokens, room, state      (stepwise.py)
    score              token_ids                                      -> logprobs                 (score.py)

Written beside where it is to be, compared with the model (`check.py`), and only then given its name.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_mtp import __version__, backend
from keras_mtp.errors import UserError
from keras_mtp.export.check import Checked, check
from keras_mtp.export.folder import made_whole
from keras_mtp.export.in_graph import InGraph
from keras_mtp.export.page import page
from keras_mtp.export.score import Score
from keras_mtp.export.served_model import About
from keras_mtp.export.stepwise import Stepwise, traced
from keras_mtp.export.tokenizer_files import write_tokenizer
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.licence import write_licence


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        folder: where. signatures: what it can be asked. megabytes: of all files, in 10^6 bytes. checked: how it compares with
            the model.
    """

    folder: Path
    signatures: tuple[str, ...]
    megabytes: float
    checked: Checked

    def to_json(self) -> dict[str, Any]:
        """The fields, the folder as text."""
        return asdict(self) | {"folder": str(self.folder)}

    def summary(self) -> str:
        """Two lines for a reader."""
        checked = self.checked
        ties = f", {checked.ties} of them a tie that went the other way" if checked.ties else ""
        return (
            f"Exported to {self.folder}: {', '.join(self.signatures)}; {self.megabytes:.0f} MB. README.md there says how to ask it.\n"
            f"Read back without Keras: {checked.tokens} tokens of {checked.answers} answers as the model's own{ties}, logits within "
            f"{checked.logits_differ_by:.1g}."
        )


def export(
    model: keras.Model,
    folder: Path,
    *,
    base: BaseInfo,
    context_length: int | None = None,
    files: Sequence[Path] = (),
) -> Exported:
    """Writes a SavedModel, its tokenizer, its licence and a page on how to ask it.

    Args:
        model: an `MTPCausalLM` with its tokenizer; Keras runs on TensorFlow.
        folder: to be made; must not exist.
        base: the pretrained model under it. context_length: the longest text, in tokens, that it was made for, if known.
        files: to be copied into the folder, such as the run's recipe.

    Raises:
        UserError: the folder exists, Keras runs on another backend, or what was written does not compute what the model
            does. Nothing is left behind then.
    """
    if keras.config.backend() != "tensorflow":
        raise UserError(
            f"A SavedModel is written by TensorFlow. Keras runs on {keras.config.backend()}. Set KERAS_BACKEND=tensorflow; "
            "the run may be of any backend."
        )
    with made_whole(folder) as temporary:
        signatures = _write(model, temporary)
        checked = check(model, temporary)
        write_tokenizer(model.tokenizer, temporary)
        _about(model, base, context_length, checked).write(temporary)
        write_licence(temporary, base)
        (temporary / "README.md").write_text(page(model, base, __version__), encoding="utf-8")
        for file in files:
            shutil.copyfile(file, temporary / file.name)
        size = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
    return Exported(folder=folder, signatures=signatures, megabytes=size / 1e6, checked=checked)


def _write(model: keras.Model, folder: Path) -> tuple[str, ...]:
    """The SavedModel itself; gives the names of its signatures."""
    tf = backend.tensorflow()
    in_graph = InGraph(model)

    def heads(token_ids):
        logits = model(in_graph.known(token_ids))
        return {name: ops.cast(of_head, "float32") for name, of_head in logits.items()}

    def spec(name, *shape):
        return tf.TensorSpec(shape, "int32", name)

    token_ids, lengths = spec("token_ids", None, None), spec("lengths", None)
    asked = {
        "serving_default": (lambda token_ids: {"logits": heads(token_ids)["head_1"]}, [token_ids]),
        "heads": (heads, [token_ids]),
        "generate": (
            in_graph.generate,
            [token_ids, lengths, spec("max_new_tokens"), spec("stop_ids", None)],
        ),
        "score": (Score(model, in_graph), [token_ids]),
    }
    module = tf.Module()
    module.kept = [variable.value for variable in in_graph.variables]
    signatures = {name: traced(function, inputs) for name, (function, inputs) in asked.items()}
    signatures |= Stepwise(in_graph).signatures()
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return tuple(signatures)


def _about(model: keras.Model, base: BaseInfo, context_length: int | None, checked: Checked) -> About:
    elsewhere = ("backend", "chat_template")  # in files of their own
    return About(
        base=base.name,
        vocabulary_size=model.backbone.vocabulary_size,
        context_length=None if context_length is None else max(context_length - model.prefix_length, 1),
        tokenizer={k: v for k, v in model.tokenizer.get_config().items() if k not in elsewhere},
        golden_prompt=checked.golden_prompt,
        golden_answer=checked.golden_answer,
    )
