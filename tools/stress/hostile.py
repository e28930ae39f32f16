"""Requests that nobody should send: what is asked for is nonsense, the bytes are, or the client goes away."""

import asyncio
import json
import random
from collections import Counter
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tools.stress.served import Served

AT_A_TIME = 16
PATHS = ("/v1/completions", "/v1/chat/completions")
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.5,
        1e308,
        10**30,
        -(10**30),
        "",
        "x",
        "\x00",
        "\ud800",
        "9" * 5000,
    ),
    *(
        [],
        {},
        [[]],
        [{}],
        {"x": 1},
        [None],
        [-1],
        [10**9],
        [10**30],
        [0.5],
        ["a", 1],
        [1, "a"],
        [[1], [2, 3]],
    ),
    *(
        "a" * 100_000,
        ["a"] * 200,
        [5] * 50_000,
        [[5]] * 100,
        {"role": "user"},
        [{"role": "user", "content": "a"}],
    ),
    *([{"role": 5, "content": "a"}], [{"role": "user", "content": [{"type": "image_url"}]}], [[[[[[]]]]]]),
)
FIELDS = (
    *(
        "prompt",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
    ),
    *(
        "stream_options",
        "echo",
        "logprobs",
        "top_logprobs",
        "model",
        "n",
        "best_of",
        "logit_bias",
        "suffix",
        "tools",
    ),
)
SIGNATURES = ("serving_default", "heads", "generate", "score", "prefill", "step", "nonsense")
INPUTS = ("token_ids", "lengths", "max_new_tokens", "stop_ids", "targets", "x")


async def attack(served: Served, count: int, seed: int) -> Counter[str]:
    """Sends so many, some at a time; counts what came back, by status."""
    rng, room, counts = random.Random(seed), asyncio.Semaphore(AT_A_TIME), Counter[str]()

    async def one(kind: Any, own: random.Random) -> None:
        async with room:
            try:
                counts[await kind(served, own)] += 1
            except httpx2.TransportError:  # a body that is refused unread ends its connection
                counts["closed"] += 1

    kinds = [rng.choices(KINDS, WEIGHTS)[0] for _ in range(count)]
    await asyncio.gather(*(one(kind, random.Random(rng.random())) for kind in kinds))
    return counts


async def _nonsense(served: Served, rng: random.Random) -> str:
    """A good request with one to three fields of it replaced."""
    body: dict[str, Any] = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
    body |= {field: rng.choice(VALUES) for field in rng.sample(FIELDS, rng.randint(1, 3))}
    return await _post(served, rng.choice(PATHS), json.dumps(body).encode())


async def _signature(served: Served, rng: random.Random) -> str:
    """In TensorFlow Serving's shape."""
    inputs = {name: rng.choice(VALUES) for name in rng.sample(INPUTS, rng.randint(0, 4))}
    name = (await served.client.get("/v1/models")).json()["data"][0]["id"]
    body = {"signature_name": rng.choice(SIGNATURES), rng.choice(("inputs", "instances")): inputs}
    return await _post(served, f"/v1/models/{name}:predict", json.dumps(body).encode())


async def _bytes(served: Served, rng: random.Random) -> str:
    """No JSON: cut off, damaged, deep, long, or noise."""
    good = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
    body = rng.choice(
        (
            good[: rng.randrange(len(good))],
            rng.randbytes(rng.randrange(1, 2000)),
            b"[" * rng.randrange(1, 100_000),
            good.replace(b"2", b"9" * rng.randrange(1, 10_000)),
            good + b"\xff",
            b"\xef\xbb\xbf" + good,
            b'{"prompt": NaN}',
            b" " * (2 << 20),
        )
    )
    return await _post(served, rng.choice(PATHS), body)


async def _elsewhere(served: Served, rng: random.Random) -> str:
    """Another path, another method."""
    path = rng.choice(("/", "/v1", "/v1/models/../../etc/passwd", "/%00", "/v1/models/" + "x" * 5000, *PATHS))
    method = rng.choice(("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "NONSENSE"))
    return str((await served.client.request(method, path)).status_code)


async def _gone(served: Served, rng: random.Random) -> str:
    """Asks for a stream and goes away after a part of it."""
    events, left = served.stream("a b c", 24), rng.randrange(4)
    try:
        async for _ in events:
            if not left:
                break
            left -= 1
    finally:
        await events.aclose()  # type: ignore[attr-defined]
    return "gone"


async def _raw(served: Served, rng: random.Random) -> str:
    """Bytes that are no HTTP, or a request that promises more than it sends."""
    address = urlsplit(served.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(
        rng.choice(
            (
                rng.randbytes(200),
                head,
                head + b"Content-Length: 1000\r\n\r\n{",
                head + b"Content-Length: -1\r\n\r\n",
                head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
                head + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
            )
        )
    )
    try:
        await writer.drain()
        writer.write_eof()
        said = await asyncio.wait_for(reader.read(64), 60)
    except OSError:  # closed already
        said = b""
    writer.close()
    return said.split()[1].decode() if said.startswith(b"HTTP/") else "closed"


async def _post(served: Served, path: str, body: bytes) -> str:
    response = await served.client.post(path, content=body, headers={"Content-Type": "application/json"})
    return str(response.status_code)


KINDS = (_nonsense, _signature, _bytes, _elsewhere, _gone, _raw)
WEIGHTS = (8, 4, 3, 1, 1, 1)
