"""A catalogue of mistakes in data: each is one clear line that says what, where and what to do."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from keras_mtp.data.encoding import encode_all
from keras_mtp.data.splits import split_held_out
from keras_mtp.errors import UserError
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from keras_mtp.recipe import apply_overrides, from_toml, load_recipe
from keras_mtp.tasks import load_task
from tests.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.any_backend

GOOD = [{"prompt": f"{n} + 1?", "response": f"{n + 1}"} for n in range(5)]
GSM8K = {"question": "How many?", "answer": "3\n#### 3"}
USER, ASSISTANT, SYSTEM = ({"role": role, "content": role} for role in ("user", "assistant", "system"))


class Case(NamedTuple):
    """Files by name (bytes, text, or rows), what `--task` and `--data` are, and what the one line must hold."""

    files: dict
    said: tuple[str, ...]
    task: str = "jsonl"
    data: str = "my.jsonl"


def one(row, *said: str) -> Case:
    """A file whose fourth line is `row`: text, or a row."""
    lines = [*map(json.dumps, GOOD[:3]), row if isinstance(row, (str, bytes)) else json.dumps(row)]
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines)
    return Case({"my.jsonl": content}, ("my.jsonl, line 4", *said))


def chat(*messages, **extra) -> dict:
    return {"messages": list(messages), **extra}


def dialogue(**changes) -> dict:
    """A story of CoQA with two questions."""
    texts = [{"input_text": "x", "turn_id": 1}, {"input_text": "y", "turn_id": 2}]
    return {"id": "s", "source": "cnn", "story": "A passage.", "questions": texts, "answers": texts} | changes


def coqa(*stories) -> dict:
    """A folder whose `dev.json` holds these stories."""
    return {
        "d/train.json": json.dumps({"data": [dialogue(id="train")]}),
        "d/dev.json": json.dumps({"data": stories}),
    }


def turn(**changes) -> list[dict]:
    return [{"input_text": "x", "turn_id": 1}, {"input_text": "y", "turn_id": 2} | changes]


STORY = "dev.json, story 1 (s)"
COQA_CASES = {
    "CoQA folder without files": ({"d/x": "x"}, ("d, which holds neither", "train.json or coqa-train-v1.0.json")),
    "CoQA folder without dev": ({"d/train.json": json.dumps({"data": [dialogue()]})}, ("dev.json or coqa-dev-v1.0.json",)),
    "CoQA file is empty": ({"d/train.json": " \n"}, ("train.json, which is empty",)),
    "CoQA file cut off": ({"d/train.json": '{"data": [\n{"id": "a",'}, ("must be a JSON object", "train.json, line 2, column")),
    "CoQA file is a list": ({"d/train.json": "[]"}, ("train.json, which is a list",)),
    "CoQA file in UTF-16": ({"d/train.json": "{}".encode("utf-16")}, ("UTF-16: save it as UTF-8",)),
    "CoQA file in Latin-1": ({"d/train.json": b'{"data": "caf\xe9"}'}, ("in UTF-8", "Save the file as UTF-8")),
    "CoQA file is a gzip file": ({"d/train.json": gzip.compress(b"{}")}, ("which is a gzip file: unpack it",)),
    "CoQA file with NaN": ({"d/train.json": '{"data": NaN}'}, ("NaN is not JSON",)),
    "CoQA file with a key twice": ({"d/train.json": '{"data": [], "data": []}'}, ("'data' stands there twice",)),
    "CoQA without data": ({"d/train.json": '{"version": "1.0"}'}, ("'data' must be a list", "the keys are version")),
    "CoQA data is a number": ({"d/train.json": '{"data": 1}'}, ("train.json, where it is a int",)),
    "CoQA without stories": (coqa(), ("dev.json, which has none",)),
    "story is a text": (coqa("x"), ("dev.json, story 1, which is a str",)),
    "story without id": (coqa({"story": "x"}), ("'id' must be a str", "dev.json, story 1, where it is missing: the keys are story")),
    "story id twice": (coqa(dialogue(), dialogue()), ("'id' must be unique", "dev.json, story 2, with 's', which", "story 1 has too")),
    "story id in both files": (coqa(dialogue(id="train")), ("'id' must be unique", "train.json, story 1 has too")),
    "story without passage": (coqa(dialogue(story=None)), ("'story' must be a str", STORY, "a NoneType")),
    "empty passage": (coqa(dialogue(story=" \n")), ("'story' must be a passage", f"{STORY}, where it is empty")),
    "passage is a list": (coqa(dialogue(story=["x"])), ("'story' must be a str", "a list")),
    "story without source": (coqa(dialogue(source=3)), ("'source' must be a str", "a int")),
    "questions are a text": (coqa(dialogue(questions="x")), ("'questions' must be a list", STORY)),
    "no questions": (coqa(dialogue(questions=[], answers=[])), ("at least one question", f"{STORY}, which has none")),
    "answers are missing": (coqa({k: v for k, v in dialogue().items() if k != "answers"}), ("'answers' must be a list", "missing")),
    "fewer answers than questions": (coqa(dialogue(answers=turn()[:1])), (STORY, "2 questions and 1 answers")),
    "more answers than questions": (coqa(dialogue(questions=turn()[:1])), (STORY, "1 questions and 2 answers")),
    "fewer further answers": (
        coqa(dialogue(additional_answers={"0": turn(), "1": turn()[:1]})), (STORY, "2 questions and 1 answers of 1"),
    ),
    "further answers are a list": (coqa(dialogue(additional_answers=[])), ("'additional_answers' must be a dict", "a list")),
    "a question is a text": (coqa(dialogue(questions=["x", "y"])), ("turn 1 of 'questions', which is a str",)),
    "a question is a number": (coqa(dialogue(questions=turn(input_text=2))), ("'input_text' must be a str", "turn 2 of 'questions'")),
    "an answer is null": (coqa(dialogue(answers=turn(input_text=None))), ("turn 2 of 'answers', where it is a NoneType",)),
    "turns out of order": (coqa(dialogue(answers=turn(turn_id=3))), ("turn 2 of 'answers', where it is 3",)),
    "turn_id is a text": (coqa(dialogue(answers=turn(turn_id="2"))), ("'turn_id' must be a int", "a str")),
    "a dialogue trained on": (coqa(dialogue()) | {"d/train.json": json.dumps({"data": [dialogue(id="t")]})}, ("s/2, the same as t",)),
}  # fmt: skip
INSTRUCTION = {"prompt": "a", "response": "b", "source": "c"}
INSTRUCT_CASES = {
    "instruct folder without test": ({"d/train.jsonl": [INSTRUCTION]}, ("test.jsonl (No such file",)),
    "instruct split is empty": ({"d/train.jsonl": ""}, ("train.jsonl, which is empty",)),
    "instruct file is Parquet": ({"d/train.jsonl": b"PAR1\x15"}, ("which is a Parquet file",)),
    "instruct row cut off": ({"d/train.jsonl": '{"prompt": "a'}, ("must be a JSON object", "train.jsonl, line 1")),
    "instruct row without source": (
        {"d/train.jsonl": [INSTRUCTION, {"prompt": "a", "response": "b"}]},
        ("'source'", "train.jsonl, line 2, with the keys prompt, response"),
    ),
    "instruct row with a blank response": (
        {"d/train.jsonl": [{**INSTRUCTION, "response": " "}]}, ("'response'", "train.jsonl, line 1"),
    ),
    "instruct prompt is a list": ({"d/train.jsonl": [{**INSTRUCTION, "prompt": ["a"]}]}, ("'prompt'", "line 1")),
    "instruct row trained on": (
        {"d/train.jsonl": [INSTRUCTION], "d/test.jsonl": [INSTRUCTION]}, ("test.jsonl:1, the same as train.jsonl:1",),
    ),
}  # fmt: skip
CASES = {
    # files
    "no file": Case({}, ("JSON Lines file that exists", "Received: 'my.jsonl'")),
    "no folder": Case({}, ("a folder that exists", "Received: 'my.jsonl'"), task="gsm8k"),
    "a file for gsm8k": Case({"my.jsonl": GOOD}, ("'hub', 'tfds', 'builtin' or a folder",), task="gsm8k"),
    "folder without files": Case({"d/x.txt": "x"}, ("train.jsonl (No such file",), data="d"),
    "folder without test": Case({"d/train.jsonl": GOOD}, ("test.jsonl (No such file",), data="d"),
    "folder in a folder": Case({"d/train.jsonl/x": "x"}, ("train.jsonl (Is a directory)",), data="d"),
    "GSM8K folder without test": Case({"d/train.jsonl": [GSM8K]}, ("test.jsonl",), task="gsm8k", data="d"),
    "empty file": Case({"my.jsonl": ""}, ("my.jsonl, which is empty", '"prompt"')),
    "blank lines": Case({"my.jsonl": "\n \n"}, ("my.jsonl, which is empty",)),
    "empty split": Case(
        {"d/train.jsonl": GOOD, "d/test.jsonl": ""}, ("test.jsonl, which is empty",), data="d"
    ),
    "empty GSM8K split": Case(
        {"d/train.jsonl": [GSM8K], "d/test.jsonl": ""},
        ("test.jsonl, which is empty",),
        task="gsm8k",
        data="d",
    ),
    "too few to split": Case({"my.jsonl": GOOD[:2]}, ("at least 3 different examples", "holds 2")),
    "the same three times": Case({"my.jsonl": GOOD[:1] * 3}, ("at least 3 different examples", "holds 1")),
    "gzip": Case({"my.jsonl": gzip.compress(b"{}")}, ("my.jsonl, which is a gzip file: unpack it",)),
    "Parquet": Case({"my.jsonl": b"PAR1\x15\x04"}, ("my.jsonl, which is a Parquet file",)),
    "zip": Case({"my.jsonl": b"PK\x03\x04"}, ("my.jsonl, which is a zip file",)),
    "UTF-16": Case({"my.jsonl": json.dumps(GOOD[0]).encode("utf-16")}, ("UTF-16: save it as UTF-8",)),
    "one JSON array": Case(
        {"my.jsonl": json.dumps(GOOD, indent=1)}, ("my.jsonl, line 1, which opens one JSON array",)
    ),
    "an array on one line": Case({"my.jsonl": json.dumps(GOOD)}, ("my.jsonl, line 1, which is a list",)),
    "CSV": Case({"my.jsonl": "prompt,response\na,b\n"}, ("must be a JSON object", "my.jsonl, line 1")),
    # lines
    "cut off": one('{"prompt": "a", "resp', "must be a JSON object"),
    "single quotes": one("{'prompt': 'a', 'response': 'b'}", "must be a JSON object"),
    "a number": one("7", "which is a int"),
    "null": one("null", "which is a NoneType"),
    "NaN": one('{"prompt": "a", "response": NaN}', "NaN is not JSON"),
    "not UTF-8": one(b'{"prompt": "caf\xe9", "response": "b"}', "in UTF-8", "Save the file as UTF-8"),
    "half a surrogate pair": one('{"prompt": "\\ud83e", "response": "b"}', "half a surrogate pair"),
    "a key twice": one('{"prompt": "a", "prompt": "b", "response": "c"}', "'prompt' stands there twice"),
    "too deep": one('{"prompt": ' + "[" * 100_000, "must be a JSON object"),
    # rows
    "no keys": one({}, "prompt and response, or messages. Received: none"),
    "other keys": one({"question": "a", "answer": "b"}, "Received: answer, question"),
    "no response": one({"prompt": "a"}, "Received: prompt"),
    "misspelt": one({"prompt": "a", "respones": "b"}, "Received: prompt, respones", "Rename or remove"),
    "a key too many": one({"prompt": "a", "response": "b", "system": "c"}, "they would not be used"),
    "both kinds": one(
        {"prompt": "a", "response": "b", "messages": []}, "Received: messages, prompt, response"
    ),
    "prompt is a number": one({"prompt": 7, "response": "b"}, "a int as turn 1, user's"),
    "response is a list": one({"prompt": "a", "response": ["b"]}, "a list as turn 2, assistant's"),
    "response is null": one({"prompt": "a", "response": None}, "a NoneType as turn 2"),
    "empty prompt": one({"prompt": "", "response": "b"}, "an empty text as turn 1"),
    "blank response": one({"prompt": "a", "response": " \n"}, "an empty text as turn 2"),
    "id is a list": one({"prompt": "a", "response": "b", "id": []}, "`id` must be a text or a whole number"),
    "id is empty": one({"prompt": "a", "response": "b", "id": ""}, "`id` must be a text"),
    "id is true": one({"prompt": "a", "response": "b", "id": True}, "`id` must be a text"),
    # conversations
    "messages is a text": one({"messages": "hi"}, "`messages` must be a list of turns. Received: 'hi'"),
    "no messages": one(chat(), "`messages` must be a list of turns. Received: []"),
    "message is a text": one(chat("hi"), "role and content", "'hi' in turn 1"),
    "message without role": one(chat({"content": "hi"}), "the keys content in turn 1"),
    "message with tool calls": one(chat(USER, {**ASSISTANT, "tool_calls": []}), "tool_calls in turn 2"),
    "from and value": one(chat({"from": "human", "value": "hi"}), "the keys from, value in turn 1"),
    "unknown role": one(chat({"role": "human", "content": "hi"}, ASSISTANT), "Received: 'human' in turn 1"),
    "role is a number": one(chat({"role": 1, "content": "hi"}, ASSISTANT), "Received: 1 in turn 1"),
    "content in parts": one(
        chat({"role": "user", "content": [{"type": "text", "text": "a"}]}, ASSISTANT), "a list as turn 1"
    ),
    "no assistant": one(chat(SYSTEM, USER), "must have a turn of the assistant"),
    "ends with the user": one(chat(USER, ASSISTANT, USER), "must end with a turn of the assistant"),
    "two of system": one(chat(SYSTEM, SYSTEM, USER, ASSISTANT), "system as turn 2, where user was due"),
    "system in the middle": one(chat(USER, ASSISTANT, SYSTEM, USER, ASSISTANT), "system as turn 3"),
    "begins with the assistant": one(
        chat(ASSISTANT, USER, ASSISTANT), "assistant as turn 1, where user was due"
    ),
    "two of the user": one(chat(USER, USER, ASSISTANT), "user as turn 2, where assistant was due"),
    "empty turn": one(chat(USER, ASSISTANT, {**USER, "content": ""}, ASSISTANT), "an empty text as turn 3"),
    # between rows
    "an id twice": Case(
        {"my.jsonl": [{**row, "id": min(n, 3)} for n, row in enumerate(GOOD)]},
        ("my.jsonl, line 5: `id` must be unique. Received: '3'", "my.jsonl, line 4 has too"),
    ),
    "an id in both splits": Case(
        {"d/train.jsonl": [{**GOOD[0], "id": 1}], "d/test.jsonl": [{**GOOD[1], "id": 1}]},
        ("test.jsonl, line 1: `id` must be unique", "train.jsonl, line 1 has too"),
        data="d",
    ),
    "test rows trained on": Case(
        {"d/train.jsonl": GOOD, "d/test.jsonl": [{"prompt": "9?", "response": "9"}, *GOOD[3:]]},
        (
            "No test item may be in the training data",
            "d, where 2 are",
            "test.jsonl:2, the same as train.jsonl:4",
        ),
        data="d",
    ),
    "GSM8K's test rows trained on": Case(
        {"d/train.jsonl": [GSM8K], "d/test.jsonl": [{**GSM8K, "question": "How  many?\n"}]},
        ("gsm8k/test/0, the same as gsm8k/train/0",),
        task="gsm8k",
        data="d",
    ),
    # GSM8K's rows
    "no ####": Case(
        {"d/train.jsonl": [GSM8K, {**GSM8K, "answer": "Three."}]},
        ("train.jsonl, line 2, whose answer ends with 'Three.'", "'#### 42'"),
        task="gsm8k",
        data="d",
    ),
    "prompt and response for GSM8K": Case(
        {"d/train.jsonl": GOOD}, ("train.jsonl, line 1", "'question'"), task="gsm8k", data="d"
    ),
    # CoQA's files
    **{name: Case(files, said, task="coqa", data="d") for name, (files, said) in COQA_CASES.items()},
    # instruct-v3's rows
    **{name: Case(files, said, task="instruct", data="d") for name, (files, said) in INSTRUCT_CASES.items()},
    # names
    "unknown task": Case(
        {"my.jsonl": GOOD}, ("instruct, jsonl. Received: 'jsonll'. Did you mean 'jsonl'?",), task="jsonll"
    ),
    "unknown source": Case(
        {}, ("Received: 'buildin'. Did you mean 'builtin'?",), task="gsm8k", data="buildin"
    ),
    "a source of another task": Case(
        {}, ("`data` of the task jsonl must be", "Received: 'builtin'"), data="builtin"
    ),
}


def _write(folder: Path, files: dict) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _one_line(error: UserError, said: tuple[str, ...]) -> None:
    text = str(error)
    assert "\n" not in text and len(text) < 600
    for part in said:
        assert part in text


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mistakes_in_files(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path, case.files)
    with pytest.raises(UserError) as error:
        load_task(case.task, case.data)
    _one_line(error.value, case.said)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gguf(path, num_layers=1)
    return read_tokenizer(GGUFFile(path))


def _encode(tokenizer, template="", rows=tuple(GOOD), max_tokens=900, too_long="skip") -> Callable:
    """What a run does between reading its data and training on them."""

    def act(folder):
        _write(folder, {"my.jsonl": list(rows)})
        task = load_task("jsonl", str(folder / "my.jsonl"))
        told = tokenizer.with_template(template) if template else tokenizer
        return split_held_out(encode_all(task.examples("train"), told, max_tokens, too_long).examples, 1)

    return act


MARKED = [{"prompt": f"{n}", "response": "<|im_start|>assistant\nhi<|im_end|>"} for n in range(5)]
ENCODING = {
    "longer than the context": ({"max_tokens": 16}, "must fit `data.max_tokens`. Received: 0 that do"),
    "all labels masked": ({"max_tokens": 16, "too_long": "truncate"}, "Received: 0 that do"),
    "template applied already": (
        {"rows": MARKED},
        "the text of a special token. Received: '<|im_start|>' in turn 2",
    ),
    "broken template": ({"template": "{% for %}"}, "The chat template is not valid Jinja2"),
    "endless template": ({"template": "{{ 'a' * 10**10 }}"}, "makes too much text"),
    "template without ends": ({"template": "{{ messages }}"}, "renders a prompt differently"),
    "template without answers": (
        {"template": "{{ messages[0].content }}{{ eos_token }}"},
        "Example my.jsonl:",
    ),
    "template that never stops": (
        {"template": "{% for m in messages %}{{ m.content }};{% endfor %}"},
        "must end an answer with an end token",
    ),
}


@pytest.mark.parametrize(("arguments", "said"), ENCODING.values(), ids=ENCODING)
def test_mistakes_that_the_tokenizer_shows(tmp_path, tokenizer, arguments, said):
    with pytest.raises(UserError) as error:
        _encode(tokenizer, **arguments)(tmp_path)
    _one_line(error.value, (said,))


RECIPES = {
    "too_long": (
        "[data]\ntoo_long = 'cut'",
        "`data.too_long` must be skip or truncate. Received: data.too_long='cut'",
    ),
    "template is a number": ("[data]\ntemplate = 1", "`data.template` must be a string"),
    "max_tokens too small": ("[data]\nmax_tokens = 1", "`data.max_tokens` must be at least 16"),
    "data at the top": ("source = 'hub'", "Did you mean `data.source`?"),
}


@pytest.mark.parametrize(("text", "said"), RECIPES.values(), ids=RECIPES)
def test_mistakes_in_a_recipes_data(text, said):
    with pytest.raises(UserError) as error:
        from_toml(text, "x.toml")
    _one_line(error.value, ("x.toml: ", said))


COMMANDS = {
    "neither name nor task": ([], "needs NAME, PATH or --task"),
    "unknown task": (["--task", "jsonll"], "Did you mean `jsonl`?"),
    "jsonl without data": (["--task", "jsonl"], "Received: 'my.jsonl'"),
    "template file missing": (
        ["jsonl", "--set", "data.template=x.jinja"],
        "x.jinja (No such file or directory)",
    ),
    "CoQA's folder missing": (
        ["coqa", "--data", "nowhere"],
        "'hub', 'tfds', 'builtin' or a folder with train.json",
    ),
    "instruct has no builtin": (["instruct", "--data", "builtin"], "(no examples are generated for it)"),
    "template by a wrong name": (["jsonl", "--set", "data.template=llama3"], "`data.template` must be chat"),
}


@pytest.mark.parametrize(("arguments", "said"), COMMANDS.values(), ids=COMMANDS)
def test_mistakes_on_the_command_line(tmp_path, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "keras_mtp", "recipe", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # nothing half-made


def test_the_catalogue_is_long():
    assert len(CASES) + len(ENCODING) + len(RECIPES) + len(COMMANDS) >= 80


def test_what_the_cases_start_from_is_good(tmp_path, tokenizer):
    training, held_out = _encode(tokenizer)(tmp_path)
    assert len(training) + len(held_out) == 4
    assert apply_overrides(load_recipe("jsonl"), ["data.too_long=truncate"]).data.too_long == "truncate"
