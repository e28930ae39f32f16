"""What is fuzzed: every reader of a file that may come from a stranger, with a good folder to begin from.

A reader is done with a file when all of it was used: tensors read, a text encoded, a template rendered.
"""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tools.fuzzing import samples

TEXT = "Tom has 3 apples; é 日 <|im_end|>"


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader.

    Args:
        file: the name of the file that is damaged.
        kind: "bytes", "text", "json", "values" (what JSON stands for is damaged, not its text), or a format whose numbers are known: "gguf", "safetensors".
        prepare: writes a good folder. read: reads it, as the package does.
        seeds: further contents to begin from and to splice with.
    """

    file: str
    kind: str
    prepare: Callable[[Path], object]
    read: Callable[[Path], object]
    seeds: Sequence[bytes] = ()


def _gguf(folder: Path) -> None:
    from keras_mtp.models.gguf import GGUFFile

    file = GGUFFile(folder / "x.gguf")
    for name, shape in file.shapes.items():
        if np.prod(shape) < 1 << 16:
            file.read(name)


def _gguf_model(folder: Path) -> None:
    from keras_mtp.models.gguf_llama import GGUFLlama, read_weight

    source = GGUFLlama(folder / "x.gguf")
    _ = source.licence, source.context_length
    _use(source.tokenizer())
    for name in source._file.shapes:
        read_weight(source._file, source.sizes, name)


def _gguf_metadata(folder: Path) -> None:
    """The metadata as JSON: what the parser lets through reaches the readers of sizes and of the tokenizer."""
    from keras_mtp.models.gguf import GGUFFile
    from keras_mtp.models.gguf_llama import read_sizes
    from keras_mtp.models.gguf_tokenizer import read_tokenizer

    file = GGUFFile(folder / "x.gguf")
    try:
        changes = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        changes = {key: value for key, value in changes.items() if _in_gguf(value)}
    except (ValueError, RecursionError, AttributeError):
        _refuse("no file has such metadata")
    file.metadata = changes
    _use(read_tokenizer(file))
    read_sizes(file)


def _in_gguf(value: Any) -> bool:
    """Whether a GGUF file can hold such a value: numbers of 64 bits, texts, flat lists of one type."""
    if isinstance(value, list):
        return (
            len({type(item) for item in value}) == 1
            and not isinstance(value[0], list)
            and all(map(_in_gguf, value))
        )
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**64)


def _safetensors(folder: Path) -> None:
    from keras_mtp.models.safetensors_folder import SafetensorsFolder

    tensors = SafetensorsFolder(folder, _refuse)
    for name in tensors.shapes:
        tensors.read(name)


def _hugging_face(folder: Path) -> None:
    from keras_mtp.models.hugging_face import HuggingFaceFolder

    source = HuggingFaceFolder(folder)
    _ = source.licence, source.context_length


def _config(folder: Path) -> None:
    from keras_mtp.models.hugging_face_config import read_sizes
    from keras_mtp.models.json_file import Settings, read_json

    read_sizes(Settings(read_json(folder / "config.json"), "config.json", "Use another."))


def _tokenizer(folder: Path) -> None:
    from keras_mtp.models.hugging_face_tokenizer import read_tokenizer

    _use(read_tokenizer(folder, {"eos_token_id": 2}, 700))


def _licence(folder: Path) -> None:
    from keras_mtp.models.licence import read_licence

    read_licence(folder)


def _preset(folder: Path) -> None:
    from keras_mtp.models.keras_hub_preset import KerasHubPreset

    source = KerasHubPreset(folder)
    _ = source.licence


def _preset_tokenizer(folder: Path) -> None:
    from keras_mtp.models.keras_hub_tokenizer import read_tokenizer

    _use(read_tokenizer(folder, 760))


def _task(name: str, data: str = "") -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from keras_mtp.tasks import load_task

        task = load_task(name, str(folder / data))
        for example in (*task.examples("train"), *task.examples("test")):
            _ = example.messages

    return read


def _recipe(folder: Path) -> None:
    from keras_mtp.recipe import load_recipe

    load_recipe(folder / "x.toml")


def _arms(folder: Path) -> None:
    from keras_mtp.recipe import Recipe
    from keras_mtp.study.arms import load_arms

    load_arms(folder / "x.toml", Recipe())


def _manifest(folder: Path) -> None:
    from keras_mtp.checkpoint import read_manifest

    read_manifest(folder)


def _template(folder: Path) -> None:
    from keras_mtp.data.chat_template import compile_template, read_template

    messages = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")]
    compile_template.cache_clear()
    source = read_template(str(folder / "x.jinja"))
    compile_template(source)(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")


def _use(tokenizer: Any) -> None:
    tokenizer.decode(tokenizer.encode(TEXT))
    tokenizer.decode(tokenizer.encode(TEXT, special=True, continues=True), skip_special=False)
    if tokenizer.chat_template is not None:
        tokenizer.render_chat([{"role": "user", "content": "Hi"}], add_generation_prompt=True)


def _refuse(reason: str) -> Any:
    from keras_mtp.errors import UserError

    raise UserError(reason)


READERS = {
    "gguf": Reader(file="x.gguf", kind="gguf", prepare=samples.small_gguf, read=_gguf),
    "gguf_model": Reader(file="x.gguf", kind="gguf", prepare=samples.gguf, read=_gguf_model),
    "gguf_metadata": Reader(
        file="metadata.json", kind="values", prepare=samples.gguf_metadata, read=_gguf_metadata
    ),
    "gguf_sentencepiece": Reader(
        file="metadata.json", kind="values", prepare=samples.gguf_sentencepiece, read=_gguf_metadata
    ),
    "safetensors": Reader(
        file="model.safetensors", kind="safetensors", prepare=samples.safetensors, read=_safetensors
    ),
    "safetensors_index": Reader(
        file="model.safetensors.index.json",
        kind="json",
        prepare=samples.safetensors_shards,
        read=_safetensors,
    ),
    "hugging_face": Reader(
        file="model.safetensors", kind="safetensors", prepare=samples.hugging_face, read=_hugging_face
    ),
    "hugging_face_config": Reader(
        file="config.json", kind="json", prepare=samples.hugging_face, read=_config
    ),
    "hugging_face_tokenizer": Reader(
        file="tokenizer.json", kind="json", prepare=samples.hugging_face, read=_tokenizer
    ),
    "tokenizer_config": Reader(
        file="tokenizer_config.json", kind="json", prepare=samples.hugging_face, read=_tokenizer
    ),
    "model_card": Reader(file="README.md", kind="text", prepare=samples.hugging_face, read=_licence),
    "preset_config": Reader(file="config.json", kind="json", prepare=samples.preset, read=_preset),
    "preset_weights": Reader(file="model.weights.h5", kind="bytes", prepare=samples.preset, read=_preset),
    "preset_tokenizer": Reader(
        file="tokenizer.json", kind="json", prepare=samples.preset, read=_preset_tokenizer
    ),
    "preset_vocabulary": Reader(
        file="assets/tokenizer/vocabulary.json", kind="json", prepare=samples.preset, read=_preset_tokenizer
    ),
    "preset_merges": Reader(
        file="assets/tokenizer/merges.txt", kind="text", prepare=samples.preset, read=_preset_tokenizer
    ),
    "preset_sentencepiece": Reader(
        file="assets/tokenizer/vocabulary.spm",
        kind="bytes",
        prepare=samples.preset_sentencepiece,
        read=_preset_tokenizer,
    ),
    "chat_template": Reader(
        file="x.jinja", kind="text", prepare=samples.template, read=_template, seeds=samples.TEMPLATES
    ),
    "jsonl": Reader(file="my.jsonl", kind="lines", prepare=samples.jsonl, read=_task("jsonl", "my.jsonl")),
    "gsm8k": Reader(file="train.jsonl", kind="lines", prepare=samples.gsm8k, read=_task("gsm8k")),
    "instruct": Reader(file="train.jsonl", kind="lines", prepare=samples.instruct, read=_task("instruct")),
    "coqa": Reader(file="dev.json", kind="json", prepare=samples.coqa, read=_task("coqa")),
    "recipe": Reader(file="x.toml", kind="text", prepare=samples.recipe, read=_recipe),
    "arms": Reader(file="x.toml", kind="text", prepare=samples.arms, read=_arms),
    "manifest": Reader(file="checkpoint.json", kind="json", prepare=samples.checkpoint, read=_manifest),
}


def number_fields(kind: str, content: bytes) -> list[tuple[int, int]]:
    """Where a format keeps its numbers: (place, bytes) each."""
    if kind == "safetensors":
        return [(0, 8)]
    from keras_mtp.models import gguf

    fields = []

    class Noted(gguf._Cursor):
        def number(self, letter: str) -> Any:
            fields.append((self.position, struct.calcsize("<" + letter)))
            return super().number(letter)

    plain, gguf._Cursor = gguf._Cursor, Noted
    try:
        gguf._parse(content)
    finally:
        gguf._Cursor = plain
    return fields
