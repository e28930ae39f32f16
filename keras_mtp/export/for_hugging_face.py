"""A finished run for Hugging Face's libraries: an adapter for PEFT, or a whole Llama for transformers.

Written beside where it is to be, read back by these libraries in a process of its own, compared with the model, and only
then given its name.
"""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import keras
import numpy as np

from keras_mtp.export import pages
from keras_mtp.export.another_program import Agreement, asked, compare_logits, compare_tokens, expected
from keras_mtp.export.check import TEXTS
from keras_mtp.export.exported import Exported, complete
from keras_mtp.export.folder import made_whole
from keras_mtp.export.llama_folder import write_llama
from keras_mtp.export.peft_adapter import write_adapter
from keras_mtp.export.tokenizer_files import write_tokenizer
from keras_mtp.models.backbone import BaseInfo, context_length, locate
from keras_mtp.models.keras_hub_preset import is_preset

PROGRAM = "in_transformers"
TOKENIZER = "tokenizer"  # in an adapter's folder; beside the adapter, PEFT would cut the base's embeddings to its size
LICENCE = "LICENSE"


def export_adapter(
    model: keras.Model, folder: Path, *, base: BaseInfo, name: str, files: Sequence[Path] = ()
) -> Exported:
    """Writes an adapter for PEFT, with the tokenizer in a folder in it, its licence and a page on how to load it.

    Args:
        model: an `MTPCausalLM` with its tokenizer, and a prefix, or keys and values, or LoRA. Heads are left out.
        folder: to be made; must not exist.
        base: the pretrained model under it. name: of that model, as `load_backbone` takes it.
        files: to be copied into the folder, such as the run's recipe.

    Raises:
        UserError: the folder exists, or what PEFT makes of it is not what the model says. Nothing is left behind then.
    """
    with made_whole(folder) as temporary:
        kind = write_adapter(model, temporary, base)
        (temporary / TOKENIZER).mkdir()
        write_tokenizer(model.tokenizer, temporary / TOKENIZER)
        with original(model, name, temporary.parent) as untuned:
            agreement = _compared(model, temporary / TOKENIZER, untuned, temporary)
        page = pages.of_adapter(model, base, kind, locate(name))
        megabytes = complete(temporary, base, page, files)
    return Exported(
        folder=folder,
        what=f"an adapter for PEFT, {kind}",
        read_by=f"PEFT {version('peft')} on transformers {version('transformers')}",
        left_out=model.head_names[1:],
        megabytes=megabytes,
        agreement=agreement,
    )


def export_llama(
    model: keras.Model, folder: Path, *, base: BaseInfo, name: str, files: Sequence[Path] = ()
) -> Exported:
    """Writes a Hugging Face Llama with LoRA merged into it, its tokenizer, its licence and a page on how to load it.

    Args:
        model: an `MTPCausalLM` with its tokenizer and without a prefix. Heads are left out.
        folder, base, name, files: as for `export_adapter`.

    Raises:
        UserError: as `export_adapter`, of transformers.
    """
    with made_whole(folder) as temporary:
        write_llama(model.backbone, temporary, tokenizer=model.tokenizer, context_length=context_length(name))
        write_tokenizer(model.tokenizer, temporary)
        agreement = _compared(model, temporary, temporary)
        if base.licence_text:  # where whoever trains on it finds it
            (temporary / LICENCE).write_text(base.licence_text, encoding="utf-8")
        megabytes = complete(temporary, base, pages.of_llama(model, base), files)
    return Exported(
        folder=folder,
        what="a Hugging Face Llama",
        read_by=f"transformers {version('transformers')}",
        left_out=model.head_names[1:],
        megabytes=megabytes,
        agreement=agreement,
    )


def _compared(model: keras.Model, *folders: Path) -> Agreement:
    """What transformers makes of a tokenizer and a model, and PEFT of an adapter, against what the model says."""
    want, backbone = expected(model), model.backbone
    stored = np.array(backbone.token_embedding.variable_dtype)
    said = asked(PROGRAM, folders, want.questions | {"texts": np.array(TEXTS), "dtype": stored})
    compare_tokens(said, model.tokenizer)
    return compare_logits(said, want, backbone.compute_dtype)


@contextlib.contextmanager
def original(model: keras.Model, name: str, beside: Path) -> Iterator[Path]:
    """The base model as a Hugging Face folder: where it lies, or if it is stored otherwise, written for the while.

    Args:
        model: an `MTPCausalLM` of it. name: as `load_backbone` takes it. beside: a folder to write into.
    """
    path = locate(name)
    if path.is_dir() and not is_preset(path):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        with contextlib.nullcontext() if model.lora is None else model.lora.switched_off():
            write_llama(model.backbone, Path(folder))
        yield Path(folder)
