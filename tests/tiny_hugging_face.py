"""A Llama small enough for tests, saved by transformers itself: `config.json`, safetensors, `tokenizer.json`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests import tiny_tokenizers

LLAMA_3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def reference(*, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A random Llama of transformers, in float32. Small embeddings, so that the norms' epsilon shows in the logits."""
    sizes: dict[str, Any] = {
        "vocab_size": tiny_tokenizers.VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(sizes | config)))
    rng = np.random.default_rng(seed)
    for name, weight in model.named_parameters():
        scale = 0.01 if "embed" in name else 0.02 if "lm_head" in name else 0.15
        draw = rng.normal(0, scale, tuple(weight.shape)) + (weight.ndim == 1)
        weight.data = torch.tensor(draw, dtype=torch.float32, device="cpu")
    return model.eval()


def logits(model: LlamaForCausalLM, ids: np.ndarray) -> np.ndarray:
    """(B, T, V), in the model's own precision and then float32."""
    with torch.no_grad():
        return model(torch.tensor(ids, dtype=torch.long, device="cpu")).logits.float().numpy()


def save(
    model: LlamaForCausalLM,
    folder: Path,
    *,
    config: dict[str, Any] | None = None,
    kind: str = "smollm",
    **options: Any,
) -> Path:
    """Saves a model and a tokenizer.

    Args:
        config: keys to put into `config.json` afterwards; those whose value is None are taken out.
        kind: of tokenizer, see `tiny_tokenizers.byte_level`.
        options: of transformers' `save_pretrained`.
    """
    model.save_pretrained(folder, **options)
    first, second, third = tiny_tokenizers.SPECIAL[kind]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(tiny_tokenizers.byte_level(kind)),
        bos_token=second if kind == "smollm" else first,
        eos_token=third,
        pad_token=third,
        chat_template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    )
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", **(config or {}))
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Sets keys of a JSON object in a file; None takes one out."""
    content = json.loads(path.read_text(encoding="utf-8")) | values
    content = {key: value for key, value in content.items() if value is not None or key not in values}
    path.write_text(json.dumps(content), encoding="utf-8")
