"""Trains a tiny model on several sets of devices, in a process of its own: how many devices a backend has is fixed when it starts.

    python -m tests.several_devices FOUND.json METHOD 1x1 4x1 2x2

writes, for every `data x model`, the losses of all steps and evaluations, some gradients' norms, how large a part of the trunk one
device has, and a hash of all weights. Of several processes each writes a file: FOUND.json, FOUND.json.1, ...
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from keras_mtp import backend

STEPS = 50
DEVICES = 2  # of TensorFlow


def main(path: str, method: str, *devices: str) -> None:
    if backend.select() == "tensorflow":
        _split_cpu(DEVICES)
    found = {}
    for each in devices:
        found[each] = trained(method, *map(int, each.split("x")))
        process = found[each]["process"]
    Path(f"{path}.{process}" if process else path).write_text(json.dumps(found))


def _split_cpu(count: int) -> None:
    """What TensorFlow has instead of XLA_FLAGS."""
    config = backend.tensorflow().config
    parts = [config.LogicalDeviceConfiguration()] * count
    config.set_logical_device_configuration(config.list_physical_devices("CPU")[0], parts)


def trained(method: str, data: int, model: int) -> dict:
    """What came of one training: `{"losses": [...], "part": share of the trunk's bytes on one device, "weights": hash}`."""
    from keras_mtp import distribution
    from keras_mtp.evaluation import HeldOutEvaluation
    from keras_mtp.metrics import MetricsLog, probe_columns
    from keras_mtp.recipe import Recipe, updated
    from keras_mtp.training import train

    recipe = updated(
        Recipe(name="tiny"),
        {
            "tuning.method": method,
            "heads.freeze": False,
            "heads.warmup_steps": 0,
            "training.steps": STEPS,
            "training.batch_size": 8,
            "training.accumulation": 2,
            "training.learning_rate": 0.01,
            "training.weight_decay": 0.1,
            "training.compile": False,
            "training.probe_every": STEPS,
            "evaluation.every": STEPS,
            "data.buckets": 1,
            "distribution.data": data,
            "distribution.model": model,
        },
    )
    with distribution.begun(data, model) as group, tempfile.TemporaryDirectory() as folder:
        made = _model(method)
        log = MetricsLog(Path(folder) / "metrics.csv", made.head_names, probe_columns(made.head_names))
        train(made, _examples(40, 0), recipe, log, HeldOutEvaluation(made, _examples(6, 9), 4))
        log.close()
        losses = [value for row in log.rows for key, value in row.items() if key.endswith(("loss", "norm"))]
        weights = b"".join(group.whole(variable.value).tobytes() for variable in made.variables)
        return {
            "process": group.process,
            "losses": losses,
            "part": _part(made.backbone),
            "weights": hashlib.sha256(weights).hexdigest(),
        }


def _model(method: str):
    from keras_mtp.layers.sequential_head import SequentialHead
    from keras_mtp.models.mtp_causal_lm import MTPCausalLM
    from tests import tiny

    return MTPCausalLM(
        tiny.backbone(num_layers=2, vocabulary_size=52),
        prefix_length=4 if "prefix" in method else 0,
        prefix_kind="key_values" if "prefix_kv" in method else "embeddings",
        prefix_start=[1, 2, 3, 4],
        lora_rank=2 if "lora" in method else 0,
        lora_targets=("query", "value", "output", "gate", "down"),
        freeze_backbone=method != "full",
        heads=[SequentialHead()],
    )


def _examples(count: int, seed: int) -> list:
    """All begin with the same tokens, as behind a chat template: those are computed once for a device's rows."""
    from keras_mtp.data.encoding import Encoded
    from tests import tiny

    opening = np.arange(5, dtype="int32")
    return [
        Encoded(
            id=item.id,
            ids=np.concatenate([opening, item.ids]),
            is_answer=np.concatenate([np.zeros(5, bool), item.is_answer]),
        )
        for item in tiny.encoded(count, seed=seed)
    ]


def _part(backbone) -> float:
    values = [variable.value for variable in backbone.variables]
    if not hasattr(values[0], "addressable_shards"):
        return 1.0
    on_one = sum(v.addressable_shards[0].data.nbytes for v in values)
    return on_one / sum(v.nbytes for v in values)


if __name__ == "__main__":
    main(*sys.argv[1:])
