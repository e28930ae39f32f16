"""The server as an ASGI application: which path leads where, and what all of them share."""

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keras_mtp.serve.engine import Engine
from keras_mtp.serve.openai_api import OpenAIAPI
from keras_mtp.serve.running import unheard
from keras_mtp.serve.tf_serving_api import TFServingAPI

PAGE = Path(__file__).parent / "page.html"
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(name: str, engine: Engine) -> Starlette:
    """The application.

    Args:
        name: what clients call the model. engine: what answers; it is started and stopped with the application.
    """
    openai, tf_serving = OpenAIAPI(name, engine), TFServingAPI(name, engine)

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": _POLICY})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(request: Request) -> Response:
        if engine.not_ready:
            return JSONResponse({"status": "not ready", "reason": engine.not_ready}, 503)
        return JSONResponse({"status": "ready"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(engine.metrics.page(), media_type="text/plain; version=0.0.4")

    model, version = "/v1/models/{name}", "/versions/{version}"
    routes = [
        Route("/", page),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/v1/models", openai.models),
        Route("/v1/completions", openai.completions, methods=["POST"]),
        Route("/v1/chat/completions", openai.chat, methods=["POST"]),
    ]
    for path in (model, model + version):
        routes += [
            Route(f"{path}:predict", tf_serving.predict, methods=["POST"]),
            Route(f"{path}/metadata", tf_serving.metadata),
            Route(path, tf_serving.status),
        ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(_Counted, engine=engine)],
        exception_handlers={
            HTTPException: _no_such_path,  # type: ignore[dict-item]
            ClientDisconnect: unheard,
            Exception: _failed,
        },
    )


def _no_such_path(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": f"{error.detail}: {request.method} {request.url.path}"}, error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "The server failed to answer this request; its log says why."}, 500)


class _Counted:
    """Counts requests, by their path in the table above and their status, and how long they took to the last byte."""

    def __init__(self, app: ASGIApp, engine: Engine):
        self.app, self.metrics = app, engine.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), "gone"

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:  # which is answered further out
            status = "500" if status == "gone" else status
            raise
        finally:
            route = getattr(scope.get("endpoint"), "__name__", "other")
            self.metrics.requests.labels(route, status).inc()
            self.metrics.seconds.labels(route).observe(time.monotonic() - began)
