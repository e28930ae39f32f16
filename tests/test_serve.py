"""`keras-mtp serve`: clients that others wrote get what the model itself says, and bad requests harm nobody."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import keras
import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

from keras_mtp import MTPCausalLM, Sampling, UserError, backend
from keras_mtp.data.encoding import encode_prompt
from keras_mtp.export import check
from keras_mtp.export.served_model import ABOUT, About
from keras_mtp.generation.draws import uniforms
from keras_mtp.generation.stream import UNFINISHED
from keras_mtp.limits import Refused
from keras_mtp.serve import IDLE_CONNECTION, logprobs, make_engine
from keras_mtp.serve.answer import Answer, Wish
from keras_mtp.serve.app import make_app
from tests.tiny_server import QUESTION, Server, export_tiny, get, until

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="what is served is a TensorFlow SavedModel"
)
LONGEST = check.NEW_TOKENS  # what the check of an export has compiled already


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[MTPCausalLM, Path]:
    return export_tiny(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def model(exported) -> MTPCausalLM:
    return exported[0]


@pytest.fixture(scope="module")
def folder(exported) -> Path:
    return exported[1]


@pytest.fixture(scope="module")
def expected(model) -> list[tuple[list[int], list[int]]]:
    """Four prompts, and the model's own answers."""
    prompts = [encode_prompt(QUESTION, model.tokenizer), [5, 6, 7], [9], list(range(70, 140))]
    return list(zip(prompts, model.generate(prompts, max_new_tokens=LONGEST, speculate=True), strict=True))


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def _complete(client, prompt, **options):
    options = {"max_tokens": LONGEST, "temperature": 0.0} | options
    return client.completions.create(model="tuned", prompt=prompt, **options)


def test_a_completion_is_what_the_model_says(client, expected, model):
    for prompt, tokens in expected:
        answer = _complete(client, prompt)
        assert answer.choices[0].text == model.tokenizer.decode(tokens)
        ended = len(tokens) < LONGEST
        assert answer.choices[0].finish_reason == ("stop" if ended else "length")
        assert (
            answer.usage.prompt_tokens == len(prompt)
            and answer.usage.completion_tokens == len(tokens) + ended
        )
    several = _complete(client, [prompt for prompt, _ in expected])
    assert [choice.text for choice in several.choices] == [model.tokenizer.decode(x) for _, x in expected]


@pytest.mark.parametrize("clients", [8, 32])
def test_many_clients_get_the_same(client, server, expected, model, clients):
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        asked = [expected[n % len(expected)] for n in range(clients)]
        answers = list(pool.map(lambda pair: _complete(client, pair[0]).choices[0].text, asked))
    assert answers == [model.tokenizer.decode(tokens) for _, tokens in asked]
    until(lambda: server.metric("keras_mtp_running") == 0)
    tokens, passes = (server.metric(f"keras_mtp_tokens_per_pass_{x}") for x in ("sum", "count"))
    assert passes < tokens < 3 * passes, "no draft was ever right, so drafts were not tested"


def test_without_drafts_it_is_the_same_in_more_passes(folder, expected, model):
    server = Server(folder, speculate=False)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    answers = _complete(client, [prompt for prompt, _ in expected]).choices
    assert [answer.text for answer in answers] == [model.tokenizer.decode(tokens) for _, tokens in expected]
    until(lambda: server.metric("keras_mtp_running") == 0)
    assert server.metric('keras_mtp_passes_total{drafts="no"}') > 0
    assert server.metric('keras_mtp_passes_total{drafts="yes"}') == 0
    server.stop()


def test_a_stream_is_the_answer_in_pieces(client, expected, model):
    prompt, tokens = expected[0]
    options = {"include_usage": True, "include_drafts": True}
    *chunks, last = _complete(client, prompt, stream=True, stream_options=options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == model.tokenizer.decode(tokens)
    assert chunks[-1].choices[0].finish_reason and not last.choices
    assert last.usage.total_tokens == len(prompt) + last.usage.completion_tokens
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].pieces]
    assert "".join(piece["text"] for piece in pieces) == model.tokenizer.decode(tokens)
    assert any(piece["drafted"] for piece in pieces)


