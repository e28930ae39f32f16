"""A server of an exported model in a process of its own, and what a client asks of it."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import psutil

STARTS = 600  # seconds within which it must be ready
ANSWERS = 600.0  # within which a request must end


class Served:
    """`keras-mtp serve DIR`, from when it is made until `end`.

    Args:
        folder: what `keras-mtp export` wrote. options: further ones of the command.
    """

    def __init__(self, folder: Path, *options: str):
        command = [sys.executable, "-m", "keras_mtp", "serve", str(folder), "--port", "0", *options]
        # No pipe: a full one would stop the server.
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stderr=self.said)
        self.url = self._address()
        self.client = httpx2.AsyncClient(
            base_url=self.url, timeout=ANSWERS, limits=httpx2.Limits(max_connections=None)
        )

    def _address(self) -> str:
        end, text = time.monotonic() + STARTS, ""
        while self.process.poll() is None and time.monotonic() < end:
            self.said.seek(0)
            text = self.said.read()
            if found := re.search(r"at (http://\S+)", text):
                return found[1]
            time.sleep(0.2)
        sys.exit(f"Error: the server did not start.\n{text}")

    async def ready(self) -> None:
        """Waits until it answers."""
        end = time.monotonic() + STARTS
        while not await self._is_ready():
            if time.monotonic() > end:
                sys.exit("Error: the server is not ready.")
            await asyncio.sleep(0.2)

    async def _is_ready(self) -> bool:
        try:
            return (await self.client.get("/ready")).status_code == 200
        except httpx2.TransportError:  # busy with loading, it let a connection go
            return False

    async def complete(self, prompt: str, tokens: int) -> tuple[int, str]:
        """(status, the text that comes after a prompt)."""
        body = {"prompt": prompt, "max_tokens": tokens}
        response = await self.client.post("/v1/completions", json=body)
        text = response.json()["choices"][0]["text"] if response.status_code == 200 else ""
        return response.status_code, text

    async def stream(self, prompt: str, tokens: int) -> AsyncIterator[dict[str, Any] | None]:
        """The events of an answer, `None` for the last."""
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self.client.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield None if line == "data: [DONE]" else json.loads(line[6:])

    async def metric(self, name: str) -> float:
        """What it counts, by its whole name."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))

    @property
    def resident_bytes(self) -> int:
        """Of its process, now."""
        return psutil.Process(self.process.pid).memory_info().rss

    def tell_to_end(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> int:
        """Its exit code, once it has ended."""
        if self.process.poll() is None:
            self.tell_to_end()
        return self.process.wait(timeout=ANSWERS)
