"""The README.md of an exported model: what it can be asked, and a client that asks it."""

from string import Template

import keras

from keras_mtp.data.encoding import encode_raw
from keras_mtp.export.prompt_code import prompt_code
from keras_mtp.models.backbone import BaseInfo

_PAGE = Template("""# A tuned $base as a TensorFlow SavedModel

Made by keras_mtp $version from a finished run; `recipe.toml` says how it was trained, `base_licence.txt` under which licence
the model that it was made from is. What was trained is in the weights. No Keras is needed to run it.

| signature | inputs (int32) | outputs |
| --- | --- | --- |
| `serving_default` | `token_ids` (B, T), padded on the right | `logits` (B, T, $vocabulary): at t, of the token after it |
| `heads` | `token_ids` (B, T) | $heads, each (B, T, $vocabulary): `head_k` at t, of the token k places ahead |
| `generate` | `token_ids` (B, T), padded on the right; `lengths` (B,), of the prompts; `max_new_tokens` (); `stop_ids` (S,) | `tokens` (B, M), the answers, -1 behind their end; `lengths` (B,), of the answers; `accepted` ($said,) |
| `score` | `token_ids` (B, T) | `logprobs` (B, T): at t, of the token after it; `likeliest` (B, T, N) and `likeliest_logprobs` (B, T, N): the N likeliest there |
| `prefill`, `step` | `generate` one pass at a time, with its state: below | `tokens` (B, $said), the new ones, -1 behind; `room` (B,); the state |

B, T and S are free. `generate` takes the likeliest token always. Answers come without their stop token; M is the length of
the longest. `accepted[n]` counts the passes, of one row each, in which n drafts of the heads were kept. The cache has room
for all of `max_new_tokens` from the start.

`prefill` reads prompts (`token_ids`, `lengths`, and `room`, how many tokens each answer may have) and says the first token of
each answer; every `step` says 1 to $said more, until its `room` is 0. What the one returns as `ids`, `at`, `cache_000`, ... the next
is given. A row of the state is an answer: rows may be left out and put together between two steps, so that answers come and
go. `temperature`, `top_p` and `uniforms` (B, R), the numbers by which each row's next R tokens are drawn, say how tokens are
chosen; with temperature 0 they are those of `generate`, exactly. `keras-mtp serve` works so.

## As a server

```bash
pip install "keras_mtp[serve,tensorflow]"
keras-mtp serve . --name tuned           # OpenAI's API and TensorFlow Serving's, and a page, at http://127.0.0.1:8000
```

## From Python

```python
import tensorflow as tf
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = tf.saved_model.load(".")

$prompt
said = model.signatures["generate"](
    token_ids=tf.constant([ids], tf.int32),
    lengths=tf.constant([len(ids)], tf.int32),
    max_new_tokens=tf.constant(64),
    stop_ids=tf.constant($stop_ids),
)
print(tokenizer.decode(said["tokens"][0, : int(said["lengths"][0])]))
```

## With TensorFlow Serving

```bash
docker run -p 8501:8501 -v "$$PWD:/models/tuned/1" -e MODEL_NAME=tuned tensorflow/serving
curl localhost:8501/v1/models/tuned:predict -d '{"signature_name": "generate", "inputs": {
  "token_ids": [[$example]], "lengths": [$length], "max_new_tokens": 64, "stop_ids": $stop_ids}}'
```
""")


def page(model: keras.Model, base: BaseInfo, version: str) -> str:
    """The page, Markdown.

    Args:
        model: the `MTPCausalLM` that was exported, with its tokenizer. base: what it was made from. version: of keras_mtp.
    """
    tokenizer = model.tokenizer
    example = encode_raw("Two and two make", tokenizer)
    return _PAGE.substitute(
        base=base.name,
        version=version,
        vocabulary=model.backbone.vocabulary_size,
        heads=", ".join(f"`{name}`" for name in model.head_names),
        said=len(model.head_names),
        prompt=prompt_code(tokenizer),
        stop_ids=list(tokenizer.eos_ids),
        example=", ".join(map(str, example)),
        length=len(example),
    )
