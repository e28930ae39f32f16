"""OpenAI's HTTP API, as far as it is about text: /v1/models, /v1/completions, /v1/chat/completions.

Reference: OpenAI's API reference; what `lm_eval`'s model `local-completions` wants (`echo` with `logprobs`).
"""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from keras_mtp.limits import Refused
from keras_mtp.serve import logprobs
from keras_mtp.serve.answer import Answer, News
from keras_mtp.serve.engine import Engine
from keras_mtp.serve.openai_request import Asked, Reader
from keras_mtp.serve.reading import read_json
from keras_mtp.serve.running import Running, unless_gone

STARTED = int(time.time())


def model_card(name: str) -> dict[str, Any]:
    """A model as /v1/models lists it."""
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "keras_mtp"}


def error(refused: Refused) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = {404: "not_found_error", 429: "rate_limit_error"}.get(
        refused.status, "invalid_request_error" if refused.status < 500 else "server_error"
    )
    content = {"message": refused.message, "type": kind, "param": refused.param, "code": refused.code}
    return JSONResponse({"error": content}, refused.status, headers=refused.headers)


class OpenAIAPI:
    """The endpoints.

    Args:
        name: of the model. engine: what answers.
    """

    def __init__(self, name: str, engine: Engine):
        self.name, self.engine = name, engine
        self._reader = Reader(name, engine.tokenizer, engine.about.vocabulary_size, engine.limits)
        # One thread: a long text does not keep the others waiting, and a chat template has one budget at a time.
        self._reading = ThreadPoolExecutor(1, "read")

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [model_card(self.name)]})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answered(request, self._reader.completion)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answered(request, self._reader.chat)

    async def _answered(self, request: Request, read: Callable[[dict[str, Any]], Asked]) -> Response:
        try:
            body = await read_json(request, self.engine.limits.max_body_bytes)
            asked = await asyncio.get_running_loop().run_in_executor(self._reading, read, body)
            running = Running(self.engine, asked.wishes)
            if asked.stream:
                return StreamingResponse(self._events(asked, running), media_type="text/event-stream")
            try:
                return JSONResponse(await unless_gone(request, self._whole(asked, running)))
            finally:
                running.cancel()
        except Refused as refused:
            return error(refused)

    async def _whole(self, asked: Asked, running: Running) -> dict[str, Any]:
        await running.finished()
        choices = [await self._choice(place, asked, answer) for place, answer in enumerate(running.answers)]
        kind = "chat.completion" if asked.chat else "text_completion"
        return self._head(asked, kind) | {"choices": choices, "usage": _usage(running.answers)}

    async def _choice(self, place: int, asked: Asked, answer: Answer) -> dict[str, Any]:
        tokenizer, prompt = self.engine.tokenizer, list(answer.wish.prompt)
        found = None
        if asked.logprobs is not None:
            most = asked.logprobs
            ids = prompt + answer.stream.ids_of_text()
            if answer.end_token is not None and not asked.chat:
                ids.append(answer.end_token)  # lm-eval counts on the one new token that it asked for
            places = await asyncio.wrap_future(
                self.engine.call(lambda model: logprobs.score(model, ids, most))
            )
            places = places if asked.echo else places[len(prompt) :]
            found = (
                logprobs.of_chat(places, tokenizer)
                if asked.chat
                else logprobs.of_completion(places, tokenizer, most)
            )
        said: dict[str, Any] = {"message": {"role": "assistant", "content": answer.stream.text}}
        if not asked.chat:
            said = {
                "text": (tokenizer.decode(prompt, skip_special=False) if asked.echo else "")
                + answer.stream.text
            }
        return {"index": place, "finish_reason": answer.finish, "logprobs": found} | said

    async def _events(self, asked: Asked, running: Running) -> AsyncIterator[str]:
        """A stream of server-sent events."""
        head = self._head(asked, "chat.completion.chunk" if asked.chat else "text_completion")
        try:
            if asked.chat:
                for place in range(len(running.answers)):
                    yield _event(head | {"choices": [_delta(place, {"role": "assistant", "content": ""})]})
            async for place, news in running.news():
                if news.error:
                    yield _event(
                        {
                            "error": {
                                "message": news.error,
                                "type": "server_error",
                                "param": None,
                                "code": "failed",
                            }
                        }
                    )
                    return
                yield _event(head | {"choices": [_chunk(place, news, asked)]})
            if asked.usage:
                used = _usage(running.answers) | (_drafts(running.answers) if asked.drafts else {})
                yield _event(head | {"choices": [], "usage": used})
            yield "data: [DONE]\n\n"
        finally:
            running.cancel()

    def _head(self, asked: Asked, kind: str) -> dict[str, Any]:
        number = f"{'chatcmpl' if asked.chat else 'cmpl'}-{uuid.uuid4().hex}"
        return {"id": number, "object": kind, "created": int(time.time()), "model": self.name}


def _chunk(place: int, news: News, asked: Asked) -> dict[str, Any]:
    if asked.chat:
        choice = _delta(place, {"content": news.text} if news.text else {}, news.finish)
    else:
        choice = {"index": place, "text": news.text, "logprobs": None, "finish_reason": news.finish}
    if asked.drafts:
        choice["pieces"] = [{"text": text, "drafted": drafted} for text, drafted in news.pieces]
    return choice


def _delta(place: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": place, "delta": delta, "logprobs": None, "finish_reason": finish}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _usage(answers: list[Answer]) -> dict[str, int]:
    prompt, said = (
        sum(values) for values in zip(*((len(a.wish.prompt), a.said) for a in answers), strict=True)
    )
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def _drafts(answers: list[Answer]) -> dict[str, dict[str, int]]:
    """How many of the tokens had been drafted, under the name that OpenAI has for predicted tokens."""
    return {
        "completion_tokens_details": {"accepted_prediction_tokens": sum(answer.drafted for answer in answers)}
    }
