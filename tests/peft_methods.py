"""Hugging Face PEFT's prefix tuning and LoRA around transformers' Llama: references for logits and gradients."""

import numpy as np
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import LlamaForCausalLM

MODULES = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}


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
    flat = np.stack(key_values).transpose(2, 0, 1, 3, 4).reshape(length, -1)
    weight.data = _tensor(flat)
    logits, _ = loss_of(model, ids)
    gradient = weight.grad.numpy().reshape(length, len(key_values), 2, heads, size)
    return logits, list(gradient.transpose(1, 2, 0, 3, 4))


def lora(base: LlamaForCausalLM, named: dict[str, np.ndarray], alpha: float, ids: np.ndarray):
    """PEFT's LoRA with our A and B.

    Where attention heads have an A each and share one B, PEFT is given all A side by side and a B that is the shared one in
    every head's place and zero elsewhere; the gradients of those places add up.

    Args:
        named: A and B by our names, `{"0/query/a": ...}`.

    Returns:
        `(logits, gradients by the same names)`.
    """
    targets = {name.split("/")[1] for name in named}
    ranks = {MODULES[t]: _wide(named[f"0/{t}/a"], t).shape[1] for t in targets}
    rank = named[next(iter(named))].shape[-1]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern={module: alpha * wide / rank for module, wide in ranks.items()},
    )
    model = get_peft_model(base, config).eval()
    modules = dict(model.named_modules())
    used = {}
    for name in {name.rpartition("/")[0] for name in named}:
        place, target = name.split("/")
        block = "self_attn" if target in ("query", "key", "value", "output") else "mlp"
        path = f"base_model.model.model.layers.{place}.{block}.{MODULES[target]}"
        layer, (a, b) = modules[path], (named[f"{name}/{which}"] for which in "ab")
        wide = _wide(a, target)
        layer.lora_A["default"].weight.data = _tensor(wide.T.copy())
        layer.lora_B["default"].weight.data = _tensor(
            np.kron(np.eye(wide.shape[1] // rank), b.T).astype("float32")
        )
        used[name] = layer, a.shape, b.shape
    logits, _ = loss_of(model, ids)
    gradients = {}
    for name, (layer, a_shape, (rank, outputs)) in used.items():
        gradients[f"{name}/a"] = layer.lora_A["default"].weight.grad.numpy().T.reshape(a_shape)
        whole = layer.lora_B["default"].weight.grad.numpy()
        groups = whole.shape[1] // rank
        blocks = whole.reshape(groups, outputs, groups, rank)
        gradients[f"{name}/b"] = sum(blocks[g, :, g] for g in range(groups)).T
    return logits, gradients


def _wide(a: np.ndarray, target: str) -> np.ndarray:
    """A as (inputs, columns): the heads' side by side, but for the output, whose heads are its inputs."""
    return a.reshape(-1, a.shape[-1]) if target == "output" else a.reshape(a.shape[0], -1)
