"""Ours as the benchmark sees it: the one place that knows what `keras_mtp.generation` offers."""

from collections.abc import Callable

from tools.benchmarks.decoded import Decoded, Prompts, by_difference

MODES = ("plain",)  # what `make_decoder` can make; a mode asked for that is not here is left out and said


def make_decoder(model, mode: str, new_tokens: int) -> Callable[[Prompts], Decoded]:
    """A function of prompts that decodes greedily, by a loop that is compiled at its first call for a shape.

    Args:
        model: an `MTPCausalLM`. mode: one of `MODES`. new_tokens: per row, after the one that reading gives.
    """
    from keras_mtp.generation.generator import Generator

    assert mode == "plain", mode
    nothing_stops = [model.backbone.vocabulary_size]  # no token has this id
    one, whole = (
        Generator(model, stop_ids=nothing_stops, max_new_tokens=count) for count in (1, 1 + new_tokens)
    )
    return lambda prompts: by_difference(one, whole, prompts)
