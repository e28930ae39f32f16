"""The examples that every system is given, chosen and encoded once."""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from keras_mtp import backend
from tools.benchmarks.worker import Workload

PREFIX_LENGTH = 16
BATCH_SIZE = 8
# Training examples that the batches are made of, as a run makes them: those of like length together.
DRAWN = 1024


def prepare(options: argparse.Namespace) -> Workload:
    """Chooses and encodes `options.batches` batches, in a process of its own: Keras stays out of this one."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(
            _prepare, options.model, options.data, options.batches, options.max_tokens
        ).result()


def _prepare(model: str, data: str, batches: int, max_tokens: int) -> Workload:
    backend.select()
    with backend.first_imports():
        import keras_hub  # noqa: F401  (brings TensorFlow, and its greetings)

    from keras_mtp.data.batches import Batches
    from keras_mtp.data.encoding import encode_all
    from keras_mtp.flops import Sizes
    from keras_mtp.models.backbone import load_backbone, locate
    from keras_mtp.recipe import load_recipe
    from keras_mtp.tasks import load_task

    backbone, tokenizer = load_backbone(model)
    examples = list(load_task("gsm8k", data).examples("train"))
    order = np.random.default_rng(0).permutation(len(examples))[:DRAWN]
    encoded = encode_all([examples[i] for i in order], tokenizer, max_tokens).examples
    run = Batches(encoded, heads=("head_1",), steps=batches, batch_size=BATCH_SIZE, buckets=0)
    chosen = [encoded[i] for step in range(batches) for i in run.step_examples(step)]
    text = tokenizer.encode(load_recipe("gsm8k").prefix.text)
    return Workload(
        model=model,
        path=locate(model),
        sizes=Sizes.of(backbone),
        examples=chosen,
        batch_size=BATCH_SIZE,
        prefix_ids=np.resize(text, PREFIX_LENGTH).tolist(),
    )
