"""Exports for Hugging Face's libraries: what PEFT and transformers make of them is what the model says."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from peft import PeftModel

from keras_mtp import LinearHead, MTPCausalLM, UserError, pipeline, runs
from keras_mtp.cli import cli
from keras_mtp.data.encoding import encode_prompt
from keras_mtp.export import for_hugging_face, pages
from keras_mtp.export.peft_adapter import write_adapter
from keras_mtp.models.backbone import base_info, load_backbone
from keras_mtp.tuning import PROJECTIONS
from tests import tiny, tiny_hugging_face, tiny_run

IDS = tiny.token_ids(3, 11)
OPTIONS = {
    "prompt tuning": {"prefix_length": 4},
    "prefix tuning": {"prefix_length": 4, "prefix_kind": "key_values"},
    "LoRA": {"lora_rank": 3, "lora_alpha": 5.0, "lora_targets": PROJECTIONS},
}
# Two key-value heads, each for two query heads.
SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder of transformers' Llama; wide embeddings, so that attention is not even."""
    theirs = tiny_hugging_face.reference(**SIZES)
    theirs.model.embed_tokens.weight.data *= 50
    folder = tiny_hugging_face.save(theirs, tmp_path_factory.mktemp("models") / "original")
    (folder / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    return folder


def _trained(original, options) -> MTPCausalLM:
    """A model in which everything that can be trained was moved."""
    backbone, tokenizer = load_backbone(str(original))
    model = MTPCausalLM(backbone, tokenizer=tokenizer, heads=[LinearHead()], **options)
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


@pytest.fixture(scope="module")
def adapters(original, tmp_path_factory):
    """For every kind of adapter: the model, what was exported."""
    made = {}
    for kind, options in OPTIONS.items():
        model = _trained(original, options)
        folder = tmp_path_factory.mktemp("adapters") / "made"
        base = base_info(str(original))
        made[kind] = (
            model,
            for_hugging_face.export_adapter(model, folder, base=base, name=str(original)),
        )
    return made


@pytest.mark.parametrize("kind", OPTIONS)
def test_peft_says_what_the_model_says(original, adapters, kind):
    model, exported = adapters[kind]
    theirs = tiny_hugging_face.LlamaForCausalLM.from_pretrained(original)
    plain = tiny_hugging_face.logits(theirs.eval(), IDS)
    tuned = PeftModel.from_pretrained(theirs, exported.folder).eval()
    found, expected = (
        tiny_hugging_face.logits(tuned, IDS)[:, -IDS.shape[1] :],
        tiny.forward(model)(IDS)["head_1"],
    )
    assert np.abs(expected - plain).max() > 0.05 * np.abs(plain).max()
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert f"an adapter for PEFT, {kind}" == exported.what and exported.left_out == ("head_2",)
    assert 0 <= exported.agreement.logits_differ_by < 1e-4 * exported.agreement.logits_up_to


@pytest.mark.parametrize("kind", OPTIONS)
def test_what_an_adapters_folder_holds(original, adapters, kind):
    _, exported = adapters[kind]
    folder = exported.folder
    assert [path.name for path in folder.parent.iterdir()] == ["made"]
    assert {path.name for path in folder.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "base_licence.txt", "tokenizer"),
    }
    modes = {(folder / name).stat().st_mode for name in ("adapter_model.safetensors", "README.md")}
    assert len(modes) == 1  # safetensors would let the owner alone read it
    page, base = (folder / "README.md").read_text("utf-8"), base_info(str(original))
    assert page.startswith("---\nlibrary_name: peft\nlicense: llama3.2\n---\n")
    assert base.sha256 in page and "head_2" in page
    assert "Built with Llama" in (folder / "base_licence.txt").read_text("utf-8")
    assert ("PEFT's rank is larger" in page) == (kind == "LoRA")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] is None


@pytest.mark.any_backend
def test_an_adapter_names_the_hubs_model_and_revision(original, adapters, tmp_path):
    model, _ = adapters["prompt tuning"]
    base = dataclasses.replace(base_info(str(original)), source="hf://org/name@main", revision="abc")
    kind = write_adapter(model, tmp_path, base)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "abc")
    page = pages.of_adapter(model, base, kind, original)
    assert "base_model: org/name\n" in page and 'from_pretrained("org/name", revision="abc", ' in page
    assert 'from_pretrained("FOLDER", gguf_file="a.gguf", ' in pages.of_adapter(
        model, base, kind, _file(tmp_path)
    )


def _file(folder):
    path = folder / "a.gguf"
    path.touch()
    return path


@pytest.mark.any_backend
@pytest.mark.parametrize("kind", OPTIONS)
def test_the_pages_client_answers_as_the_model_does(original, adapters, kind):
    model, exported = adapters[kind]
    said = _run_client(exported.folder, '"original"', f'"{original}"')
    assert said["ids"] == encode_prompt(said["question"], model.tokenizer)
    expected = model.generate(said["ids"], max_new_tokens=64)
    assert [token for token in said["answer"] if token not in model.tokenizer.eos_ids] == expected


