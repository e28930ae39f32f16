"""How every system trains: ours, keras-hub's LoRA, and transformers with PEFT.

Each is a function of (system, workload, pace) that imports, loads, and then steps for ever, at the pace it is given. All
use AdamW and see the same examples per batch, padded as each pads them.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_mtp.flops import Positions, step_flops
from tools.benchmarks.worker import Pace, System, Workload

STEPS = 100_000  # more than anyone will ask for
LORA_RANK = 8
LEARNING_RATE = 1e-3


def keras_mtp(system: System, workload: Workload, pace: Pace) -> None:
    """A recipe's joint stage, by the very function that a run calls."""
    import keras

    from keras_mtp.evaluation import HeldOutEvaluation
    from keras_mtp.metrics import MetricsLog
    from keras_mtp.models.from_recipe import model_from_recipe
    from keras_mtp.models.mtp_causal_lm import head_names
    from keras_mtp.training import train

    pace.imported()
    recipe = _recipe(system, workload)
    work = list(_our_work(recipe, workload, head_names(1 + system.heads)))

    class Paced(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.steps = 0
            pace.begin()

        def on_train_batch_end(self, batch, logs=None):
            loss = float(logs.get("head_1_loss", logs["loss"]))
            pace.end(loss=loss, **work[self.steps % len(work)])
            self.steps += 1
            pace.begin()

    model, _ = model_from_recipe(recipe)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder) / "metrics.csv", model.head_names)
        evaluate = HeldOutEvaluation(model, workload.examples[:1], 1)
        train(model, workload.examples, recipe, log, evaluate, [Paced()])


def _recipe(system: System, workload: Workload):
    from keras_mtp.recipe import load_recipe, updated

    return updated(
        load_recipe("gsm8k"),
        {
            "model.name": workload.model,
            "prefix.length": len(workload.prefix_ids),
            "heads.count": system.heads,
            "heads.warmup_steps": 0,
            "training.steps": STEPS,
            "training.batch_size": workload.batch_size,
            "training.dtype": system.dtype,
            "evaluation.every": STEPS,
        },
    )


def _batches(recipe, workload: Workload, heads):
    from keras_mtp.data.batches import Batches

    return Batches(
        workload.examples,
        heads=heads,
        steps=STEPS,
        batch_size=recipe.training.batch_size,
        buckets=recipe.data.buckets,
        seed=recipe.training.seed,
    )


def _our_work(recipe, workload: Workload, heads) -> Iterator[dict[str, float]]:
    """Flops and padding of the first pass through the examples; later ones hardly differ."""
    from keras_mtp.data.lengths import shared_tokens

    batches, shared = _batches(recipe, workload, heads), shared_tokens(workload.examples)
    for step in range(workload.batches):
        ids, _, weights = batches[step]
        flops = step_flops(
            workload.sizes,
            Positions(rows=len(ids), own=ids.shape[1] - shared, shared=recipe.prefix.length + shared),
            labelled_rows=sum(int((w > 0).sum()) for w in weights.values()),
            heads=recipe.heads.count,
            kind=recipe.heads.kind,
            heads_trained=not recipe.heads.freeze,
        )
        yield {"flops": flops.total, "padding": 1 - batches.real_tokens(step) / ids.size}


def keras_hub_lora(system: System, workload: Workload, pace: Pace) -> None:
    """A plain Keras model on keras-hub's backbone: `enable_lora`, full logits, Keras' own loss.

    It is given our buckets: its own preprocessor would pad every batch to one length.
    """
    import keras

    from keras_mtp.models.backbone import load_backbone

    pace.imported()
    backbone, _ = load_backbone(workload.model, dtype=system.dtype)
    backbone.enable_lora(LORA_RANK)
    logits = backbone.token_embedding(backbone.output, reverse=True)
    model = keras.Model(backbone.input, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
    model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss=loss)
    batches = _batches(_recipe(system, workload), workload, ("head_1",))
    for step in range(STEPS):
        pace.begin()
        ids, targets, weights = batches[step]
        inputs = {"token_ids": ids, "padding_mask": ids != 0}
        value = model.train_on_batch(inputs, targets["head_1"], sample_weight=weights["head_1"])
        pace.end(
            loss=float(value),
            flops=_full_logits_flops(workload, ids.shape),
            padding=1 - batches.real_tokens(step) / ids.size,
        )


def peft_prompt_tuning(system: System, workload: Workload, pace: Pace) -> None:
    """transformers' Llama with PEFT's prompt tuning; its prompt starts as our prefix does."""
    import torch
    from peft import PromptTuningConfig

    def start_from_text(model) -> None:
        table = model.get_input_embeddings().weight
        weight = model.prompt_encoder["default"].embedding.weight
        weight.data = table.data[torch.tensor(workload.prefix_ids)].to(weight.dtype).clone()

    length = len(workload.prefix_ids)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=length)
    _peft(system, workload, pace, config, start_from_text, prefix_length=length)


def peft_lora(system: System, workload: Workload, pace: Pace) -> None:
    """transformers' Llama with PEFT's LoRA on queries and values."""
    from peft import LoraConfig

    config = LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, target_modules=["q_proj", "v_proj"])
    _peft(system, workload, pace, config, lambda model: None, prefix_length=0)


def _peft(system: System, workload: Workload, pace: Pace, config, start, *, prefix_length: int) -> None:
    import torch
    from peft import get_peft_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pace.imported()
    model = get_peft_model(transformers_model(workload.path, system.dtype), config)
    start(model)
    model.to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], LEARNING_RATE)
    batches = _batches(_recipe(system, workload), workload, ("head_1",))
    for step in range(STEPS):
        pace.begin()
        chosen = [workload.examples[i] for i in batches.step_examples(step)]
        arrays = _padded_to_the_longest(chosen)
        loss = model(**{name: torch.tensor(a, device=device) for name, a in arrays.items()}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows, tokens = arrays["input_ids"].shape
        pace.end(
            loss=loss.item(),
            flops=_full_logits_flops(workload, (rows, prefix_length + tokens)),
            padding=1 - float(arrays["attention_mask"].mean()),
        )


def transformers_model(path: Path, dtype: str):
    """In bfloat16 with its weights stored so, which is the fastest that transformers has."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    source = {"gguf_file": path.name} if path.is_file() else {}
    folder = path.parent if path.is_file() else path
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=AutoConfig.from_pretrained(folder, **source),
        dtype=torch.float32 if dtype == "float32" else torch.bfloat16,
        **source,
    )


def _padded_to_the_longest(examples) -> dict[str, np.ndarray]:
    """As transformers' own collators pad; labels are -100 where nothing is to be learnt."""
    from keras_mtp.data.targets import pad

    lengths = np.array([len(item.ids) for item in examples])
    ids, is_answer = pad(examples, int(lengths.max()))
    return {
        "input_ids": ids.astype("int64"),
        "attention_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype("int64"),
        "labels": np.where(is_answer, ids, -100).astype("int64"),
    }


def _full_logits_flops(workload: Workload, shape: tuple[int, ...]) -> float:
    """A frozen trunk, every position's logits; LoRA's own small matrices left out."""
    rows, tokens = shape
    return step_flops(workload.sizes, Positions(rows=rows, own=tokens), labelled_rows=rows * tokens).total


SYSTEMS: dict[str, Callable[[System, Workload, Pace], None]] = {
    function.__name__: function for function in (keras_mtp, peft_prompt_tuning, peft_lora, keras_hub_lora)
}
