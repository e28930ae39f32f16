"""The server's page in a real browser: it shows what the model says, which tokens were drafted, and what went wrong."""

import dataclasses
import json
import shutil

import httpx2
import keras
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from keras_mtp import MTPCausalLM
from keras_mtp.data.encoding import encode_prompt, encode_raw
from tests.tiny_server import Server, export_tiny, until

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(
        keras.config.backend() != "tensorflow", reason="what is served is a TensorFlow SavedModel"
    ),
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium or google-chrome, and chromedriver"),
]
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # which root, as in a container, cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONGEST = 64
TAGS = ("<b>", "<h1>", "<i>", "<q>", "<s>", "<u>")
# A token is a word or its beginning: many of the model's have a tag in them.
WORDS = [tag + word for tag in TAGS for word in ("apples", "boxes")]
QUESTION = "<u>dollars"  # to which it says some of them, and one of them several times


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("exported"), vocabulary=WORDS)


@pytest.fixture(scope="module")
def model(exported) -> MTPCausalLM:
    return exported[0]


@pytest.fixture(scope="module")
def server(exported):
    server = Server(exported[1])
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


class _Page:
    """The page as a reader has it: parts by their id."""

    def __init__(self, browser: webdriver.Chrome, url: str):
        self.browser = browser
        browser.get(url)
        until(lambda: self["name"].text == "tuned")

    def __getitem__(self, name: str):
        return self.browser.find_element(By.ID, name)

    def ask(self, prompt: str, *, longest: int = LONGEST, by_key: bool = False) -> None:
        for name, value in (("prompt", prompt), ("longest", str(longest))):
            self[name].clear()
            self[name].send_keys(value)
        if by_key:
            self["prompt"].send_keys(Keys.CONTROL, Keys.ENTER)
        else:
            self["ask"].click()

    def answer(self, prompt: str, **how) -> str:
        """What it shows once it has been answered."""
        self.ask(prompt, **how)
        until(lambda: self["ask"].is_enabled())
        assert not self["end"].is_enabled()
        return self.answered()

    def answered(self) -> str:
        return self["answer"].get_property("textContent")

    def pieces(self, which: str = "") -> list:
        return self["answer"].find_elements(By.CSS_SELECTOR, f"span{which}")

    def complaints(self) -> list[str]:
        """What the browser's console says, but that a request failed, which is for the page to show."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["source"] != "network"]


@pytest.fixture
def page(browser, server):
    browser.get_log("browser")
    page = _Page(browser, server.url)
    yield page
    assert page.complaints() == []


@pytest.fixture(scope="module")
def expected(model) -> str:
    """The model's own answer to QUESTION."""
    return _said(model, encode_prompt(QUESTION, model.tokenizer))


def _said(model, prompt) -> str:
    (tokens,) = model.generate([prompt], max_new_tokens=LONGEST, speculate=True)
    return model.tokenizer.decode(tokens)


