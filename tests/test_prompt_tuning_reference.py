"""Prefix-only training follows Hugging Face PEFT's prompt tuning, step by step.

Same weights, start, batches and AdamW (no weight decay, no clipping, epsilon 1e-12 in both, since Keras and torch add it
at different places). `tools/compare_peft.py` does the same with the real SmolLM2 on GSM8K.
"""

import numpy as np

from keras_mtp.data.batches import Batches
from keras_mtp.evaluation import HeldOutEvaluation
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.backbone import load_backbone
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import Recipe, updated
from keras_mtp.training import train
from tests import peft_reference, tiny
from tests.tiny_gguf import write_tiny_gguf

RECIPE = updated(
    Recipe(),
    {
        "heads.count": 0,
        "training.steps": 30,
        "training.batch_size": 4,
        "training.learning_rate": 0.03,
        "training.clip_norm": 0.0,
        "training.epsilon": 1e-12,
        "evaluation.every": 30,
        "data.buckets": 2,
    },
)
# Larger than the tiny model's own, so that there is something a prefix can do.
EMBEDDINGS = np.random.default_rng(0).normal(0, 0.5, (260, 32)).astype("float32")


def test_follows_peft_prompt_tuning(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, tied=True, vocabulary=(), tensors={"token_embd.weight": EMBEDDINGS})
    backbone, _ = load_backbone(str(path))
    examples = tiny.encoded(24)
    model = MTPCausalLM(backbone, prefix_length=5)
    start = tiny.arrays([model.prefix_embedding.embeddings])[0]
    log = MetricsLog(tmp_path / "metrics.csv", model.head_names)
    train(model, examples, RECIPE, log, HeldOutEvaluation(model, examples[:2], 2))
    log.close()
    ours = [row["head_1_loss"] for row in log.rows if row["step"]]
    batches = Batches(examples, heads=("head_1",), steps=30, batch_size=4, buckets=2)
    theirs = peft_reference.losses(path, batches, start, RECIPE.training)
    assert ours[-1] < ours[0] - 0.05
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
