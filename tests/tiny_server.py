"""A tiny model, exported, and a real server of it on a free port of this machine."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx2
import uvicorn

from keras_mtp import LinearHead, MTPCausalLM
from keras_mtp.export import saved_model
from keras_mtp.models.backbone import base_info
from keras_mtp.serve import make_config, make_engine
from tests.tiny_gguf import WORDS, write_tiny_gguf

QUESTION = "how many apples are left in each box?"


def export_tiny(folder: Path, vocabulary: Sequence[str] = WORDS) -> tuple[MTPCausalLM, Path]:
    """A model and the SavedModel of it, both under `folder`.

    Its heads draft what was just said once more, which is right wherever it repeats itself.
    """
    file = str(folder / "tiny.gguf")
    write_tiny_gguf(folder / "tiny.gguf", num_layers=2, vocabulary=vocabulary)
    model = MTPCausalLM.from_preset(file, prefix_length=3, heads=[LinearHead(), LinearHead()])
    saved_model.export(model, folder / "tuned", base=base_info(file), context_length=256)
    return model, folder / "tuned"


class Server:
    """Serves an exported model as "tuned", in a thread, from when it is made until `stop`.

    Args:
        folder: of the model. speculate: whether its heads draft.
    """

    def __init__(self, folder: Path, *, speculate: bool = True):
        self.engine = make_engine(folder, max_body_bytes=20_000, max_new_tokens=200, speculate=speculate)
        self._server = uvicorn.Server(make_config("tuned", self.engine, port=0))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        until(lambda: self._server.started and self._server.servers)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        until(lambda: get(f"{self.url}/ready").status_code == 200)

    def stop(self, *, at_once: bool = False) -> None:
        """Lets answers end; `at_once` cuts them off."""
        self._server.should_exit, self._server.force_exit = True, at_once
        self._thread.join()
        self.engine.stop()  # which uvicorn does not do when it ends at once

    def metric(self, line: str) -> float:
        text = get(f"{self.url}/metrics").text
        return next((float(x.rpartition(" ")[2]) for x in text.splitlines() if x.startswith(f"{line} ")), 0.0)

    def post(self, path: str, body: dict) -> dict:
        return httpx2.post(self.url + path, json=body, timeout=120).json()


def get(url: str) -> httpx2.Response:
    return httpx2.get(url, timeout=120)  # a busy machine is no error


def until(holds: Callable[[], object], seconds: float = 180.0) -> None:
    """Waits until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
