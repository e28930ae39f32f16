import dataclasses
import json

import numpy as np
import pytest

from keras_mtp.data.example import Example
from keras_mtp.data.targets import head_targets, pad
from keras_mtp.errors import UserError
from keras_mtp.evaluation import HeadScore, HeldOutEvaluation, TaskScore, asked, write_answers
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.gguf_tokenizer import read_tokenizer
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.recipe import EvaluationRecipe
from keras_mtp.tasks import Task
from tests import tiny
from tests.tiny_gguf import write_tiny_gguf


def _expected(model, items) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per item: nats, hits and tokens, from whole logits in float64."""
    ids, is_answer = pad(items, 24)
    targets, weights = head_targets(ids, is_answer, model.head_names)
    found = {}
    for name, logits in tiny.forward(model)(ids).items():
        logits = logits.astype("float64")
        nats = (
            np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, targets[name][..., None], -1)[..., 0]
        )
        hits = logits.argmax(-1) == targets[name]
        found[name] = tuple((v * weights[name]).sum(1) for v in (nats, hits, np.ones_like(nats)))
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_scores_are_totals_over_tokens_item_by_item(batch_size):
    model = MTPCausalLM(tiny.backbone(), prefix_length=4, heads=[TransformerHead(start="random")])
    items = tiny.encoded(11)
    scores = HeldOutEvaluation(model, items, batch_size)()
    for name, (nats, hits, tokens) in _expected(model, items).items():
        np.testing.assert_allclose(scores[name].nats, nats, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(scores[name].hits, hits)
        np.testing.assert_array_equal(scores[name].tokens, tokens)
        assert scores[name].loss == pytest.approx(nats.sum() / tokens.sum(), rel=1e-5)
        assert scores[name].top1 == hits.sum() / tokens.sum()


def test_evaluation_sees_the_weights_of_the_moment():
    model = MTPCausalLM(tiny.backbone(), prefix_length=4)
    evaluate = HeldOutEvaluation(model, tiny.encoded(5), 5)
    before = evaluate()["head_1"].loss
    model.prefix_embedding.embeddings.assign(-5 * model.prefix_embedding.embeddings)
    assert evaluate()["head_1"].loss != before


def test_answers_file(tmp_path):
    examples = [Example(id="a", prompt="1?", answer="1"), Example(id="b", prompt="2?", answer="2")]
    before = TaskScore(metric="exact_match", scores=(0.0, 0.0), completions=("x", "y"))
    after = TaskScore(metric="exact_match", scores=(1.0, 0.0), completions=("1", "é"))
    write_answers(tmp_path / "answers.jsonl", examples, before, after)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text("utf-8").splitlines()]
    assert [row["score"] for row in rows] == [1.0, 0.0] and rows[1]["after"] == "é"
    assert after.value == 0.5 and after.n == 2


def test_answers_file_has_what_else_there_is(tmp_path):
    example = Example(id="a", prompt="1?", answer="1", references=("one",), source="sums")
    before = TaskScore(metric="f1", scores=(0.5,), completions=("x",), further={"exact": (0.0,)})
    after = TaskScore(metric="f1", scores=(1.0,), completions=("1",), further={"exact": (1.0,)})
    write_answers(tmp_path / "answers.jsonl", [example], before, after)
    assert json.loads((tmp_path / "answers.jsonl").read_text("utf-8")) == {
        "id": "a", "source": "sums", "prompt": "1?", "answer": "1", "references": ["one"],
        "before": "x", "score_before": 0.5, "exact_before": 0.0, "after": "1", "score": 1.0, "exact": 1.0,
    }  # fmt: skip
    assert after.further_values == {"exact": 1.0}


def test_the_score_on_a_part_is_that_of_its_items():
    score = HeadScore(nats=np.array([1.0, 2.0, 6.0]), hits=np.array([1, 0, 2]), tokens=np.array([1, 1, 3]))
    assert (score.part([0, 2]).loss, score.part([1]).top1) == (7 / 4, 0.0)


@pytest.mark.parametrize(
    ("limit", "longest", "ids", "passed_over"), [(2, 0, "ab", 0), (2, 200, "ac", 1), (9, 200, "ac", 2)]
)
def test_test_items_with_long_prompts_are_passed_over(tokenizer, limit, longest, ids, passed_over):
    found, count = asked(_Named(), tokenizer, EvaluationRecipe(limit=limit, max_prompt_tokens=longest))
    assert ("".join(example.id for example in found), count) == (ids, passed_over)


def test_test_items_with_a_special_tokens_text_are_refused_or_passed_over(tokenizer):
    class Marked(_Named):
        def examples(self, split):
            first, *others = super().examples(split)
            return [dataclasses.replace(first, prompt="a <|im_end|> b"), *others]

    wanted = EvaluationRecipe(limit=2)
    with pytest.raises(UserError, match=r"Test item a: A turn must not hold the text of a special token"):
        asked(Marked(), tokenizer, wanted)
    found, passed_over = asked(Marked(), tokenizer, wanted, "skip")
    assert ([example.id for example in found], passed_over) == (["b", "c"], 1)


def test_no_test_items_are_asked_where_none_are_wanted(tokenizer):
    assert asked(_Named(), tokenizer, EvaluationRecipe(test_limit=0, max_prompt_tokens=1)) == ([], 0)


def test_prompts_that_are_all_too_long_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"must leave a test item.* with which all 4 were passed over"):
        asked(_Named(), tokenizer, EvaluationRecipe(max_prompt_tokens=1))


class _Named(Task):
    """Four test items, the second and the last with long prompts."""

    def examples(self, split):
        long = "word " * 300
        return [
            Example(id=id, prompt=prompt, answer="1")
            for id, prompt in zip("abcd", ("x", long, "y", long), strict=True)
        ]

    def score(self, example, completion):
        return 1.0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_tiny_gguf(path, num_layers=1)
    return read_tokenizer(GGUFFile(path))


def test_an_evaluation_joins_the_row_of_its_step(tmp_path):
    log = MetricsLog(tmp_path / "m.csv", ("head_1",))
    score = HeldOutEvaluation(MTPCausalLM(tiny.backbone()), tiny.encoded(3), 3)()
    log.step("joint", 1, head_1_loss=2.0)
    log.evaluation(score)
    log.step("joint", 2, head_1_loss=1.0)
    log.close()
    assert log.rows[0]["held_out_head_1_loss"] == score["head_1"].loss
    assert "held_out_head_1_loss" not in log.rows[1]
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 3
