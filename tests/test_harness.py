"""Tasks of lm-eval through our adapter, compared with lm-eval's own Hugging Face model on the same weights."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner

from keras_mtp import MTPCausalLM, TransformerHead, UserError, pipeline
from keras_mtp.cli import cli
from keras_mtp.data.tokenizer import Tokenizer
from keras_mtp.models.backbone import context_length
from tests import tiny, tiny_run, tiny_tokenizers

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'keras_mtp[harness]'")
from lm_eval.api.instance import Instance

from keras_mtp import harness
from keras_mtp.harness.language_model import HarnessLM
from keras_mtp.harness.likelihood import PASS_TOKENS, Scorer
from tests.harness_reference import hugging_face_lm

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {"until": ["box", "<|endoftext|>"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}
TASKS = {"choices": CHOICES, "rolling": ROLLING, "generate": GENERATE}


def write_tasks(folder: Path, **tasks) -> Path:
    """YAML files (JSON is YAML) of tasks over forty texts: from a word to more than the model's context."""
    texts = [f"Q: {text}" for text in tiny_tokenizers.texts() if len(text) < 200][:38]
    texts += ["how many apples are left in each box? " * 20, "ends with spaces  \n"]
    choices = [" the", " and", " many apples", "\n", " <|im_end|>"]
    rows = [
        {"question": text, "choices": choices[number % 3 :], "label": number % 2}
        for number, text in enumerate(texts)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    data = {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder / "cache")}
    for name, task in (tasks or TASKS).items():
        source = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps(source | task), "utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_tasks(tmp_path_factory.mktemp("harness"))
    tiny_run.write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> MTPCausalLM:
    return MTPCausalLM.from_preset(str(folder / "tiny.gguf"))


def language_model(model, **settings) -> HarnessLM:
    settings = {"name": "tiny", "max_length": 256, "batch_size": 8, "progress": False} | settings
    return HarnessLM(model, **settings)


@pytest.fixture(scope="module")
def both(folder, model) -> list:
    """Every task's results by our adapter and by lm-eval's own."""
    theirs = hugging_face_lm(folder / "tiny.gguf", model.tokenizer, batch_size=8)
    assert theirs.max_length == context_length(str(folder / "tiny.gguf")) == 256
    wish = harness.Wish(tasks=list(TASKS), path=folder)
    return list(zip(harness.ask(language_model(model), wish), harness.ask(theirs, wish), strict=True))


@pytest.mark.parametrize("place", range(len(TASKS)), ids=list(TASKS))
def test_scores_are_those_of_lm_evals_own_hugging_face_model(both, place):
    ours, theirs = both[place]
    assert ours.task == theirs.task == list(TASKS)[place] and ours.n == theirs.n == 40
    for mine, other in zip(ours.items, theirs.items, strict=True):
        if ours.task == "generate":
            assert mine["resps"] == other["resps"]
            continue
        mine, other = (
            np.array(item["resps"], "float64").reshape(-1, 1 + (place == 0)) for item in (mine, other)
        )
        np.testing.assert_allclose(mine[:, 0], other[:, 0], rtol=1e-6, atol=1e-4)
        np.testing.assert_array_equal(mine[:, 1:], other[:, 1:])  # whether it is the likeliest
    for mine, other in zip(ours.metrics, theirs.metrics, strict=True):
        assert (mine.name, mine.filter) == (other.name, other.filter)
        assert mine.value == pytest.approx(other.value, rel=1e-5)


def test_those_tasks_are_no_easy_ones(both):
    """Else they would not tell models apart: stops are met, texts are cut."""
    (choices, _), (rolling, _), (generate, _) = both
    assert 0 < choices.metrics[0].value < 1
    assert min(item["resps"][0][0] for item in rolling.items) < -256 * 5  # several windows
    answers = [item["resps"][0][0] for item in generate.items]
    assert len(set(answers)) > 10 and not any("box" in answer for answer in answers)


