"""A Llama with a prefix of either kind, LoRA and transformer heads in double precision, in plain torch: what float32 is measured by.

It shares no code with the package but the weights; norms, softmax and silu are double too, which every library here makes
in float32. Slow, and a row at a time.
"""

from collections.abc import Mapping

import numpy as np
import torch

from keras_mtp.checkpoint import trained_variables
from keras_mtp.layers.lora import projection
from keras_mtp.tuning import PROJECTIONS

Weights = dict[str, torch.Tensor]


class Float64Llama:
    """The same function as an `MTPCausalLM` with a prefix or none, LoRA or none, and transformer heads.

    Args:
        model: where the weights are taken from.
    """

    def __init__(self, model):
        backbone = model.backbone
        self.heads, self.groups = (
            backbone.num_query_heads,
            backbone.num_query_heads // backbone.num_key_value_heads,
        )
        self.epsilon = backbone.layer_norm_epsilon
        self.scale = model.lora.alpha / model.lora.rank if model.lora else 0.0
        self.wavelength = backbone.rope_max_wavelength
        if backbone.rope_frequency_adjustment_factor not in (None, 1.0):
            raise ValueError("Rotary frequencies must not be scaled.")
        self.trained = {name: _double(v) for name, v in trained_variables(model).items()}
        for tensor in self.trained.values():
            tensor.requires_grad_()
        self.embeddings, self.norm = (
            _double(backbone.token_embedding.embeddings),
            _double(backbone.layer_norm.scale),
        )
        self.blocks = [_block(block) for block in backbone.transformer_layers]
        self.names = model.head_names

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """(B, T) -> (K, B, T, V)."""
        with torch.no_grad():
            rows = [torch.stack(self._row(row)).numpy() for row in torch.tensor(ids)]
        return np.stack(rows, axis=1)

    def gradients(self, ids, targets: Mapping, weights: Mapping, head_weight: float) -> dict[str, np.ndarray]:
        """By name, of head_1's weighted loss and `head_weight` times head_2's."""
        for row in range(len(ids)):
            loss = torch.zeros((), dtype=torch.float64)
            for place, logits in enumerate(self._row(torch.tensor(ids[row]))):
                name = self.names[place]
                nats = torch.nn.functional.cross_entropy(
                    logits, torch.tensor(targets[name][row]).long(), reduction="none"
                )
                loss = (
                    loss
                    + (head_weight if place else 1.0)
                    * (nats * torch.tensor(weights[name][row]).double()).sum()
                )
            loss.backward()
        return {name: tensor.grad.numpy() for name, tensor in self.trained.items()}

    def _row(self, ids: torch.Tensor) -> list[torch.Tensor]:
        """(T,) -> the logits of every head, (T, V)."""
        x = self.embeddings[ids.long()]
        prefix = self.trained.get("prefix/embeddings", x[:0])
        x = torch.cat([prefix, x])
        for place, block in enumerate(self.blocks):
            key_values = self.trained.get(f"prefix/block_{place}")
            before, x = x, self._run(self._adapted(block, place), x, key_values)
        # Prefix tuning knows no keys and values for a head: it looks at the last block's.
        states = [x, *(self._run(self._head(name), before, key_values) for name in self.names[1:])]
        return [self._normed(s[len(prefix) :], self.norm) @ self.embeddings.T for s in states]

    def _adapted(self, block: Weights, place: int) -> Weights:
        """A block with LoRA in its matrices."""
        changed = {}
        for name in PROJECTIONS:
            if f"lora/{place}/{name}/a" in self.trained:
                a, b = (self.trained[f"lora/{place}/{name}/{which}"] for which in "ab")
                changed[name] = block[name] + self.scale * (a @ b).reshape(block[name].shape)
        return block | changed

    def _head(self, name: str) -> Weights:
        """The block that a transformer head is, by the names that a checkpoint gives its weights."""
        found = {}
        for path, tensor in self.trained.items():
            if path.startswith(name + "/"):
                found[_OURS[path.removeprefix(f"{name}/decoder/")]] = tensor
        return {k: v if v.ndim == 1 else _matrix(v, k) for k, v in found.items()}

    def _run(self, w: Weights, x: torch.Tensor, key_values: torch.Tensor | None = None) -> torch.Tensor:
        """A block. `key_values` (2, P, heads, E), rotated, are those of P places before the first of x (T, D)."""
        count = len(x)
        h = self._normed(x, w["attention_norm"])
        query, key, value = ((h @ w[n]).reshape(count, -1, self.head_dim) for n in ("query", "key", "value"))
        first = 0 if key_values is None else key_values.shape[1]
        query, key = self._rotated(query, first), self._rotated(key, first)
        if key_values is not None:
            key, value = torch.cat([key_values[0], key]), torch.cat([key_values[1], value])
        key, value = (t.repeat_interleave(self.groups, dim=1) for t in (key, value))
        scores = torch.einsum("qhe,khe->hqk", query, key) / self.head_dim**0.5
        hidden = torch.ones(count, first + count, dtype=torch.bool).triu(first + 1)
        attention = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        x = x + torch.einsum("hqk,khe->qhe", attention, value).reshape(count, -1) @ w["output"]
        h = self._normed(x, w["feedforward_norm"])
        return x + (torch.nn.functional.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]

    @property
    def head_dim(self) -> int:
        return self.embeddings.shape[1] // self.heads

    def _rotated(self, x: torch.Tensor, first: int) -> torch.Tensor:
        """(T, heads, E), at positions from `first`: both halves of E are a rotation's two coordinates."""
        half = self.head_dim // 2
        frequencies = self.wavelength ** (-torch.arange(half, dtype=torch.float64) / half)
        positions = first + torch.arange(len(x), dtype=torch.float64)
        angles = (positions[:, None] * frequencies)[:, None]
        left, right = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)

    def _normed(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.epsilon).rsqrt() * scale


_OURS = {
    "self_attention/query/kernel": "query",
    "self_attention/key/kernel": "key",
    "self_attention/value/kernel": "value",
    "self_attention/attention_output/kernel": "output",
    "self_attention_layernorm/scale": "attention_norm",
    "feedforward_gate_dense/kernel": "gate",
    "feedforward_intermediate_dense/kernel": "up",
    "feedforward_output_dense/kernel": "down",
    "feedforward_layernorm/scale": "feedforward_norm",
}


def _block(block) -> Weights:
    def stored(dense):
        return dense._kernel if dense.lora_enabled else dense.kernel

    matrices = {name: _matrix(_double(stored(projection(block, name))), name) for name in PROJECTIONS}
    return matrices | {
        "attention_norm": _double(block._self_attention_layernorm.scale),
        "feedforward_norm": _double(block._feedforward_layernorm.scale),
    }


def _matrix(kernel: torch.Tensor, name: str) -> torch.Tensor:
    """(inputs, outputs), heads flattened."""
    inputs = 2 if name == "output" else 1
    return kernel.reshape(kernel.shape[:inputs].numel(), -1)


def _double(variable) -> torch.Tensor:
    return torch.tensor(np.asarray(variable.value.detach().cpu()), dtype=torch.float64)