def _streamed(server, prompt: str) -> tuple[list[dict], dict]:
    """The pieces and the usage that the server has for the page."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": LONGEST,
        "stream": True,
        "stream_options": {"include_usage": True, "include_drafts": True},
    }
    text = httpx2.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    pieces = [piece for event in events for choice in event["choices"] for piece in choice.get("pieces", [])]
    return pieces, events[-1]["usage"]


@pytest.mark.parametrize("by_key", [False, True])
def test_the_answer_is_what_the_model_says(page, expected, by_key):
    assert page.answer(QUESTION, by_key=by_key) == expected
    assert len(page.pieces()) > 1 and page["state"].text == f"Cut off after {LONGEST} tokens."
    assert not page["error"].is_displayed()
    assert not page.browser.get_log("browser")  # no failed request either


def test_without_chat_the_model_goes_on_with_the_text(page, model):
    page["raw"].click()
    assert page.answer(QUESTION) == _said(model, encode_raw(QUESTION, model.tokenizer))


def _accepted(server) -> float:
    """Drafts that were right: what passes yielded beyond one token each."""
    until(lambda: server.metric("keras_mtp_running") == 0)
    tokens, passes = (server.metric(f"keras_mtp_tokens_per_pass_{x}") for x in ("sum", "count"))
    return tokens - passes


def test_drafted_tokens_are_coloured_and_counted(page, server):
    before = _accepted(server)
    page.answer(QUESTION)
    accepted = _accepted(server) - before
    pieces, usage = _streamed(server, QUESTION)
    drafted = [piece["text"] for piece in pieces if piece["drafted"]]
    assert 0 < len(drafted) <= accepted  # a piece of a character brings no text
    assert [span.get_property("textContent") for span in page.pieces(".drafted")] == drafted
    assert len(page.pieces()) == len(pieces)
    colours = {
        which: {span.value_of_css_property("background-color") for span in page.pieces(which)}
        for which in (".drafted", ":not(.drafted)")
    }
    legend = page.browser.find_element(By.CSS_SELECTOR, "p .drafted").value_of_css_property(
        "background-color"
    )
    assert colours[".drafted"] == {legend} and legend not in colours[":not(.drafted)"]

    tokens = usage["completion_tokens"]
    assert int(page["tokens"].text) == tokens
    assert page["drafted"].text == f"{accepted:.0f} ({100 * accepted / tokens:.0f} %)"
    assert float(page["per-pass"].text) == pytest.approx(tokens / (tokens - accepted), abs=0.01)
    assert float(page["per-second"].text) > 0


def test_what_the_model_says_is_never_read_as_html(page, expected):
    assert any(tag in expected for tag in TAGS)
    assert page.answer(QUESTION) == expected
    assert {x.tag_name for x in page["answer"].find_elements(By.CSS_SELECTOR, "*")} == {"span"}
    page.answer("<i>text</i> <|im_end|>")  # of which the server's message has the token
    assert "<|im_end|>" in page["error"].text and not page["error"].find_elements(By.CSS_SELECTOR, "*")


@pytest.mark.parametrize(
    ("prompt", "longest", "message"),
    [
        (" ", LONGEST, "Write a prompt first."),
        ("a" * 300, LONGEST, "at most 253 tokens"),
        ("a", 10_000, "from 1 to 200. Received: 10000"),
    ],
)
def test_an_error_is_shown_and_the_next_answer_comes(page, expected, prompt, longest, message):
    assert page.answer(prompt, longest=longest) == ""
    assert page["error"].get_attribute("role") == "alert"
    assert message in page["error"].text and page["state"].text == ""
    assert page.answer(QUESTION) == expected and not page["error"].is_displayed()


END_AT_ONCE = """
new MutationObserver(() => document.getElementById("end").click())
    .observe(document.getElementById("answer"), { childList: true });
"""


def test_an_answer_can_be_stopped(page, server, expected):
    left = server.metric("keras_mtp_left_total")
    page.browser.execute_script(END_AT_ONCE)
    assert expected.startswith(page.answer(QUESTION)[:1])
    assert page["state"].text == "Stopped." and page.pieces() and len(page.answered()) < len(expected)
    assert not page["error"].is_displayed()
    until(lambda: server.metric("keras_mtp_left_total") == left + 1)
    page.browser.refresh()
    assert page.answer(QUESTION) == expected


def test_a_server_that_went_away_is_told(browser, exported):
    server = Server(exported[1])
    page = _Page(browser, server.url)
    server.engine.limits = dataclasses.replace(server.engine.limits, max_batch=0)  # the answer waits
    page.ask(QUESTION)
    until(lambda: server.metric("keras_mtp_waiting") == 1)
    server.stop(at_once=True)
    for _ in ("during an answer", "before it"):
        until(lambda: page["ask"].is_enabled())
        assert "Does it still run?" in page["error"].text and page["state"].text == ""
        page["ask"].click()
    assert page["prompt"].get_property("value") == QUESTION
    assert page.complaints() == []
