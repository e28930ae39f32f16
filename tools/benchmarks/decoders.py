"""How every system decodes: ours, keras-hub's `generate`, transformers' `generate`, and llama.cpp.

Each is a function of (system, workload) that loads and gives a function of (prompts, mode). All are greedy and decode as
many tokens, since none may stop:

    keras_mtp      its stop id is one that no token has
    keras_hub      `stop_token_ids=None`; its loop would go on to `max_length`, and ends after as many tokens
    transformers   the model has no end token set
    llama_cpp      its tokens are chosen here, by argmax, and nobody looks for an end

The last two run with OpenMP's own settings, as one would use them: their threads spin while they wait, which is faster on
a quiet machine (llama.cpp 40 tokens/s, else 21), and many times slower on a busy one. OMP_WAIT_POLICY=PASSIVE in the
environment changes it for all.
"""

import os
import time
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.connection import Connection

import numpy as np

from keras_mtp import backend
from tools.benchmarks import machine
from tools.benchmarks.decoded import Decode, Decoded, Prompts, System, Workload, by_difference

MAX_LENGTH = 1024  # that keras-hub's buffer has at least, prompt included: what one would allow a chat
ON_KERAS = ("keras_mtp", "keras_hub")
LOOKUP_TOKENS = 3  # that transformers copies from the prompt as a draft, as in its own documentation


def serve(connection: Connection, system: System, workload: Workload) -> None:
    """What a system's process does: loads, then decodes (prompts, mode) as asked."""
    if system.name in ON_KERAS:
        backend.select(system.backend)
    decode = DECODERS[system.name](system, workload)
    connection.send("ready")
    while True:
        connection.send(decode(*connection.recv()))
        machine.give_back()  # others' turn comes


def keras_mtp(system: System, workload: Workload) -> Decode:
    """Ours, with a run's prefix and heads if there is one."""
    from tools.benchmarks.our_decoder import make_decoder

    model = _our_model(system, workload)
    decoder = cache(partial(make_decoder, model, new_tokens=workload.new_tokens))
    return lambda prompts, mode: decoder(mode=mode)(prompts)


def _our_model(system: System, workload: Workload):
    from keras_mtp import checkpoint
    from keras_mtp.models.backbone import base_info
    from keras_mtp.models.from_recipe import model_from_recipe
    from keras_mtp.models.mtp_causal_lm import MTPCausalLM
    from keras_mtp.recipe import load_recipe, updated
    from keras_mtp.run_folder import CHECKPOINT, RECIPE

    if workload.run is None:
        return MTPCausalLM.from_preset(workload.model, dtype=system.dtype)
    dtype = "float32" if system.dtype == "float32" else "mixed_bfloat16"
    recipe = updated(load_recipe(workload.run / RECIPE), {"training.dtype": dtype})
    model, _ = model_from_recipe(recipe)
    checkpoint.restore(workload.run / CHECKPOINT, model, base=base_info(recipe.model.name))
    return model


def keras_hub(system: System, workload: Workload) -> Decode:
    """keras-hub's own task and `generate`, without a preprocessor: it is given token ids."""
    import keras_hub

    from keras_mtp.models.backbone import load_backbone

    class EndsAfter(keras_hub.samplers.GreedySampler):
        """keras-hub's loop over a buffer of `max_length`, that ends after so many tokens."""

        def __init__(self, tokens: int):
            super().__init__()
            self.tokens = tokens

        def run_loop(self, cond, body, model=None, loop_vars=None, maximum_iterations=None):
            return super().run_loop(cond, body, model, loop_vars, self.tokens)

    backbone, _ = load_backbone(workload.model, dtype=system.dtype)

    def answer_of(tokens: int):
        task = keras_hub.models.Llama3CausalLM(backbone=backbone, preprocessor=None)
        task.compile(sampler=EndsAfter(tokens))

        def answer(prompts: Prompts):
            length = len(prompts[0])
            buffer = np.zeros((len(prompts), max(MAX_LENGTH, length + 1 + workload.new_tokens)), "int32")
            buffer[:, :length] = prompts
            mask = np.broadcast_to(np.arange(buffer.shape[1]) < length, buffer.shape)
            found = task.generate({"token_ids": buffer, "padding_mask": mask}, stop_token_ids=None)
            return found["token_ids"][:, length : length + tokens].tolist()

        return answer

    one, whole = answer_of(1), answer_of(1 + workload.new_tokens)
    return lambda prompts, mode: by_difference(one, whole, prompts)


def transformers(system: System, workload: Workload) -> Decode:
    """transformers' `generate`, plain and with its prompt lookup, which takes one prompt at a time."""
    import torch

    from tools.benchmarks.systems import transformers_model

    model = transformers_model(workload.path, system.dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def decode(prompts: Prompts, mode: str) -> Decoded:
        ids = torch.tensor(prompts, device=model.device)
        clock = _PassClock()
        lookup = {"prompt_lookup_num_tokens": LOOKUP_TOKENS} if mode == "prompt_lookup" else {}
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=1 + workload.new_tokens,
            streamer=clock,
            **lookup,
        )
        return clock.decoded(found[0, ids.shape[1] :].tolist())

    return decode


class _PassClock:
    """A streamer, which transformers hands the prompts, and then the new tokens of every pass."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.tokens: list[int] = []

    def put(self, value) -> None:
        self.times.append(time.perf_counter())
        self.tokens.append(value.numel())

    def end(self) -> None:
        """Nothing is left to do."""

    def decoded(self, first_row: list[int]) -> Decoded:
        begun, first, *_ = self.times
        return Decoded(
            tokens=sum(self.tokens[2:]),
            passes=len(self.tokens) - 2,
            seconds=self.times[-1] - first,
            prefill_seconds=first - begun,
            first_row=first_row,
        )


def llama_cpp(system: System, workload: Workload) -> Decode:
    """llama.cpp on the same weights in a file of the same dtype, through its C functions, which batch."""
    from tools.benchmarks.llama_cpp_decoder import LlamaCpp

    threads = os.cpu_count() or 1
    return LlamaCpp(str(workload.gguf[system.dtype]), system.dtype, workload.new_tokens, threads).decode


DECODERS: dict[str, Callable[[System, Workload], Decode]] = {
    function.__name__: function for function in (keras_mtp, keras_hub, transformers, llama_cpp)
}
