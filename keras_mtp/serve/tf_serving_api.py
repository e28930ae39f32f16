"""TensorFlow Serving's REST API for one model of one version: its state, its signatures, and `:predict`.

Reference: tensorflow/serving, `docs/api_rest.md`. `prefill` and `step` are for programs that hold the model themselves:
their state would be megabytes of JSON.
"""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keras_mtp import backend
from keras_mtp.export.served_model import SAVED_MODEL, ServedModel
from keras_mtp.limits import Refused
from keras_mtp.serve.engine import Engine
from keras_mtp.serve.openai_api import model_card
from keras_mtp.serve.reading import read_json
from keras_mtp.serve.running import unless_gone
from keras_mtp.serve.tensors import columns, one_or_named, rows, tensor

VERSION = "1"
USUAL = "serving_default"
ASKED = (USUAL, "heads", "generate", "score")


def error(refused: Refused) -> JSONResponse:
    """An error in TensorFlow Serving's shape."""
    return JSONResponse({"error": refused.message}, refused.status, headers=refused.headers)


class TFServingAPI:
    """The endpoints.

    Args:
        name: of the model. engine: what answers.
    """

    def __init__(self, name: str, engine: Engine):
        self.name, self.engine = name, engine

    async def status(self, request: Request) -> Response:
        """GET /v1/models/NAME; what OpenAI's API says of a model at this place stands beside it."""
        try:
            self._require_model(request)
        except Refused as refused:
            return error(refused)
        state = {
            "version": VERSION,
            "state": "LOADING" if self.engine.not_ready else "AVAILABLE",
            "status": {"error_code": "OK", "error_message": self.engine.not_ready or ""},
        }
        return JSONResponse({"model_version_status": [state]} | model_card(self.name))

    async def metadata(self, request: Request) -> Response:
        """GET /v1/models/NAME/metadata."""
        try:
            self._require_model(request)
        except Refused as refused:
            return error(refused)
        loop = asyncio.get_running_loop()
        signatures = await loop.run_in_executor(None, _signatures, self.engine.folder / SAVED_MODEL)
        spec = {"name": self.name, "signature_name": "", "version": VERSION}
        return JSONResponse(
            {"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}}
        )

    async def predict(self, request: Request) -> Response:
        """POST /v1/models/NAME:predict."""
        try:
            self._require_model(request)
            body = await read_json(request, self.engine.limits.max_body_bytes)
            asked = self.engine.call(lambda model: self._predicted(model, body))
            try:
                content = await unless_gone(request, asyncio.wrap_future(asked))
            finally:
                asked.cancel()
            return Response(content, media_type="application/json")
        except Refused as refused:
            return error(refused)

    def _require_model(self, request: Request) -> None:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self.name or version != VERSION:
            wanted = name if version == VERSION else f"{name} of version {version}"
            raise Refused(
                f"Servable not found for request: {wanted:.80}. There is {self.name}, version {VERSION}.", 404
            )

    def _predicted(self, model: ServedModel, body: dict[str, Any]) -> str:
        """The answer, as JSON."""
        name = body.get("signature_name") or USUAL
        if name not in ASKED:
            raise Refused(
                f'Serving signature name: "{name!s:.80}" not found in signature def; there are {", ".join(ASKED)}.'
            )
        if ("inputs" in body) == ("instances" in body):
            raise Refused("The body must hold either 'inputs' or 'instances'.")
        specs = model.inputs(name)
        values = columns(body["inputs"], specs) if "inputs" in body else rows(body["instances"], specs)
        tensors = {key: tensor(key, values[key], specs[key]) for key in specs}
        self._require_bounds(name, tensors)
        tf = backend.tensorflow()
        try:
            said = model.signatures[name](**{key: tf.constant(value) for key, value in tensors.items()})
        except tf.errors.InvalidArgumentError as failed:
            raise Refused(_reason(failed)) from failed
        except tf.errors.ResourceExhaustedError as failed:
            raise Refused("There is not enough memory for these inputs. Send less at once.", 503) from failed
        said = {key: value.numpy() for key, value in said.items()}
        if "inputs" in body:
            return json.dumps({"outputs": one_or_named({key: value.tolist() for key, value in said.items()})})
        count = len(tensors["token_ids"])
        if uneven := next(
            (key for key, value in said.items() if value.ndim == 0 or len(value) != count), None
        ):
            raise Refused(
                f"Tensor name: {uneven} has inconsistent batch size: ask `{name}` with 'inputs' in place of 'instances'."
            )
        found = [
            one_or_named({key: value[row].tolist() for key, value in said.items()}) for row in range(count)
        ]
        return json.dumps({"predictions": found})

    def _require_bounds(self, name: str, tensors: dict[str, np.ndarray]) -> None:
        """What a graph cannot know: how much this server has time and memory for."""
        limits, ids = self.engine.limits, tensors["token_ids"]
        longest = int(tensors.get("max_new_tokens", 0))
        if not 0 < ids.shape[0] <= limits.max_batch:
            raise Refused(f"`token_ids` must have 1 to {limits.max_batch} rows. Received: {ids.shape[0]}.")
        if not 0 <= longest <= limits.max_new_tokens:
            raise Refused(f"`max_new_tokens` must be 0 to {limits.max_new_tokens}. Received: {longest}.")
        if not 0 < ids.shape[1] <= limits.max_length - longest:
            raise Refused(
                f"`token_ids` must have 1 to {limits.max_length} columns, new tokens included. Received: {ids.shape[1]}."
            )
        outputs = {USUAL: 1, "heads": self.engine.heads}.get(name, 0)
        values = ids.size * self.engine.about.vocabulary_size * outputs
        if values > limits.max_values:
            raise Refused(
                f"The logits would be {values} numbers, and {limits.max_values} are allowed. Ask `score`, or less."
            )


def _reason(failed: Exception) -> str:
    """What an assertion of the graph says, without where it stands."""
    text = " ".join(str(getattr(failed, "message", failed)).split())
    asserted = re.search(r"assertion failed: \[(.*?)\]", text)
    return asserted[1] if asserted else text[:300]


def _signatures(file: Path) -> dict[str, Any]:
    """As TensorFlow Serving puts them: the protocol buffers' own JSON."""
    signatures = backend.saved_model_signatures(file.read_bytes())
    return {
        name: MessageToDict(
            signature, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for name, signature in signatures.items()
    }
