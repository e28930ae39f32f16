"""The prompts and the files that every system is given, made once. Keras stays out of the command's own process."""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from keras_mtp import backend
from tools.benchmarks.decoded import Case, Prompts, Workload

# Heads alone are trained: there is no prefix, and the trunk is frozen.
DRAFTING = {
    "prefix.length": 0,
    "heads.purpose": "speed",
    "heads.freeze": False,
    "evaluation.limit": 1,
    "evaluation.max_new_tokens": 1,
}


def prepare(options: argparse.Namespace, folder: Path) -> Workload:
    """Trains heads if they are asked for, encodes prompts, and writes llama.cpp's files.

    Args:
        options: of the command. folder: for files that are needed as long as the command runs.

    Raises:
        UserError: no such model, data or run.
    """
    if options.train_steps:
        options.run_folder = folder / "run"
        _in_a_process(_train, options, options.run_folder)
    return _in_a_process(_prepare, options, folder)


def _in_a_process(function: Callable, options: argparse.Namespace, folder: Path) -> Any:
    wanted = {
        k: v for k, v in vars(options).items() if k != "run"
    }  # the command's function; it has Keras nowhere
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, argparse.Namespace(**wanted), folder).result()


def _train(options: argparse.Namespace, folder: Path) -> None:
    backend.select(options.backends[0])
    with backend.first_imports():
        from keras_mtp import pipeline
    from keras_mtp.recipe import load_recipe, updated

    fields = DRAFTING | {
        "model.name": options.model,
        "data.source": options.data,
        "heads.count": options.heads,
        "training.steps": options.train_steps,
        "evaluation.every": options.train_steps,
    }
    pipeline.run(updated(load_recipe("gsm8k"), fields), folder)


def _prepare(options: argparse.Namespace, folder: Path) -> Workload:
    backend.select()
    with backend.first_imports():
        import keras_hub  # noqa: F401

    from keras_mtp.models.backbone import base_info, load_backbone, locate
    from keras_mtp.models.llama import LlamaSizes, RopeScaling, weight_shapes
    from keras_mtp.recipe import load_recipe
    from keras_mtp.run_folder import RECIPE
    from keras_mtp.tasks import load_task
    from tools.benchmarks.write_gguf import write_gguf

    model = load_recipe(options.run_folder / RECIPE).model.name if options.run_folder else options.model
    architecture = base_info(model).architecture
    scaling = architecture["rope_scaling"]
    sizes = LlamaSizes(**architecture | {"rope_scaling": scaling and RopeScaling(**scaling)})
    backbone, tokenizer = load_backbone(model)
    gguf = {dtype: folder / f"{dtype}.gguf" for dtype in options.dtypes if "llama_cpp" in options.systems}
    for dtype, path in gguf.items():
        write_gguf(path, backbone, sizes, dtype)
    examples = load_task("gsm8k", options.data).examples("test")
    shapes = weight_shapes(sizes)
    looked_up = 0 if sizes.tied else math.prod(shapes["token_embd.weight"])  # a row of it; not read in full
    return Workload(
        model=model,
        path=locate(model),
        run=options.run_folder,
        new_tokens=options.new_tokens,
        weights=sum(map(math.prod, shapes.values())) - looked_up,
        vocabulary_size=sizes.vocabulary_size,
        gguf=gguf,
        prompts={
            Case(batch=batch, context=context): prompts(examples, tokenizer, batch, context)
            for batch in options.batches
            for context in options.contexts
        },
    )


def prompts(examples: Sequence, tokenizer: Any, batch: int, context: int) -> Prompts:
    """Rows of `context` token ids: solved problems, the first of them cut, and at last one to be solved.

    So a long context holds what a few-shot prompt does, and every row ends where an answer begins.
    """
    return [_row(_from(examples, row), tokenizer, context) for row in range(batch)]


def _from(examples: Sequence, start: int) -> Iterator[Any]:
    """All examples for ever, beginning with another one in every row."""
    place = start
    while True:
        yield examples[place % len(examples)]
        place += 1


def _row(examples: Iterator[Any], tokenizer: Any, context: int) -> list[int]:
    """From the end to the front, until it is long enough."""
    from keras_mtp.data.encoding import encode_example

    ids = encode_example(next(examples), tokenizer).prompt_ids
    while len(ids) < context:
        ids = encode_example(next(examples), tokenizer).ids.tolist() + ids
    return ids[-context:]