def test_a_prefix_stands_before_every_context_and_heads_do_not_matter():
    model = MTPCausalLM(tiny.backbone(), prefix_length=3, heads=[TransformerHead()])
    ids = tiny.token_ids(rows=5, tokens=9)
    logits = tiny.forward(lambda x: model(x)["head_1"], model.variables)(ids).astype("float64")
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    found = Scorer(model)([(row[: 3 + n].tolist(), row[3 + n :].tolist()) for n, row in enumerate(ids)])
    for n, (row, score) in enumerate(zip(ids, found, strict=True)):
        places = np.arange(3 + n, 9)
        assert score.log_likelihood == pytest.approx(logits[n, places - 1, row[places]].sum(), abs=1e-4)
        assert score.is_greedy == (logits[n, places - 1].argmax(-1) == row[places]).all()


def test_what_requests_share_is_read_once_and_passes_are_bounded(model):
    seen = []
    requests = [([5, 6, 7], [token]) for token in range(20)] + [([9] * n, [4, 5]) for n in (4, 900, 1000)]
    Scorer(model)(requests, lambda passes: seen.append(passes) or passes)
    assert sum(len(readings) for _, _, readings in seen[0]) == 4
    assert all(rows * width <= PASS_TOKENS for rows, width, _ in seen[0])
    assert Scorer(model)([]) == []


def generated(lm, *contexts, **settings) -> list[str]:
    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(context, dict(settings)), idx=n)
        for n, context in enumerate(contexts)
    ]
    return lm.generate_until(requests)


@pytest.mark.slow
def test_answers_do_not_depend_on_their_batch_and_are_drawn_anew_where_a_task_samples(model):
    contexts = ["how many", "the apples are", "each"]
    answers = [
        generated(language_model(model, batch_size=size), *contexts, max_gen_toks=8, until=["\n"])
        for size in (1, 8)
    ]
    assert answers[0] == answers[1] and len(set(answers[0])) > 1
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
    lm = language_model(model, batch_size=2)
    first = generated(lm, *["how many"] * 6, **drawn)
    assert len(set(first)) == 6 and generated(lm, *["how many"] * 6, **drawn) == first
    del drawn["temperature"]  # which is 1 then
    assert generated(lm, *["how many"] * 6, **drawn) == first


@pytest.mark.slow
def test_a_stop_may_be_a_special_token_which_no_text_shows(model):
    prompt, letter = "the apples are", "V"  # which the model says to that
    config = model.tokenizer.get_config()
    special = tokenizers.Tokenizer.from_str(config["backend"])
    special.add_special_tokens([tokenizers.AddedToken(letter, special=True, normalized=False)])
    tokenizer = Tokenizer.from_config({**config, "backend": special.to_str()})
    ids = model.generate([tokenizer.encode(prompt)], max_new_tokens=12, stop_ids=tokenizer.eos_ids)[0]
    place = ids.index(special.token_to_id(letter))
    lm = language_model(MTPCausalLM(model.backbone, tokenizer=tokenizer))
    (cut,) = generated(lm, prompt, max_gen_toks=12, until=[letter])
    assert 0 < place < len(ids) - 1 and cut == tokenizer.decode(ids[:place])
    assert letter not in tokenizer.decode(ids)


STRIPPING = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + STRIPPING


@pytest.mark.any_backend
@pytest.mark.parametrize("template", [None, STRIPPING, NO_SYSTEM], ids=["own", "stripping", "no system"])
def test_chat_prompts_are_those_of_lm_evals_own(folder, model, template):
    if template:
        model = MTPCausalLM(model.backbone, tokenizer=model.tokenizer.with_template(template))
    lm = language_model(model)
    theirs = hugging_face_lm(folder / "tiny.gguf", model.tokenizer)
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " 1 + 1? "},
        {"role": "assistant", "content": "It is "},
    ]
    for chat in (turns[1:], turns):
        assert lm.apply_chat_template(chat, add_generation_prompt=False) == theirs.apply_chat_template(
            chat, add_generation_prompt=False
        )
        assert lm.apply_chat_template(chat[:-1]) == theirs.apply_chat_template(chat[:-1])