def test_chat_goes_through_the_template(client, expected, model):
    _, tokens = expected[0]
    turns = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    asked = {"model": "tuned", "messages": turns, "max_tokens": LONGEST}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == model.tokenizer.decode(tokens)
    chunks = client.chat.completions.create(**asked, stream=True)
    assert "".join(x.choices[0].delta.content or "" for x in chunks) == model.tokenizer.decode(tokens)
    found = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(found) == len(tokens) and all(
        place.logprob == place.top_logprobs[0].logprob for place in found
    )


def test_a_stop_string_ends_an_answer(client, expected, model):
    prompt, tokens = expected[1]
    text = model.tokenizer.decode(tokens)
    place = next(n for n in range(5, len(text)) if text[n].isalpha())
    stop = text[place : place + 2]
    answer = _complete(client, prompt, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens < LONGEST
    chunks = _complete(client, prompt, stop=[stop], stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]


def _logits(server, ids) -> np.ndarray:
    """(T, V), by the SavedModel's plain forward pass."""
    said = server.engine.model.signatures["serving_default"](token_ids=np.array([ids], "int32"))
    return said["logits"].numpy()[0]


def test_what_is_drawn_has_the_law_and_the_numbers_of_the_library(client, server):
    prompt = [5, 6, 7]
    wish = {"temperature": 0.9, "top_p": 0.8, "seed": 4}
    alone = _complete(client, prompt, **wish).choices[0].text
    assert alone != _complete(client, prompt, temperature=0).choices[0].text
    assert alone != _complete(client, prompt, **(wish | {"seed": 5})).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # whoever else is in the batch
        assert {
            x.choices[0].text for x in pool.map(lambda _: _complete(client, prompt, **wish), range(8))
        } == {alone}
    said = _drawn(server, prompt, **wish)
    sampling = Sampling(**wish)
    logits = _logits(server, prompt + said)[len(prompt) - 1 : -1]
    law = sampling.choose(logits[None], sampling.uniforms(0, len(said))[None])
    assert np.array(law)[0].tolist() == said
    assert server.engine.tokenizer.decode(said) == alone


def test_every_prompt_of_a_request_draws_its_own(client):
    wish = {"temperature": 2.0, "seed": 4}
    texts = [choice.text for choice in _complete(client, [[5, 6, 7]] * 3, **wish).choices]
    assert len(set(texts)) == 3 and texts[0] == _complete(client, [5, 6, 7], **wish).choices[0].text


def _drawn(server, prompt, *, temperature, top_p, seed) -> list[int]:
    """The token ids of a sampled answer, by `prefill` and `step` themselves."""
    from keras_mtp.serve.batch import Batch

    wish = Wish(prompt=prompt, max_new_tokens=LONGEST, temperature=temperature, top_p=top_p, seed=seed)
    answer = Answer(wish, server.engine.tokenizer, lambda news: None)
    batch = Batch(server.engine.model, server.engine.tokenizer.eos_ids)
    batch.add([answer])
    batch.drop_ended()
    while len(batch):
        batch.step()
        batch.drop_ended()
    return answer.stream.ids


def test_logprobs_of_a_prompt_as_lm_eval_asks_for_them(client, server):
    ids = [5, 6, 7, 250, 9]
    answer = _complete(client, [ids], max_tokens=1, echo=True, logprobs=1).choices[0].logprobs
    logits = _logits(server, ids).astype("float64")
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    assert answer.token_logprobs[0] is None and len(answer.tokens) == len(ids) + 1
    np.testing.assert_allclose(answer.token_logprobs[1:-1], logprobs[np.arange(4), ids[1:]], atol=1e-4)
    assert answer.token_logprobs[-1] == pytest.approx(logprobs[-1].max(), abs=1e-4)
    for place, best in enumerate(answer.top_logprobs[1:-1]):
        assert max(best.values()) == pytest.approx(logprobs[place].max(), abs=1e-4)
    nothing_new = _complete(client, [ids], max_tokens=0, echo=True, logprobs=0).choices[0]
    assert nothing_new.logprobs.token_logprobs == answer.token_logprobs[:-1]


def test_tokens_that_are_parts_of_a_character_have_no_bytes_of_their_own(model):
    """Clients join the bytes; those of the vocabulary's spelling would be others."""
    part = next(
        i for i in range(model.tokenizer.vocabulary_size) if UNFINISHED in model.tokenizer.decode([i])
    )
    whole = model.tokenizer.encode("how")[0]
    found = logprobs.of_chat([logprobs.Place(token, -1.0, []) for token in (part, whole)], model.tokenizer)
    assert [entry["bytes"] for entry in found["content"]] == [
        None,
        [*model.tokenizer.decode([whole]).encode()],
    ]
    assert found["content"][0]["token"] == model.tokenizer.backend.id_to_token(part)
    assert logprobs.of_completion([], model.tokenizer, 1)["text_offset"] == []


def test_an_end_token_at_once_is_among_the_logprobs(client, server):
    """lm-eval leaves the last one out, since it has asked for one new token."""
    assert (
        0 in server.engine.tokenizer.eos_ids
    )  # the first to be reached, so drawn by a number that is small enough
    seed = next(seed for seed in range(10**6) if uniforms(seed, 0, 1)[0] < 1e-4)
    wish = {"temperature": 2.0, "seed": seed, "max_tokens": 1}
    choice = _complete(client, [5], **wish, echo=True, logprobs=1).choices[0]
    assert choice.finish_reason == "stop" and len(choice.logprobs.token_logprobs) == 2


def test_tensorflow_serving_answers_as_the_signatures(server, expected):
    signatures = server.engine.model.signatures
    ids = np.array([[5, 6, 7], [8, 9, 10]], "int32")
    path = "/v1/models/tuned:predict"
    logits = signatures["serving_default"](token_ids=ids)["logits"].numpy()
    np.testing.assert_array_equal(server.post(path, {"instances": ids.tolist()})["predictions"], logits)
    np.testing.assert_array_equal(
        server.post(path, {"inputs": {"token_ids": ids.tolist()}})["outputs"], logits
    )
    heads = server.post(
        "/v1/models/tuned/versions/1:predict", {"signature_name": "heads", "inputs": ids.tolist()}
    )
    for name, of_head in signatures["heads"](token_ids=ids).items():
        np.testing.assert_array_equal(heads["outputs"][name], of_head)
    rows = [{"token_ids": row} for row in ids.tolist()]
    by_row = server.post(path, {"signature_name": "heads", "instances": rows})["predictions"]
    np.testing.assert_array_equal(by_row[1]["head_2"], heads["outputs"]["head_2"][1])
    prompt, tokens = expected[0]
    inputs = {"token_ids": [prompt], "lengths": [len(prompt)], "max_new_tokens": LONGEST, "stop_ids": [0, 2]}
    said = server.post(path, {"signature_name": "generate", "inputs": inputs})["outputs"]
    assert said["tokens"][0] == tokens and said["lengths"] == [len(tokens)]
    status = get(f"{server.url}/v1/models/tuned").json()
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    meta = get(f"{server.url}/v1/models/tuned/metadata").json()["metadata"]["signature_def"]["signature_def"]
    assert meta["generate"]["inputs"]["lengths"]["dtype"] == "DT_INT32" and "step" in meta


COMPLETIONS, CHAT, PREDICT = "/v1/completions", "/v1/chat/completions", "/v1/models/tuned:predict"
GENERATE = {"token_ids": [[5]], "lengths": [1], "max_new_tokens": 2, "stop_ids": [0]}
BAD = [
    (COMPLETIONS, "{", 400, "must be JSON"),
    (COMPLETIONS, "[" * 9000, 400, "must be JSON"),
    (COMPLETIONS, "[]", 400, "must be a JSON object"),
    (COMPLETIONS, {"model": "other", "prompt": "a"}, 404, "does not exist"),
    (COMPLETIONS, {}, 400, "`prompt` must be"),
    (COMPLETIONS, {"prompt": ""}, 400, "must not be empty"),
    (COMPLETIONS, {"prompt": []}, 400, "must hold 1 to"),
    (COMPLETIONS, {"prompt": [5, "a"]}, 400, "list of token ids"),
    (COMPLETIONS, {"prompt": [5, 310]}, 400, "from 0 to 309. Received: 310"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "from 0 to 309. Received: -1"),
    (COMPLETIONS, {"prompt": [5] * 300}, 400, "at most 253 tokens"),
    (COMPLETIONS, {"prompt": [5] * 200, "max_tokens": 100}, 400, "Prompt and answer together"),
    (COMPLETIONS, {"prompt": "\ud800"}, 400, "valid Unicode"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": -1}, 400, "`max_tokens` must be"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": 10**9}, 400, "`max_tokens` must be"),
    (COMPLETIONS, {"prompt": "a", "max_tokens": True}, 400, "`max_tokens` must be"),
    (COMPLETIONS, {"prompt": "a", "temperature": "hot"}, 400, "`temperature` must be"),
    (COMPLETIONS, '{"prompt": "a", "temperature": NaN}', 400, "`temperature` must be"),
    (COMPLETIONS, {"prompt": "a", "top_p": 2}, 400, "`top_p` must be"),
    (COMPLETIONS, {"prompt": "a", "temperature": 10**400}, 400, "`temperature` must be"),
    (COMPLETIONS, '{"prompt": "a", "temperature": NaN}', 400, "`temperature` must be"),
    (COMPLETIONS, {"prompt": "a", "n": 2}, 400, "`n` is not supported"),
    (COMPLETIONS, {"prompt": "a", "stop": 5}, 400, "`stop` must be"),
    (COMPLETIONS, {"prompt": "a", "stream": "yes"}, 400, "`stream` must be"),
    (COMPLETIONS, {"prompt": "a", "stream": True, "logprobs": 1}, 400, "do not go with"),
    (COMPLETIONS, {"prompt": "a", "logprobs": 9}, 400, "`logprobs` must be"),
    (COMPLETIONS, {"prompt": "a" * 30_000}, 413, "at most 20000 bytes"),
    (CHAT, {"messages": []}, 400, "`messages` must be"),
    (CHAT, {"messages": [{"role": "king", "content": "a"}]}, 400, "must have a role"),
    (CHAT, {"messages": [{"role": [], "content": "a"}]}, 400, "must have a role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "a text as content"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "a text as content"),
    (CHAT, {"messages": [{"role": "user", "content": " "}]}, 400, "must not be empty"),
    (CHAT, {"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, "special token"),
    (CHAT, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}, 400, "`max_tokens` must be"),
    (PREDICT, "{", 400, "must be JSON"),
    (PREDICT, {}, 400, "either 'inputs' or 'instances'"),
    (PREDICT, {"instances": []}, 400, "not empty"),
    (PREDICT, {"instances": [[5], [5, 6]]}, 400, "must be whole numbers of shape"),
    (PREDICT, {"instances": [["a"]]}, 400, "must be whole numbers"),
    (PREDICT, r'{"inputs": "\ud800"}', 400, "must be whole numbers"),
    (PREDICT, r'{"signature_name": "\ud800", "inputs": [[5]]}', 400, "not found in signature"),
    (PREDICT, {"instances": [[2**40]]}, 400, "must be whole numbers"),
    (PREDICT, {"instances": [[5, 310]]}, 400, "must be 0 to 309"),
    (PREDICT, {"instances": [[]]}, 400, "1 to 253 columns"),
    (PREDICT, {"instances": [[5]], "signature_name": "step"}, 400, "not found in signature def"),
    (PREDICT, {"inputs": {"ids": [[5]]}}, 400, "must hold token_ids"),
    (
        PREDICT,
        {"signature_name": "generate", "inputs": GENERATE | {"max_new_tokens": -1}},
        400,
        "must be 0 to 200",
    ),
    (
        PREDICT,
        {"signature_name": "generate", "inputs": GENERATE | {"max_new_tokens": 10**6}},
        400,
        "must be 0 to 200",
    ),
    (
        PREDICT,
        {"signature_name": "generate", "inputs": GENERATE | {"token_ids": [[-3]]}},
        400,
        "must be 0 to 309",
    ),
    (
        PREDICT,
        {"signature_name": "generate", "inputs": GENERATE | {"lengths": [2]}},
        400,
        "`lengths` must be",
    ),
    (
        PREDICT,
        {"signature_name": "generate", "instances": [GENERATE | {"token_ids": [5]}]},
        400,
        "`lengths` must be whole numbers of shape (any)",
    ),
    ("/v1/models/other:predict", {"instances": [[5]]}, 404, "Servable not found"),
    ("/v1/models/tuned/versions/7:predict", {"instances": [[5]]}, 404, "of version 7"),
    ("/v1/nothing", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD)
def test_bad_requests_are_refused_in_the_clients_shape(server, path, body, status, message):
    content = body if isinstance(body, str) else json.dumps(body)
    answer = httpx2.post(server.url + path, content=content, timeout=120)
    error = answer.json()["error"]
    assert answer.status_code == status
    if path in (COMPLETIONS, CHAT):
        assert error.keys() == {"message", "type", "param", "code"}
        error = error["message"]
    assert message in error and "Traceback" not in error and "node" not in error.lower()
    assert get(f"{server.url}/ready").status_code == 200


def test_whoever_is_one_too_many_is_told_to_come_again(server, client, expected):
    limits = server.engine.limits
    server.engine.limits = dataclasses.replace(limits, max_batch=1, max_queue=1)
    try:
        with contextlib.ExitStack() as stack:
            for waiting in (0, 1):
                stack.enter_context(_complete(client, [9], max_tokens=200, stream=True))
                until(lambda waiting=waiting: server.metric("keras_mtp_waiting") == waiting)
                until(lambda: server.metric("keras_mtp_running") == 1)
            with pytest.raises(openai.RateLimitError, match="wait already") as refused:
                _complete(client, [9])
            assert int(refused.value.response.headers["Retry-After"]) >= 1
    finally:
        server.engine.limits = limits
    until(lambda: server.metric("keras_mtp_running") == 0)  # both went away
    prompt, tokens = expected[1]
    assert _complete(client, prompt).choices[0].text == server.engine.tokenizer.decode(tokens)


def test_questions_that_nobody_waits_for_any_more_do_not_count(server):
    engine, held = server.engine, threading.Event()
    first, *others = (engine.call(lambda model: held.wait()) for _ in range(engine.limits.max_queue))
    with pytest.raises(Refused, match="wait already"):
        engine.call(len)
    assert all(asked.cancel() for asked in others)
    last = engine.call(lambda model: "asked")
    held.set()
    assert first.result(60) and last.result(60) == "asked"


def test_prompts_that_nobody_waits_for_any_more_do_not_fill_the_queue(server):
    engine, left = server.engine, server.metric("keras_mtp_left_total")

    def answers() -> list[Answer]:
        wish = Wish(prompt=[9], max_new_tokens=200)
        return [Answer(wish, engine.tokenizer, lambda news: None) for _ in range(engine.limits.max_queue)]

    asked = [answers(), answers()]
    for each in asked:  # the second time there would be no room
        engine.submit(each)
        for answer in each:
            answer.cancelled = True
    until(lambda: server.metric("keras_mtp_left_total") == left + len(asked[0]) + len(asked[1]))


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_makes_room(server, stream):
    left = server.metric("keras_mtp_left_total")
    status = f'keras_mtp_requests_total{{route="completions",status="{200 if stream else 499}"}}'
    seen = server.metric(status)
    body = {"prompt": [9], "max_tokens": 200, "stream": stream}
    request = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(json.dumps(body))}\r\n\r\n{json.dumps(body)}"
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request.encode())
        until(lambda: server.metric("keras_mtp_running") == 1)
    until(lambda: server.metric("keras_mtp_left_total") == left + 1)
    assert server.metric("keras_mtp_running") == 0
    until(lambda: server.metric(status) == seen + 1)


def test_a_failure_is_counted_as_one(server, monkeypatch):
    status = 'keras_mtp_requests_total{route="page",status="500"}'
    before = server.metric(status)
    monkeypatch.setattr("keras_mtp.serve.app.PAGE", Path("nowhere.html"))
    assert get(server.url).status_code == 500
    until(lambda: server.metric(status) == before + 1)


def test_an_idle_connection_is_for_the_client_to_close(client):
    """Were both to close it after as long, a request sent in that moment would be lost: CI has seen it."""
    patience = client._client._transport._pool._keepalive_expiry
    assert 0 < patience < IDLE_CONNECTION


def test_the_page_needs_nothing_from_elsewhere(server):
    page = get(server.url)
    assert (
        "http" not in page.text.replace('lang="en"', "")
        and "default-src 'none'" in page.headers["Content-Security-Policy"]
    )
    assert get(f"{server.url}/health").json() == {"status": "ok"}
    assert server.metric('keras_mtp_requests_total{route="page",status="200"}') == 1


def test_a_server_whose_model_says_something_else_is_never_ready(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    about = About.read(folder)
    (tmp_path / ABOUT).unlink()
    dataclasses.replace(about, golden_answer=[*about.golden_answer[:-1], 3]).write(tmp_path)
    engine = make_engine(tmp_path)
    with TestClient(make_app("tuned", engine)) as client:
        assert client.get("/ready").status_code == 503
        until(lambda: "loaded" not in client.get("/ready").json()["reason"])
        assert "the model says" in client.get("/ready").json()["reason"]
        for path, body in ((COMPLETIONS, {"prompt": [5]}), (PREDICT, {"instances": [[5]]})):
            answer = client.post(path, json=body)
            assert answer.status_code == 503 and "not ready" in str(answer.json()["error"])
        assert client.get("/health").status_code == 200


def test_folders_that_are_no_export_are_refused(tmp_path):
    with pytest.raises(UserError, match="`DIR` must be a folder that"):
        make_engine(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match=r"`DIR` must hold a keras_mtp\.json"):
        make_engine(tmp_path)


SERVE = """
import sys
from keras_mtp.export.without_keras import NoKeras
sys.meta_path.insert(0, NoKeras())
from keras_mtp.cli import main
sys.argv[1:] = ["serve", sys.argv[1], "--port", "0"]
main()
"""


def test_the_command_serves_without_keras_and_ends_when_answers_have(folder, expected, model):
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder)], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            url = next(line for line in process.stderr if " at http" in line).split()[2]
            until(lambda: get(f"{url}/ready").status_code == 200)
            prompt, tokens = expected[0]
            body = {"model": folder.name, "prompt": prompt, "max_tokens": 200, "stream": True}
            with httpx2.stream("POST", url + COMPLETIONS, json=body, timeout=120) as answer:
                lines = answer.iter_lines()
                said = [next(lines)]
                process.send_signal(signal.SIGTERM)
                said += [line for line in lines if line]
            assert said[-1] == "data: [DONE]"
            text = "".join(json.loads(x[6:])["choices"][0]["text"] for x in said[:-1] if x)
            assert text.startswith(model.tokenizer.decode(tokens[:-2]))
            assert process.wait(60) in (0, -signal.SIGTERM)
            with pytest.raises(httpx2.ConnectError):
                get(f"{url}/health")
        finally:
            process.kill()


def test_the_signatures_refuse_rows_that_have_no_fixed_shape(server):
    tf, served = backend.tensorflow(), server.engine.model
    inputs = {
        name: tf.zeros([3, *[n or 128 for n in spec.shape[1:]]], spec.dtype)
        if spec.shape.rank
        else tf.constant(True)
        for name, spec in served.inputs("step").items()
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match="a step must have 1 row, or a multiple of 2"):
        served.signatures["step"](**inputs)
