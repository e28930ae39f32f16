"""A Hugging Face folder as a source of a model: `config.json`, safetensors, `tokenizer.json`.

Read by ourselves and not by keras-hub's converter, see hugging_face_config.py. No code in the folder is ever run.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.models import filling, hugging_face_config, hugging_face_tokenizer, llama
from keras_mtp.models.json_file import Settings, read_json
from keras_mtp.models.licence import Licence, read_licence
from keras_mtp.models.safetensors_folder import SafetensorsFolder

if TYPE_CHECKING:
    import keras_hub

CONFIG = "config.json"
_CONFIG_BYTES = 1 << 20
_ROWS_COMPARED = 256
_ADVICE = "Use a plain Llama as transformers' `save_pretrained` writes it."
_EMBEDDING, _UNEMBEDDING = "model.embed_tokens.weight", "lm_head.weight"
_OUTER = {
    "token_embd.weight": _EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": _UNEMBEDDING,
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class HuggingFaceFolder:
    """A folder as transformers' `save_pretrained` leaves it.

    Args:
        folder: where it is.

    Raises:
        UserError: a file is missing or damaged, or the model is not a plain Llama in every respect.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = Settings(
            read_json(folder / CONFIG, limit_bytes=_CONFIG_BYTES), f"{folder.name}/{CONFIG}", _ADVICE
        )
        self.sizes = hugging_face_config.read_sizes(self._config)
        self._tensors = SafetensorsFolder(folder, self._refuse)
        llama.check_tensors(self._needed(), self.sizes, self._refuse, hugging_face_name)
        around = (folder / CONFIG, *(folder / name for name in hugging_face_tokenizer.FILES))
        self.files = (*self._tensors.files, *(path for path in around if path.is_file()))

    @property
    def licence(self) -> Licence:
        """As the model card and the licence file state it."""
        return read_licence(self._folder)

    @property
    def context_length(self) -> int | None:
        """As `config.json` states it."""
        return self._config.get("max_position_embeddings", int)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder."""
        return hugging_face_tokenizer.read_tokenizer(
            self._folder, self._config.values, self.sizes.vocabulary_size
        )

    def fill(self, backbone: "keras_hub.models.Llama3Backbone", rounding: str = "none") -> None:
        """Gives a backbone without values its weights."""
        self._check_really_tied()

        def read(name: str, start: int, stop: int) -> np.ndarray:
            return self._tensors.read(hugging_face_name(name), start, stop)

        filling.fill(backbone, read, self._refuse, rounding)

    def _needed(self) -> dict[str, tuple[int, ...]]:
        """Every tensor but those that transformers leaves aside too: old buffers, the unembedding of a tied model."""
        return {
            name: shape
            for name, shape in self._tensors.shapes.items()
            if not name.endswith(".rotary_emb.inv_freq") and not (self.sizes.tied and name == _UNEMBEDDING)
        }

    def _check_really_tied(self) -> None:
        """Some files hold the unembedding although it is tied: then it must be the embedding."""
        if not (self.sizes.tied and _UNEMBEDDING in self._tensors.shapes):
            return
        for start in range(0, self.sizes.vocabulary_size, _ROWS_COMPARED):
            rows = start, start + _ROWS_COMPARED
            if not np.array_equal(
                self._tensors.read(_EMBEDDING, *rows), self._tensors.read(_UNEMBEDDING, *rows)
            ):
                self._refuse(
                    f"`tie_word_embeddings` is true, but {_UNEMBEDDING} is another matrix than the embedding"
                )

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self._folder.name} cannot be loaded: {reason}. {_ADVICE}")


def hugging_face_name(name: str) -> str:
    """transformers' name for a weight, by llama.cpp's."""
    if name in _OUTER:
        return _OUTER[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_BLOCK[part]}.weight"
