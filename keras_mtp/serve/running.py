"""The answers of one request, as the event loop sees them: news from the thread that computes, one after another."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from keras_mtp.limits import Refused
from keras_mtp.serve.answer import Answer, News, Wish
from keras_mtp.serve.engine import Engine


class Running:
    """Has answers given; raises `Refused` where the engine has no room for them.

    Args:
        engine: gives them. wishes: what they are to be.
    """

    def __init__(self, engine: Engine, wishes: Sequence[Wish]):
        loop, self._news = asyncio.get_running_loop(), asyncio.Queue()  # type: ignore[var-annotated]

        def teller(place: int):
            return lambda news: loop.call_soon_threadsafe(self._news.put_nowait, (place, news))

        self.answers = [Answer(wish, engine.tokenizer, teller(place)) for place, wish in enumerate(wishes)]
        for answer in self.answers:
            if not answer.wish.max_new_tokens:
                answer.finish = "length"
        self._wanted = [answer for answer in self.answers if answer.finish is None]
        engine.submit(self._wanted)

    async def news(self) -> AsyncIterator[tuple[int, News]]:
        """(which answer, what it got), until all have ended."""
        going_on = len(self._wanted)
        while going_on:
            place, news = await self._news.get()
            going_on -= bool(news.finish or news.error)
            yield place, news

    async def finished(self) -> None:
        """Waits until all have ended. Raises `Refused` where one could not be given."""
        async for _, news in self.news():
            if news.error:
                raise Refused(news.error, 500, code="failed")

    def cancel(self) -> None:
        """Nobody waits any more: frees what the answers take."""
        for answer in self._wanted:
            answer.cancelled = True


NOBODY_WAITS = 499  # nginx's status for a client that has gone away; it is for logs and counters


def unheard(request: Request, error: Exception) -> Response:
    """What is answered to a client that has gone away."""
    return Response(status_code=NOBODY_WAITS)


async def unless_gone(request: Request, awaited: Awaitable[Any]) -> Any:
    """What is awaited, which is cancelled if the client goes away first. Raises `ClientDisconnect` then."""
    task, gone = asyncio.ensure_future(awaited), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
