"""What a Llama takes in memory while it is loaded and while it is trained, whole and quantised.

    .venv/bin/python tools/measure_loading.py                                   # SmolLM2's shape, every way of storing it
    .venv/bin/python tools/measure_loading.py --models random:llama3.2_1b --stored bfloat16 int8 --backends torch
    .venv/bin/python tools/measure_loading.py --load-only --models smollm2-135m

Each line is two processes of its own. One only loads the model: its peak of resident memory less that after imports, beside
the size of the trunk's variables. The other makes a run from start to finish, `--steps` steps of a prefix and a transformer
head on batches of 4 x 256 tokens (the built-in task, truncated), with rematerialisation and without speculation, judged on
two examples before and after: its peak, and the seconds that a step takes. Random weights learn nothing; their
memory is what the real ones' is.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.table import Table

from keras_mtp.backend import BACKENDS
from tools.benchmarks.alone import in_a_process, say
from tools.benchmarks.screen import console

# Keras' policy of what is computed, how matrices are stored, and the bits of a weight for the reader.
STORED = {
    "float32": ("float32", "none"),
    "bfloat16": ("mixed_bfloat16", "none"),
    "int8": ("mixed_bfloat16", "int8"),
    "int4": ("mixed_bfloat16", "int4"),
    "int8-float32": ("float32", "int8"),
    "int4-float32": ("float32", "int4"),
}
RUN = (
    *("training.batch_size=4", "data.max_tokens=256", "data.too_long=truncate", "data.source=builtin"),
    *("data.buckets=1", "heads.count=1", "heads.warmup_steps=1", "training.remat=true"),
    *("training.memory_check=false", "training.compile=false", "training.snapshot_every=0"),
    *("evaluation.limit=2", "evaluation.batch_size=2", "evaluation.test_limit=0"),
)
_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["random:smollm2_135m"])
    parser.add_argument(
        "--stored", nargs="+", choices=STORED, default=["float32", "bfloat16", "int8", "int4"]
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--load-only", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # what a process is told
    options = parser.parse_args()
    if options.one:
        say(measure(json.loads(options.one)))
        return
    table = Table("model", "stored as", "backend", "trunk GB", "loading GB", "ratio", "run GB", "s a step")
    progress = console(stderr=True)
    for model in options.models:
        for stored in options.stored:
            for backend in options.backends:
                wanted = {"backend": backend, "model": model, "stored": stored, "steps": options.steps}
                found = in_a_process(__file__, {**wanted, "what": "load"})
                ratio = found["peak_bytes"] / found["trunk_bytes"]
                row = [model, stored, backend, f"{found['trunk_bytes'] / 1e9:.2f}"]
                row += [f"{found['peak_bytes'] / 1e9:.2f}", f"{ratio:.2f}"]
                if not options.load_only:
                    found = in_a_process(__file__, {**wanted, "what": "train"})
                    row += [f"{found['peak_bytes'] / 1e9:.2f}", f"{found['step_seconds']:.1f}"]
                progress.print(*row)
                table.add_row(*row)
    console().print(table)


def measure(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What this process takes, its backend not chosen yet."""
    from keras_mtp import backend

    backend.select(wanted["backend"])
    return (load if wanted["what"] == "load" else train)(wanted)


def load(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The peak of loading a model, and what its variables take."""
    import keras_hub  # noqa: F401  a base, as all imports are
    from keras import ops

    from keras_mtp import memory
    from keras_mtp.models.backbone import load_backbone

    ops.ones(1) + 1  # the backend has begun
    clock = memory.Clock()
    dtype, quantize = STORED[wanted["stored"]]
    dtype = "bfloat16" if dtype == "mixed_bfloat16" else dtype  # as a frozen trunk is stored
    backbone, _ = load_backbone(wanted["model"], dtype=dtype, quantize=quantize)
    trunk_bytes = sum(math.prod(v.shape) * _BYTES[v.dtype] for v in backbone.variables)
    return {
        "peak_bytes": clock.peak_bytes,
        "trunk_bytes": trunk_bytes,
    }


def train(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The peak of a run, and what a step of its second stage takes, the first left out."""
    import keras

    from keras_mtp import pipeline
    from keras_mtp.recipe import apply_overrides, load_recipe

    class Seconds(keras.callbacks.Callback):
        begun, steps = 0.0, ()

        def on_train_batch_begin(self, batch, logs=None):
            self.begun = time.monotonic()

        def on_train_batch_end(self, batch, logs=None):
            self.steps = (*self.steps, time.monotonic() - self.begun)

    dtype, quantize = STORED[wanted["stored"]]
    own = [f"model.name={wanted['model']}", f"model.quantize={quantize}", f"training.dtype={dtype}"]
    recipe = apply_overrides(
        load_recipe("gsm8k"),
        [*RUN, *own, f"training.steps={wanted['steps']}", f"evaluation.every={wanted['steps']}"],
    )
    seconds = Seconds()
    with tempfile.TemporaryDirectory() as folder:
        report = pipeline.run(recipe, Path(folder) / "run", progress=False, callbacks=[seconds])
    later = sorted(seconds.steps[-(wanted["steps"] - 1) :])
    return {"peak_bytes": report.peak_bytes, "step_seconds": later[len(later) // 2]}


if __name__ == "__main__":
    main()
