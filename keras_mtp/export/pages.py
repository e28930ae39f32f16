"""The README.md of an export for Hugging Face's libraries or ONNX Runtime: which model it belongs to, how to load it."""

from pathlib import Path
from string import Template

import keras

from keras_mtp import __version__
from keras_mtp.export.formats import left_out
from keras_mtp.export.prompt_code import prompt_code
from keras_mtp.models.backbone import BaseInfo
from keras_mtp.models.hub import HUGGING_FACE
from keras_mtp.models.keras_hub_preset import is_preset
from keras_mtp.models.licence import UNKNOWN

_MADE = Template("""Made by keras_mtp $version from a finished run; `recipe.toml` says how it was trained, `base_licence.txt` under which licence
the model that it was made from is: $base$revision, SHA-256 `$sha256`.$heads""")

_ADAPTER = Template("""$front# $kind for $base

$made

It belongs to that model and to no other. `tokenizer/` is its tokenizer with the chat template of the run.$where$rank

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("tokenizer")
base = AutoModelForCausalLM.from_pretrained($original, dtype=torch.$dtype)
model = PeftModel.from_pretrained(base, ".").eval()

$prompt
said = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=64, do_sample=False, eos_token_id=$stop_ids)
print(tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True))
```
""")
_GGUF = "\n\n`FOLDER` is where the GGUF file lies; transformers reads it with the packages `gguf` and `accelerate`."
_PRESET = "\n\n`FOLDER` is a Hugging Face model of the same weights as the keras-hub preset."
_RANK = """

PEFT's rank is larger than the recipe's: Keras gives every attention head of query, key and value a matrix A of its own,
which stand side by side here."""

_LLAMA = Template("""$front# A tuned $base as a Hugging Face Llama

$made

```python
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")

$prompt
said = model.generate(input_ids=torch.tensor([ids]), max_new_tokens=64, do_sample=False)
print(tokenizer.decode(said[0, len(ids) :], skip_special_tokens=True))
```

As `--model` of keras-mtp this folder is a base model like any other.
""")

_GRAPH = Template("""# A tuned $base for ONNX Runtime

$made

`token_ids` int32 (B, T), padded on the right -> `logits` float32 (B, T, $vocabulary): at t, of the token after it. B and T are free;
what was trained is in the weights. There is no cache: every call reads the whole text, which suits scoring and short answers.

```python
import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx")

$prompt
said = []
while len(said) < 64 and not {*said} & {*$stop_ids}:
    logits = session.run(["logits"], {"token_ids": np.array([ids + said], "int32")})[0]
    said.append(int(logits[0, -1].argmax()))
print(tokenizer.decode(said, skip_special_tokens=True))
```
""")


def of_adapter(model: keras.Model, base: BaseInfo, kind: str, path: Path) -> str:
    """The page of an adapter for PEFT, Markdown.

    Args:
        model: the `MTPCausalLM`, with its tokenizer. base: what it was made from, and path: where that lies.
        kind: of adapter, as PEFT calls it.
    """
    spread = model.lora is not None and {"query", "key", "value"} & {*model.lora.targets}
    original, where = _original(base, path)
    return _ADAPTER.substitute(
        _common(model, base),
        front=_front_matter(base, "peft"),
        kind=kind[0].upper() + kind[1:],
        rank=_RANK if spread else "",
        original=original,
        where=where,
        dtype=model.backbone.compute_dtype,
    )


def of_llama(model: keras.Model, base: BaseInfo) -> str:
    """The page of a whole Llama."""
    return _LLAMA.substitute(_common(model, base), front=_front_matter(base, "transformers"))


def of_graph(model: keras.Model, base: BaseInfo) -> str:
    """The page of an ONNX graph."""
    return _GRAPH.substitute(_common(model, base), vocabulary=model.backbone.vocabulary_size)


def _common(model: keras.Model, base: BaseInfo) -> dict[str, str]:
    heads = (
        f"\nThe heads that it was trained with ({left_out(len(model.heads))}) are not in it."
        if model.heads
        else ""
    )
    made = _MADE.substitute(
        version=__version__,
        base=base.source,
        revision=f" of revision {base.revision}" if base.revision else "",
        sha256=base.sha256,
        heads=heads,
    )
    stop_ids = str(list(model.tokenizer.eos_ids))
    return {"base": base.name, "made": made, "prompt": prompt_code(model.tokenizer), "stop_ids": stop_ids}


def _front_matter(base: BaseInfo, library: str) -> str:
    """What the Hugging Face hub, and keras_mtp, read of a model's page."""
    fields = {"library_name": library}
    if base.licence != UNKNOWN:
        fields["license"] = base.licence
    if base.source.startswith(HUGGING_FACE):
        fields["base_model"] = base.source.removeprefix(HUGGING_FACE).partition("@")[0]
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in fields.items()) + "---\n\n"


def _original(base: BaseInfo, path: Path) -> tuple[str, str]:
    """The arguments by which transformers loads the base model, and what there is to say of them."""
    if path.is_file():
        return f'"FOLDER", gguf_file="{path.name}"', _GGUF
    if is_preset(path):
        return '"FOLDER"', _PRESET
    if not base.source.startswith(HUGGING_FACE):
        return f'"{base.source}"', ""
    name = base.source.removeprefix(HUGGING_FACE).partition("@")[0]
    return f'"{name}", revision="{base.revision}"' if base.revision else f'"{name}"', ""