def _run_client(folder, *replaced) -> dict:
    (client,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), flags=re.DOTALL)
    code = client.replace(*replaced) if replaced else client
    assert not replaced or code != client
    code += "\nimport json; print(json.dumps([ids, said[0, len(ids) :].tolist()]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ids, answer = json.loads(done.stdout.splitlines()[-1])
    return {"ids": ids, "answer": answer, "question": re.search(r'"content": "(.*?)"', client)[1]}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run with LoRA on a GGUF file, exported by the command both ways: (run, {format: (folder, what it said)})."""
    folder = tmp_path_factory.mktemp("export")
    tiny_run.write_inputs(folder)
    recipe = tiny_run.recipe(folder, tuning__method="lora", training__learning_rate=0.05)
    pipeline.run(recipe, folder / "run", progress=False)
    said = {}
    for form in ("peft", "transformers"):
        target = folder / "made" / form
        result = CliRunner().invoke(
            cli,
            ["export", str(folder / "run"), str(target), "--format", form, "--json"],
            catch_exceptions=False,
        )
        assert result.exit_code == 0, result.stderr
        assert "head_2 and head_3 will not be in it" in result.stderr
        said[form] = target, json.loads(result.stdout)
    return folder / "run", said


def test_the_command_says_how_it_compared(done):
    run, said = done
    for folder, result in said.values():
        assert result["folder"] == str(folder) and result["left_out"] == ["head_2", "head_3"]
        agreement = result["agreement"]
        assert agreement["logits_differ_by"] < 1e-4 * agreement["logits_up_to"] and agreement["places"] > 80
        assert (folder / "recipe.toml").read_text() == (run / "recipe.toml").read_text()
    assert "PEFT" in said["peft"][1]["read_by"]


def test_a_whole_llama_is_a_base_model_like_any_other(done):
    run, said = done
    folder = said["transformers"][0]
    model, (backbone, tokenizer) = runs.load(run), load_backbone(str(folder))
    again = MTPCausalLM(backbone, tokenizer=tokenizer)
    expected = tiny.forward(model)(IDS)["head_1"]
    np.testing.assert_allclose(
        tiny.forward(again)(IDS)["head_1"], expected, atol=1e-5 * np.abs(expected).max()
    )
    assert encode_prompt("2 + 3?", tokenizer) == encode_prompt("2 + 3?", model.tokenizer)
    assert tokenizer.eos_ids == model.tokenizer.eos_ids
    assert base_info(str(folder)).licence == "cc0-1.0"


@pytest.mark.any_backend
def test_a_whole_llamas_client_answers_as_the_model_does(done):
    run, said = done
    model, found = runs.load(run), _run_client(said["transformers"][0])
    assert found["ids"] == encode_prompt(found["question"], model.tokenizer)
    expected = model.generate(found["ids"], max_new_tokens=64)
    assert [token for token in found["answer"] if token not in model.tokenizer.eos_ids] == expected


def test_weights_that_are_not_the_models_are_found_and_nothing_is_left(original, tmp_path, monkeypatch):
    model, written = _trained(original, OPTIONS["prompt tuning"]), for_hugging_face.write_adapter

    def write_then_train(model, *rest):
        kind = written(model, *rest)
        model.prefix.embeddings.assign(model.prefix.embeddings + 1.0)
        return kind

    monkeypatch.setattr(for_hugging_face, "write_adapter", write_then_train)
    with pytest.raises(UserError, match=r"the logits \(batch\) are up to .* apart"):
        for_hugging_face.export_adapter(
            model, tmp_path / "a" / "b", base=base_info(str(original)), name=str(original)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.any_backend
def test_runs_and_folders_that_are_refused(done, tmp_path):
    run, said = done

    def refused(*arguments):
        result = CliRunner().invoke(cli, ["export", *map(str, arguments)])
        assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
        return result.stderr

    assert "`DIR` must not exist yet" in refused(run, said["peft"][0], "--format", "peft")
    unknown = refused(run, tmp_path / "x", "--format", "gguf")
    assert all(name in unknown for name in ("saved_model", "peft", "transformers", "onnx"))
    recipe = (run / "recipe.toml").read_text()
    (tmp_path / "recipe.toml").write_text(recipe)
    assert "No finished checkpoint" in refused(tmp_path, tmp_path / "x", "--format", "peft")
    (tmp_path / "recipe.toml").write_text(recipe.replace('method = "lora"', 'method = "full"'))
    assert "`--format transformers`" in refused(tmp_path, tmp_path / "x", "--format", "peft")
    (tmp_path / "recipe.toml").write_text(recipe.replace('method = "lora"', 'method = "prefix"'))
    assert "`--format peft`" in refused(tmp_path, tmp_path / "x", "--format", "transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]
