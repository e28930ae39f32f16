"""A model as lm-eval wants one: three methods that score or continue texts.

How context and continuation become tokens decides a score as much as the model does, so it is lm-eval's own code where there
is any (`TemplateLM._encode_pair`, the rolling windows) and follows its Hugging Face model, `HFLM`, elsewhere: special tokens
in a text are read as such, bos is put in front if the model expects it, and what is too long is cut on the left.

Reference: EleutherAI/lm-evaluation-harness, `lm_eval/models/huggingface.py`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import keras
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from keras_mtp.data.encoding import encode_raw
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.data.turns import PLAIN_TEMPLATE
from keras_mtp.errors import UserError
from keras_mtp.generation.generator import Generator
from keras_mtp.generation.sampling import Sampling
from keras_mtp.generation.stream import TextStream
from keras_mtp.generation.text import streamed
from keras_mtp.harness.likelihood import Scorer

SETTINGS = ("do_sample", "max_gen_toks", "temperature", "top_k", "top_p", "until")  # of a generation
MARK = "\N{END OF TRANSMISSION BLOCK}"  # stands where a turn is to be gone on with


class HarnessLM(TemplateLM):
    """An `MTPCausalLM` behind lm-eval's interface.

    Args:
        model: the model, with its prefix and its tokenizer. name: what it is called.
        max_length: int. Longest text in tokens, prefix not counted.
        batch_size: int. Prompts answered together.
        progress: whether to show a bar on standard error.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        name: str,
        max_length: int,
        batch_size: int,
        progress: bool = True,
    ):
        super().__init__()
        tokenizer: Tokenizer = model.tokenizer
        if tokenizer.chat_template is None:  # then this is what the model is trained with
            tokenizer = tokenizer.with_template(PLAIN_TEMPLATE)
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.max_length, self.batch_size, self.progress = max_length, batch_size, progress
        self.scorer = Scorer(model)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is False:
            return self.tokenizer.encode(string, special=True)
        return encode_raw(string, self.tokenizer)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt=True) -> str:
        """The conversation as text; without the prompt it ends inside the last turn, which is to be gone on with."""
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except UserError:  # some templates know no system turn
            without = [turn for turn in chat_history if turn["role"] != "system"]
            if len(without) == len(chat_history):
                raise
            return self._rendered(without, add_generation_prompt)

    def _rendered(self, turns: list[dict[str, str]], add_generation_prompt: bool) -> str:
        if add_generation_prompt:
            return self.tokenizer.render_chat(turns, add_generation_prompt=True)
        last = turns[-1] | {"content": turns[-1]["content"] + MARK + " "}
        text = self.tokenizer.render_chat([*turns[:-1], last], add_generation_prompt=False)
        turn, _, rest = text.rpartition(MARK)
        return (
            turn if rest.startswith(" ") else turn.rstrip()
        )  # as a template that strips turns would have it

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_: Any) -> list[tuple[float, bool]]:
        fitting = []
        for texts, context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                _refuse_continuation(texts, continuation, self.max_length)
            # One token more than fits, since the last is never read.
            room = self.max_length + 1 - len(continuation)
            fitting.append((context[-room:], continuation))
        found = self.scorer(fitting, lambda passes: self._watched(passes, "log-likelihood"))
        return [(score.log_likelihood, score.is_greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence, disable_tqdm: bool = False) -> list[float]:
        windows, owners = [], []
        for owner, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            sums[owner] += log_likelihood
        return sums

    def generate_until(self, requests: Sequence, disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        answers = [""] * len(requests)
        for wish, places in groups.items():
            answer = self._answering(json.loads(wish), rows=min(self.batch_size, len(places)))
            ids = {place: self._prompt(requests[place].args[0], json.loads(wish)) for place in places}
            places.sort(key=lambda place: len(ids[place]))
            batches = [places[at : at + self.batch_size] for at in range(0, len(places), self.batch_size)]
            for number, batch in enumerate(self._watched(batches, "generation")):
                said = answer([ids[place] for place in batch], number)
                for place, text in zip(batch, said, strict=True):
                    answers[place] = text
        return answers

    def _prompt(self, text: str, wish: dict[str, Any]) -> list[int]:
        """The prompt's tokens, as many as leave room for the answer."""
        longest = self.max_length - normalize_gen_kwargs(wish)["max_gen_toks"]
        if longest < 1:
            raise UserError(
                f"`--max-length` must leave room for a prompt. Received: {self.max_length} tokens, all of which the task "
                "wants for its answers. Raise it, or choose another task."
            )
        return (self.tok_encode(text) or [self.prefix_token_id])[-longest:]

    def _answering(self, wish: dict[str, Any], rows: int) -> Callable[[list[list[int]], int], list[str]]:
        """A function of (prompts, number of the batch)."""
        settings = normalize_gen_kwargs(wish)
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise UserError(
                f"A task's generation_kwargs must be among {', '.join(SETTINGS)}. Received: {', '.join(unknown)}. Choose "
                "another task, or change this one's YAML."
            )
        sampling = _sampling(settings)
        stops = [stop for stop in settings["until"] if stop]
        # Text of a special token is never seen in an answer, so such a stop is a token.
        named = [ids[0] for stop in stops if len(ids := self.tokenizer.encode(stop, special=True)) == 1]
        generator = Generator(
            self.model,
            stop_ids={*self.tokenizer.eos_ids, *(id for id in named if not self.tokenizer.decode([id]))},
            max_new_tokens=settings["max_gen_toks"],
            rows=rows,
            sampling=sampling,
        )

        def answer(prompts: list[list[int]], number: int) -> list[str]:
            # Row 0 of every batch would draw the same numbers.
            generator.sampling = replace(sampling, seed=number)
            streams = [TextStream(self.tokenizer.decode, stops) for _ in prompts]
            streamed(generator, prompts, streams)
            return [stream.text for stream in streams]

        return answer

    def _watched(self, passes: Sequence, what: str):
        return tqdm(passes, desc=what, disable=not self.progress)


def _sampling(settings: dict[str, Any]) -> Sampling:
    if not settings["do_sample"]:
        return Sampling()
    return Sampling(
        temperature=settings.get("temperature", 1.0),
        top_k=settings.get("top_k", 0),
        top_p=settings.get("top_p", 1.0),
    )


def _refuse_continuation(
    texts: tuple[str, str] | None, continuation: Sequence[int], longest: int
) -> NoReturn:
    shown = "" if texts is None else f", {texts[1]!r:.60} after {texts[0][-20:]!r}"
    raise UserError(
        f"A task's continuation must have 1 to {longest} tokens of its own. Received: {len(continuation)}{shown}. Raise "
        "`--max-length`, or change the task."
    )
