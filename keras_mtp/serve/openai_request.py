"""What a request in the shape of OpenAI's API asks for. Reference: their API reference, "Completions" and "Chat"."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keras_mtp.data.encoding import encode_raw
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.errors import UserError
from keras_mtp.export.served_model import LIKELIEST
from keras_mtp.limits import Limits, Refused
from keras_mtp.serve.answer import Wish
from keras_mtp.serve.conversation import read_conversation
from keras_mtp.serve.reading import flag, integer, number, token_ids

USUAL_NEW_TOKENS = 16  # OpenAI's own, of completions
MOST_STOPS, HOTTEST, MOST_LOGPROBS = 4, 2.0, 5
# Fields that change an answer and that this server lacks, with what leaves it as it is.
UNCHANGED: dict[str, tuple] = {
    "n": (1,),
    "best_of": (1,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request that can be answered.

    Args:
        wishes: one for each prompt; `max_new_tokens` may be 0.
        chat: whether it is one of chat. stream: whether the answer is wanted as it comes.
        echo: whether the prompt belongs to the answer. logprobs: how many likeliest tokens of each place are wanted; None
            for no logarithms at all.
        usage: whether a stream ends with what was used. drafts: whether it says which text a head had drafted, and
            how many tokens.
    """

    wishes: Sequence[Wish]
    chat: bool
    stream: bool
    echo: bool
    logprobs: int | None
    usage: bool
    drafts: bool


class Reader:
    """Reads requests.

    Args:
        name: of the model. tokenizer: of it. vocabulary_size: of it. limits: of the server.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, vocabulary_size: int, limits: Limits):
        self.name, self.tokenizer, self.vocabulary_size, self.limits = (
            name,
            tokenizer,
            vocabulary_size,
            limits,
        )

    def completion(self, body: dict[str, Any]) -> Asked:
        """Of /v1/completions. Raises `Refused`."""
        self._check(body)
        prompts = self._prompts(body.get("prompt"))
        echo = flag(body, "echo")
        logprobs = None if body.get("logprobs") is None else integer(body, "logprobs", None, 0, MOST_LOGPROBS)
        return self._asked(
            body, prompts, "max_tokens", USUAL_NEW_TOKENS, chat=False, echo=echo, logprobs=logprobs
        )

    def chat(self, body: dict[str, Any]) -> Asked:
        """Of /v1/chat/completions. Raises `Refused`."""
        self._check(body)
        prompt = self._encoded(lambda: read_conversation(body.get("messages"), self.tokenizer), "messages")
        most = integer(body, "top_logprobs", 0, 0, LIKELIEST)
        logprobs = most if flag(body, "logprobs") else None
        longest = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        return self._asked(body, [prompt], longest, None, chat=True, echo=False, logprobs=logprobs)

    def _check(self, body: dict[str, Any]) -> None:
        model = body.get("model")
        if model is not None and not isinstance(model, str):
            raise Refused(f"`model` must be a text. Received: {model!r:.80}.", param="model")
        if model not in (None, "", self.name):
            raise Refused(
                f"The model {model!r:.80} does not exist here; {self.name!r} does.",
                404,
                param="model",
                code="model_not_found",
            )
        for name, harmless in UNCHANGED.items():
            if body.get(name) is not None and body[name] not in harmless:
                raise Refused(
                    f"`{name}` is not supported. Received: {body[name]!r:.80}. Leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )

    def _asked(
        self,
        body: dict[str, Any],
        prompts: Sequence[list[int]],
        longest: str,
        usual: int | None,
        **options: Any,
    ) -> Asked:
        stream = flag(body, "stream")
        wanted = body.get("stream_options") or {}
        if not isinstance(wanted, dict):
            raise Refused(
                f"`stream_options` must be an object. Received: {wanted!r:.80}.", param="stream_options"
            )
        if stream and (options["logprobs"] is not None or options["echo"]):
            raise Refused(
                "`logprobs` and `echo` do not go with `stream`. Leave one of them out.", param="stream"
            )
        seed = integer(body, "seed", secrets.randbelow(2**31), -(2**63), 2**63 - 1) % 2**63
        temperature = number(body, "temperature", 0.0, 0.0, HOTTEST)
        top_p = number(body, "top_p", 1.0, 0.0, 1.0)
        wishes = [
            Wish(
                prompt=prompt,
                max_new_tokens=self._longest(body, longest, usual, len(prompt)),
                stop=self._stops(body.get("stop")),
                temperature=temperature
                if top_p
                else 0.0,  # none but the likeliest has a probability of nothing
                top_p=top_p or 1.0,
                continues=not options["chat"],
                seed=seed,
                row=row,
            )
            for row, prompt in enumerate(prompts)
        ]
        return Asked(
            wishes=wishes,
            stream=stream,
            usage=flag(wanted, "include_usage"),
            drafts=flag(wanted, "include_drafts"),
            **options,
        )

    def _longest(self, body: dict[str, Any], name: str, usual: int | None, prompt: int) -> int:
        """How long an answer may become."""
        left = self.limits.max_length - prompt
        if left < 0 or (left < 1 and usual is None):
            raise Refused(
                f"The prompt must have at most {self.limits.max_length} tokens, its answer included. Received: {prompt}.",
                code="context_length_exceeded",
            )
        highest = self.limits.max_new_tokens
        asked = integer(body, name, min(usual or highest, highest, left), 0 if usual else 1, highest)
        if asked > left:
            raise Refused(
                f"Prompt and answer together must have at most {self.limits.max_length} tokens. Received: {prompt} and "
                f"{name}={asked}.",
                param=name,
                code="context_length_exceeded",
            )
        return asked

    def _prompts(self, prompt: Any) -> list[list[int]]:
        """Texts or token ids, one or several."""
        several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
        found = prompt if several else [prompt]
        if not 0 < len(found) <= self.limits.max_queue:
            raise Refused(
                f"`prompt` must hold 1 to {self.limits.max_queue} prompts. Received: {len(found)}.",
                param="prompt",
            )
        return [self._prompt(one) for one in found]

    def _prompt(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self._encoded(lambda: encode_raw(prompt, self.tokenizer), "prompt")
        else:
            ids = token_ids(prompt, self.vocabulary_size, "prompt")
        if not ids:
            raise Refused(f"`prompt` must not be empty. Received: {prompt!r:.80}.", param="prompt")
        return ids

    def _encoded(self, encode: Callable[[], list[int]], param: str) -> list[int]:
        try:
            return encode()
        except UserError as error:  # half of a surrogate pair; a conversation that the chat template refuses
            raise Refused(" ".join(str(error).split()), param=param) from error

    def _stops(self, stop: Any) -> tuple[str, ...]:
        stops = [stop] if isinstance(stop, str) else stop or []
        if (
            not isinstance(stops, list)
            or len(stops) > MOST_STOPS
            or not all(isinstance(x, str) for x in stops)
        ):
            raise Refused(
                f"`stop` must be a text, or up to {MOST_STOPS} of them. Received: {stop!r:.80}.", param="stop"
            )
        return tuple(stops)
