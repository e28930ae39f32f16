"""Hugging Face PEFT's prefix tuning and LoRA around transformers' Llama: references for logits and gradients."""

import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import LlamaForCausalLM

from keras_mtp.export.peft_adapter import key_value_table, lora_matrices, lora_pattern, module_path


def _tensor(values) -> torch.Tensor:
    return torch.tensor(np.asarray(values), device="cpu")


def loss_of(model, ids: np.ndarray):
    """`(logits, mean loss)` of predicting the next token; gradients follow the loss."""
    tokens = _tensor(ids).long()
    logits = model(input_ids=tokens).logits
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    loss = torch.nn.functional.cross_entropy(flat, tokens[:, 1:].reshape(-1))
    loss.backward()
    return logits.detach().numpy(), loss.item()


def prefix_tuning(base: LlamaForCausalLM, key_values: list[np.ndarray], ids: np.ndarray):
    """PEFT's prefix tuning with given keys and values.

    Args:
        key_values: (2, P, H, E) per block.

    Returns:
        `(logits, gradient of every block's)`.
    """
    length, heads, size = key_values[0].shape[1:]
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        num_layers=len(key_values),
        num_attention_heads=heads,
        token_dim=heads * size,
    )
    model = get_peft_model(base, config).eval()
    weight = model.prompt_encoder["default"].embedding.weight  # (P, blocks * 2 * H * E)
    weight.data = _tensor(key_value_table(key_values))
    logits, _ = loss_of(model, ids)
    gradient = weight.grad.numpy().reshape(length, len(key_values), 2, heads, size)
    return logits, list(gradient.transpose(1, 2, 0, 3, 4))


def lora(base: LlamaForCausalLM, named: dict[str, np.ndarray], alpha: float, ids: np.ndarray):
    """PEFT's LoRA with our A and B, laid out as an exported adapter has them (`export/peft_adapter.py`).

    The gradients of the places that one shared B stands in add up.

    Args:
        named: A and B by our names, `{"0/query/a": ...}`.

    Returns:
        `(logits, gradients by the same names)`.
    """
    names = {name.rpartition("/")[0] for name in named}
    matrices = {
        name: lora_matrices(named[f"{name}/a"], named[f"{name}/b"], name.split("/")[1]) for name in names
    }
    ranks = {name.split("/")[1]: wide.shape[0] for name, (wide, _) in matrices.items()}
    rank = named[next(iter(named))].shape[-1]
    config = LoraConfig(task_type="CAUSAL_LM", **lora_pattern(ranks, rank, alpha))
    model = get_peft_model(base, config).eval()
    modules = dict(model.named_modules())
    used = {}
    for name, (wide, spread) in matrices.items():
        place, target = name.split("/")
        layer = modules[f"base_model.model.{module_path(int(place), target)}"]
        layer.lora_A["default"].weight.data = _tensor(wide)
        layer.lora_B["default"].weight.data = _tensor(spread)
        used[name] = layer, named[f"{name}/a"].shape, named[f"{name}/b"].shape
    logits, _ = loss_of(model, ids)
    gradients = {}
    for name, (layer, a_shape, (rank, outputs)) in used.items():
        gradients[f"{name}/a"] = layer.lora_A["default"].weight.grad.numpy().T.reshape(a_shape)
        whole = layer.lora_B["default"].weight.grad.numpy()
        groups = whole.shape[1] // rank
        blocks = whole.reshape(groups, outputs, groups, rank)
        gradients[f"{name}/b"] = sum(blocks[g, :, g] for g in range(groups)).T
    return logits, gradients
