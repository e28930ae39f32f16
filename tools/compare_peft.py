"""Trains the same prefix with keras_mtp and with Hugging Face PEFT, and compares the loss of every step.

    .venv/bin/python tools/compare_peft.py --backend jax --data FOLDER --steps 50

Same base model, start, batches and AdamW: no weight decay, no clipping, epsilon 1e-12. Needs what `tools/test` installs.
`--max-tokens` leaves longer examples out, which saves time on a CPU. Prints every step and the largest difference.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--data", default="builtin", help="hub, builtin or a folder")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--prefix-length", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=8e-3)
    options = parser.parse_args()
    from keras_mtp import backend

    backend.select(options.backend)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    from keras import ops

    from keras_mtp.data.batches import Batches
    from keras_mtp.data.encoding import encode_all
    from keras_mtp.evaluation import HeldOutEvaluation
    from keras_mtp.metrics import MetricsLog
    from keras_mtp.models.backbone import locate
    from keras_mtp.models.from_recipe import model_from_recipe
    from keras_mtp.recipe import load_recipe, updated
    from keras_mtp.tasks import load_task
    from keras_mtp.training import train
    from tests import peft_reference

    recipe = updated(
        load_recipe("gsm8k"),
        {
            "model.name": options.model,
            "data.max_tokens": options.max_tokens,
            "prefix.length": options.prefix_length,
            "heads.count": 0,
            "training.steps": options.steps,
            "training.batch_size": options.batch_size,
            "training.learning_rate": options.learning_rate,
            "training.clip_norm": 0.0,
            "training.weight_decay": 0.0,
            "training.epsilon": 1e-12,
            "evaluation.every": options.steps,
        },
    )
    task = load_task(recipe.task, options.data)
    model, tokenizer = model_from_recipe(recipe)
    examples = encode_all(task.examples("train"), tokenizer, recipe.data.max_tokens).examples
    start = ops.convert_to_numpy(model.prefix_embedding.embeddings.value)
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder) / "metrics.csv", model.head_names)
        train(model, examples, recipe, log, HeldOutEvaluation(model, examples[:1], 1))
        log.close()
    ours = [row["head_1_loss"] for row in log.rows if row["step"]]
    batches = Batches(
        examples,
        heads=model.head_names,
        steps=options.steps,
        batch_size=options.batch_size,
        buckets=recipe.data.buckets,
        seed=recipe.training.seed,
    )
    del model
    theirs = peft_reference.losses(locate(options.model), batches, start.copy(), recipe.training)
    print(f"{task.title}, {options.backend}: step, keras_mtp, PEFT, difference")
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        print(f"{step:4d}  {mine:.6f}  {other:.6f}  {mine - other:+.1e}")
    print(f"largest difference {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.1e}")


if __name__ == "__main__":
    main()
