"""Ours as the benchmark sees it: the one place that knows what `keras_mtp.generation` offers."""

import math
from collections.abc import Callable

from tools.benchmarks.decode_results import WIDTHS
from tools.benchmarks.decoded import Decoded, Prompts


def make_decoder(model, mode: str, new_tokens: int) -> Callable[[Prompts], Decoded]:
    """A function of prompts that decodes greedily, by a loop that is compiled at its first call for a shape.

    Args:
        model: an `MTPCausalLM`. mode: "plain" or "speculative". new_tokens: per row, after the one that reading gives.
    """
    from keras_mtp.generation.generator import Generator

    nothing_stops = [model.backbone.vocabulary_size]  # no token has this id
    speculate = mode == "speculative"
    generator = Generator(model, stop_ids=nothing_stops, max_new_tokens=1 + new_tokens, speculate=speculate)

    def decode(prompts: Prompts) -> Decoded:
        found = generator.answer(prompts)
        cost = found.statistics
        return Decoded(
            tokens=cost.tokens - len(prompts),
            passes=math.ceil(cost.passes / len(prompts)),
            seconds=cost.seconds,
            prefill_seconds=cost.prompt_seconds,
            first_row=found.tokens[0],
            extra_bytes=_head_bytes(model) if speculate else 0,
        )

    return decode


def _head_bytes(model) -> int:
    """What a pass reads for drafting: the heads, and the unembedding for every group of drafts that is named at once."""
    weights = [variable for head in model.heads for variable in head.variables]
    embedding = model.backbone.token_embedding
    groups = 1 + sum(head.reads_tokens for head in model.heads[1:])
    tokens = len(model.draft_vocabulary) or embedding.input_dim
    values = sum(math.prod(v.shape) for v in weights) + groups * tokens * embedding.output_dim
    return values * WIDTHS[embedding.compute_dtype]
