"""Hugging Face PEFT's prompt tuning over given batches: the reference for prefix-only training."""

from pathlib import Path

import numpy as np
import torch
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoConfig, LlamaForCausalLM

from keras_mtp.data.batches import Batches
from keras_mtp.recipe import TrainingRecipe


def losses(gguf_file: Path, batches: Batches, start: np.ndarray, training: TrainingRecipe) -> list[float]:
    """Trains a prompt of transformers' own Llama with torch's AdamW; the loss of every step, before it is made.

    Args:
        gguf_file: the base model, read by transformers. batches: what to train on, head_1's weights decide the labels.
        start: float32 (P, D), the prompt's first value. training: learning rate and its warm-up, epsilon.
    """
    model = _prompt_tuned(gguf_file, start)
    weight = model.prompt_encoder["default"].embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, eps=training.epsilon)
    found = []
    for step in range(batches.steps):
        optimizer.param_groups[0]["lr"] = training.learning_rate * _schedule(step, batches.steps, training)
        ids, _, weights = batches[step]
        labels = np.full(ids.shape, -100)
        labels[:, 1:] = np.where(weights["head_1"][:, :-1] > 0, ids[:, 1:], -100)
        arrays = {"input_ids": ids, "labels": labels}
        tensors = {k: torch.tensor(v, dtype=torch.long, device=weight.device) for k, v in arrays.items()}
        loss = model(**tensors).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def _prompt_tuned(gguf_file: Path, start: np.ndarray):
    config = AutoConfig.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    base = LlamaForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, config=config, dtype=torch.float32
    )
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(start)))
    weight = model.prompt_encoder["default"].embedding.weight
    weight.data = torch.tensor(start, device=weight.device)
    return model


def _schedule(step: int, steps: int, training: TrainingRecipe) -> float:
    """Linear from 1/warmup to 1, then a cosine to 0: share of the peak learning rate."""
    warmup = round(training.learning_rate_warmup * steps)
    if step < warmup:
        return 1 / warmup + (1 - 1 / warmup) * step / warmup
    return 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))