@pytest.mark.slow
def test_a_run_keeps_what_the_tasks_gave_and_a_base_model_shows_it(folder, tmp_path):
    run = tmp_path / "run"
    pipeline.run(
        tiny_run.recipe(folder, heads__count=0, training__steps=1, evaluation__limit=1), run, progress=False
    )
    asked = ["--harness", "choices, rolling", "--harness-path", str(folder), "--limit", "6"]
    asked += ["--backend", keras.config.backend(), "--chat"]
    shown = CliRunner().invoke(cli, ["evaluate", str(run), *asked])
    assert shown.exit_code == 0, shown.stderr
    kept = json.loads((run / "harness" / "choices.json").read_text())
    assert (kept["n"], kept["setup"]["chat"], kept["setup"]["max_length"]) == (6, True, 253)
    assert len(kept["items"]) == 6 and {"acc", "resps", "doc_id"} <= kept["items"][0].keys()
    assert f"{kept['metrics'][0]['value']:.4f}" in shown.stdout and "acc_norm" in shown.stdout
    base = CliRunner().invoke(cli, ["evaluate", "--model", str(folder / "tiny.gguf"), *asked, "--json"])
    first, second = json.loads(base.stdout)
    assert (first["task"], first["setup"]["max_length"], second["task"]) == ("choices", 256, "rolling")
    assert second["metrics"] != json.loads((run / "harness" / "rolling.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("task", "complaint"),
    [
        ({**CHOICES, "doc_to_choice": ["a", "a b" * 30]}, "have 1 to 20 tokens of its own. Received: 60"),
        ({**GENERATE, "generation_kwargs": {"num_beams": 4}}, "Received: num_beams. Choose another"),
        (GENERATE, "`--max-length` must leave room for a prompt. Received: 20 tokens"),
        ({**GENERATE, "unsafe_code": True}, "'odd', which runs code"),
        ({**CHOICES, "dataset_path": "no/such-data"}, "lm-eval cannot load odd: "),
    ],
    ids=["a long continuation", "beams", "no room", "code", "no data"],
)
def test_what_cannot_be_asked_is_refused(tmp_path, model, task, complaint):
    write_tasks(tmp_path, odd={"target_delimiter": "", **task})
    with pytest.raises(UserError) as error:
        harness.ask(language_model(model, max_length=20), harness.Wish(tasks=["odd"], path=tmp_path, limit=2))
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.any_backend
def test_a_continuation_without_a_token_is_refused(model):
    request = Instance(request_type="loglikelihood", doc={}, arguments=("each", ""), idx=0)
    with pytest.raises(UserError, match="Received: 0, '' after 'each'"):
        language_model(model).loglikelihood([request], disable_tqdm=True)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(
            ["--harness", "arc_esy"],
            "Received: 'arc_esy'. Did you mean `arc_easy`?",
            marks=pytest.mark.slow,  # all of lm-eval's tasks are read
        ),
        (["--harness", " ,"], "`--harness` must name at least one task."),
        (["--harness", "arc_easy", "--harness-path", "nowhere"], "`--harness-path` must be a folder"),
        (["--harness", "arc_easy", "--data", "hub"], "`--data` does not go with --harness"),
        (["--chat"], "go with --harness"),
    ],
)
def test_mistakes_are_one_line(folder, arguments, complaint):
    result = CliRunner().invoke(cli, ["evaluate", "--model", str(folder / "tiny.gguf"), *arguments])
    assert result.exit_code == 2 and result.stdout == ""
    assert complaint in result.stderr.splitlines()[-1]


@pytest.mark.any_backend
def test_without_lm_eval_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.evaluator", None)
    result = CliRunner().invoke(
        cli, ["evaluate", "--model", str(folder / "tiny.gguf"), "--harness", "arc_easy"]
    )
    assert result.exit_code == 2
    assert 'Run: pip install "keras_mtp[harness]"' in result.stderr
