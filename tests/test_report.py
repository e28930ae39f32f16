import csv
import dataclasses
import json

import pytest

from keras_mtp import curves, report
from keras_mtp.memory_plan import Prediction
from keras_mtp.report import page

pytestmark = pytest.mark.any_backend


def example(heads: int = 2, **changes) -> report.Report:
    held_out = {
        f"head_{k}": report.HeadResult(loss_before=1.5 * k, loss_after=0.9 * k, top1_before=0.61, top1=0.74)
        for k in range(1, heads + 1)
    }
    values = {
        "recipe": "gsm8k",
        "backend": "jax",
        "model": "smollm2-135m",
        "model_licence": "Apache-2.0",
        "data": "generated word problems (not GSM8K)",
        "data_source": "builtin",
        "data_licence": "CC0-1.0",
        "is_benchmark": False,
        "seed": 3,
        "steps": 40,
        "held_out": held_out,
        "held_out_n": 64,
        "task": report.TaskResult(metric="exact_match", value_before=0.0, value=0.25, n=48),
        "tokens_per_second": 312.4,
        "peak_bytes": 3 * 2**29,
        "seconds": 90.0,
        "padding_share": 0.06,
        "skipped_examples": 12,
        "date": "2025-01-02T03:04:05+00:00",
        "versions": {"keras": "3.15.1"},
        "command": ["keras-mtp", "recipe", "runs/a b/recipe.toml", "--backend", "jax"],
    }
    return report.Report(**(values | changes))


def rows(heads: int = 2) -> list[dict]:
    warmup = (
        [{"stage": "warmup", "step": s, "head_2_loss": 10.0 / s} for s in range(1, 4)] if heads > 1 else []
    )
    joint: list[dict] = [{"stage": "joint", "step": 0}]
    joint += [{"stage": "joint", "step": s, "head_1_loss": 1.5 - s / 10} for s in range(1, 5)]
    for row in joint[::2]:
        row |= {f"held_out_head_{k}_loss": k * (1.5 - row["step"] / 10) for k in range(1, heads + 1)}
        row |= {f"held_out_head_{k}_top1": 0.5 for k in range(1, heads + 1)}
    return warmup + joint


