import json

import keras
import numpy as np
import pytest

from keras_mtp.data.example import Example
from keras_mtp.data.targets import head_targets, pad
from keras_mtp.evaluation import HeldOutEvaluation, TaskScore, write_answers
from keras_mtp.layers.transformer_head import TransformerHead
from keras_mtp.metrics import MetricsLog
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from tests import tiny


def _expected(model, items) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Per item: nats, hits and tokens, from whole logits in float64."""
    ids, is_answer = pad(items, 24)
    targets, weights = head_targets(ids, is_answer, model.head_names)
    found = {}
    for name, logits in model(ids).items():
        logits = keras.ops.convert_to_numpy(logits).astype("float64")
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