def test_json_has_the_documented_keys(tmp_path):
    report.write(example(), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert list(written) == [
        "recipe", "backend", "model", "data", "method", "tuned_weights", "seed", "steps", "held_out", "task",
        "tokens_per_second", "peak_bytes",
    ]  # fmt: skip
    assert written["held_out"] == {
        "head_1": {"loss_before": 1.5, "loss_after": 0.9, "top1": 0.74},
        "head_2": {"loss_before": 3.0, "loss_after": 1.8, "top1": 0.74},
        "n": 64,
    }
    assert written["task"] == {"metric": "exact_match", "value_before": 0.0, "value": 0.25, "n": 48}


def test_markdown_says_what_was_run_on_what(tmp_path):
    report.write(example(), tmp_path)
    text = (tmp_path / "report.md").read_text()
    for fact in (
        "Licence: Apache-2.0",
        "Licence: CC0-1.0",
        "seed 3",
        "40 joint optimizer steps",
        "12 training examples",
    ):
        assert fact in text
    assert "    keras-mtp recipe 'runs/a b/recipe.toml' --backend jax\n" in text
    assert "| head_1: held-out loss, nats per token (64 examples) | 1.5000 | 0.9000 |" in text


def test_markdown_says_which_model_it_was_and_what_its_licence_wants_shown():
    changes = {"model_revision": "abc123", "model_sha256": "f" * 64, "model_notice": "Built with Llama."}
    text = page.markdown(example(model="org/name", model_licence="llama3.2", **changes))
    assert f"org/name, revision abc123, SHA-256 {'f' * 64}. Licence: llama3.2. Built with Llama." in text


def test_a_diverged_run_is_still_json(tmp_path):
    diverged = dataclasses.replace(example(), tokens_per_second=float("nan"))
    report.write(diverged, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["tokens_per_second"] is None


def test_prediction_stands_beside_what_was_measured():
    predicted = Prediction(workload=None, phases={"training": {"program": 2.0**30, "weights": 2.0**29}})
    text = page.markdown(example(predicted=predicted))
    assert "1.50 GiB at the peak beyond the imports (1.50 predicted before training)." in text
    assert "1.50 GiB at the peak beyond the imports." in page.markdown(example())
    assert example(predicted=predicted).to_json()["predicted_peak_bytes"] == 3 * 2**29


def test_share_has_its_wilson_interval():
    row = "| exact match on 48 test items | 0.0% (0.0% to 7.4%) | 25.0% (14.9% to 38.8%) |"
    assert row in page.markdown(example())


@pytest.mark.parametrize("text", [page.markdown, page.summary])
def test_generated_problems_are_never_called_the_benchmark(text):
    caution = "not comparable with any published one"
    generated = " ".join(text(example()).split())
    assert caution in generated
    assert generated.count("GSM8K") == generated.count("generated word problems (not GSM8K)") > 0
    real = " ".join(text(example(data="GSM8K", is_benchmark=True)).split())
    assert caution not in real
    assert "on GSM8K (jax" in real


def test_data_of_the_users_own_are_called_that():
    own = example(
        data="my.jsonl",
        data_source="/home/me/my.jsonl",
        data_note="Test split: 4 of the file's 40 examples",
        truncated_examples=3,
        marked_examples=2,
    )
    for text in (page.markdown(own), page.summary(own)):
        flat = " ".join(text.split())
        assert "The data are my.jsonl: the score is not comparable with any published one" in flat
    assert "Test split: 4 of the file's 40 examples\n" in page.markdown(own)
    assert (
        "12 training examples were skipped and 3 truncated for their length, 2 skipped for holding"
        in page.markdown(own)
    )


def by_source(heads: int = 2) -> report.Report:
    """A report with a second measure, and with two sources, one of a name that Markdown and rich would read."""
    plain = example(heads)
    further = [report.TaskResult(metric="exact_match", value_before=0.125, value=0.5, n=48)]
    score = report.TaskResult(
        metric="token_f1", value_before=0.25, value=0.75, n=48, passed_over=3, further=further
    )
    sources = {
        name: report.SourceResult(heads=plain.held_out, n=n) for name, n in (("cnn", 60), ("[/a|b]\n", 4))
    }
    return dataclasses.replace(plain, task=score, held_out_by_source=sources)


def test_json_has_further_measures_and_sources_where_there_are_any():
    written = by_source().to_json()
    assert written["task"] == {
        "metric": "token_f1",
        "value_before": 0.25,
        "value": 0.75,
        "n": 48,
        "passed_over": 3,
        "further": {"exact_match": {"value_before": 0.125, "value": 0.5}},
    }
    assert list(written["held_out_by_source"]) == ["cnn", "[/a|b]\n"]
    assert written["held_out_by_source"]["cnn"] == {**written["held_out"], "n": 60}


def test_markdown_has_further_measures_and_sources_where_there_are_any():
    text = page.markdown(by_source())
    assert (
        "| token F1 on 48 test items | 25.0% (" in text and "| exact match on 48 test items | 12.5% (" in text
    )
    assert "3 test items were passed over, their prompts being too long" in text
    assert "| source | examples | head_1 before | head_1 after | head_2 before | head_2 after |" in text
    assert "| cnn | 60 | 1.5000 | 0.9000 | 3.0000 | 1.8000 |\n| [/a\\|b] | 4 |" in text
    for words in ("by source", "passed over"):
        assert words not in page.markdown(example())


def test_summary_shows_the_sources_by_head_1():
    lines = page.summary(by_source(heads=4)).splitlines()
    assert max(map(len, lines)) <= 100
    assert ["cnn", "60", "1.5000", "0.9000"] in [line.split() for line in lines]
    assert any(line.split()[0] == "[/a|b]" for line in lines if line)


def test_summary_fits_a_terminal():
    lines = page.summary(example(heads=3)).splitlines()
    assert max(map(len, lines)) <= 100
    assert any(line.split()[-2:] == ["1.5000", "0.9000"] for line in lines if "head_1: held-out loss" in line)


def test_curves_are_drawn_from_rows_in_memory_and_from_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({key for row in rows() for key in row}), restval="")
        writer.writeheader()
        writer.writerows(rows())
    with path.open(newline="") as file:
        read_back = list(csv.DictReader(file))
    for some in (rows(), read_back):
        figure = curves.draw(some, title="model on $data", subtitle="seed 0")
        warmup, first, further = figure.axes
        assert warmup.get_lines()[0].get_ydata().tolist() == [10.0, 5.0, 10.0 / 3]
        held_out = first.get_lines()[1]
        assert held_out.get_xdata().tolist() == [0, 2, 4]
        assert held_out.get_ydata() == pytest.approx([1.5, 1.3, 1.1])
        assert [text.get_text() for text in first.texts] == ["before 1.500", "after 1.100"]
        assert "head_2" in further.get_title()
        assert "nats" in warmup.get_ylabel() and "step" in first.get_xlabel()


def test_plot_names_data_model_backend_and_seed(tmp_path):
    report.plot(rows(1), example(1), tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    title = curves.draw(rows(1), title="a", subtitle="b")
    assert len(title.axes) == 1  # without further heads there is no warm-up


def test_heads_trained_alone_are_called_that():
    assert "40 optimizer steps of the heads alone, seed 3" in page.markdown(example(heads_alone=True))
    alone = [row | {"stage": "heads"} for row in rows() if row["stage"] == "joint"]
    (axis,) = curves.draw(alone, title="a", subtitle="b").axes  # head_1 stays as it is
    assert axis.get_title() == "heads alone, head_2"


def test_report_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        example().seed = 1


def test_a_run_that_answered_nothing_has_no_score_to_show():
    nothing = report.TaskResult(metric="exact_match", value_before=float("nan"), value=float("nan"), n=0)
    unanswered = example(task=nothing)
    assert "exact match" not in page.summary(unanswered) + page.markdown(unanswered)
    assert unanswered.to_json()["task"] == {
        "metric": "exact_match",
        "value_before": None,
        "value": None,
        "n": 0,
    }
