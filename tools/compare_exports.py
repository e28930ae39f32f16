"""Exports finished runs in every format that holds them, and compares the logits that other programs give with the model's own.

    .venv/bin/python tools/compare_exports.py RUN [RUN ...] --data FOLDER
    .venv/bin/python tools/compare_exports.py RUN --quick --json exports.json

For every prompt, the logits of `head_1` at every token, as absolute differences from the same weights in double precision
(float64_llama.py), so that no rounding of ours is in them. What transformers reads is computed in double precision too; of the other
programs, which compute in float32, a difference is their own rounding:

    saved_model     OpenVINO, with INFERENCE_PRECISION_HINT=f32    within 1e-3
    peft            PEFT on transformers' Llama                    within 1e-4
    transformers    transformers                                   within 1e-4
    onnx            ONNX Runtime                                   within 1e-4

or within 4e-6 of the largest logit, where that is more. The prompts are the first of GSM8K's test set. Exit code 1 where a
difference is larger. OpenVINO is in no extra: `pip install openvino`, best in an environment of its own; without it the SavedModel
is left out. A base model in a GGUF file is read by transformers itself, which keeps norms, rotations and the products of packed
weights in float32. `--exports DIR` keeps the exports, and uses again those that are there.

SmolLM2-135M after 3 to 5 steps on GSM8K, on two CPU cores; OpenVINO read another run with a prefix, and was compared with the model in
process, in float32. The last three had 12, 120 and 200 steps:

    method     format        read by                               n tokens     apart  allowed  largest
    prefix     peft          PEFT 0.21.2, transformers 5.23.0     50   4518   6.8e-05  1.6e-04     41.1  yes
    prefix     saved_model   OpenVINO 2026.4.1                    10    929   1.8e-04  1.0e-03     40.4  yes
    prefix_kv  peft          PEFT 0.21.2, transformers 5.23.0     50   4518   6.8e-05  1.6e-04     40.9  yes
    prefix_kv  onnx          ONNX Runtime 1.32.0                  50   4518   7.9e-05  1.6e-04     40.9  yes
    lora       peft          PEFT 0.21.2, transformers 5.23.0     50   4518   4.6e-05  1.7e-04     41.9  yes
    lora       transformers  transformers 5.23.0                  50   4518   4.3e-05  1.7e-04     41.9  yes
    lora       onnx          ONNX Runtime 1.32.0                  50   4518   1.2e-04  1.7e-04     41.9  yes
    prefix     onnx          ONNX Runtime 1.32.0                  50   4518   1.1e-04  1.6e-04     40.7  yes
    prefix     onnx          ONNX Runtime 1.32.0                  50   4518   1.3e-04  1.6e-04     41.2  yes
    prefix     onnx          ONNX Runtime 1.32.0                  50   4518   3.0e-04  1.6e-04     40.5  NO

So float32 does not always give 1e-4. The forward pass of the last run, written in torch for 8 of the prompts, is 1.7e-4 from double
precision; with any one of its parts in double precision (the products of a kind, attention, norms, the residual stream, the
unembedding) it is 1.4e-4 to 2.3e-4, and with all but one still up to 9.5e-5.
"""

import argparse
import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from keras_mtp import backend
from keras_mtp.errors import UserError
from keras_mtp.export import formats
from keras_mtp.recipe import Recipe, load_recipe
from tools.named_runs import own_name

ALLOWED = {"saved_model": 1e-3, "peft": 1e-4, "transformers": 1e-4, "onnx": 1e-4}
ROUNDING = 4e-6  # of the largest logit: some thirty units in float32's last place, one for every block
Logits = Callable[[np.ndarray], np.ndarray]  # token ids (1, T) -> (1, T, V)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of one export: the largest difference and the largest logit, over so many tokens of so many prompts."""

    method: str
    form: str
    read_by: str
    prompts: int
    tokens: int
    apart: float
    largest: float

    @property
    def allowed(self) -> float:
        return max(ALLOWED[self.form], ROUNDING * self.largest)

    @property
    def holds(self) -> bool:
        return self.apart <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.method:<10} {self.form:<13} {self.read_by:<34} {self.prompts:>4} {self.tokens:>6} {self.apart:>9.1e} "
            f"{self.allowed:>8.1e} {self.largest:>8.1f}  {'yes' if self.holds else 'NO'}"
        )


HEADING = f"{'method':<10} {'format':<13} {'read by':<34} {'n':>4} {'tokens':>6} {'apart':>9} {'allowed':>8} {'largest':>8}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--data", default="builtin", help="hub, tfds, builtin or a folder")
    parser.add_argument("--formats", nargs="+", choices=list(formats.FORMATS), default=list(formats.FORMATS))
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="4 prompts")
    parser.add_argument("--exports", type=Path, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    backend.select("torch")
    with contextlib.ExitStack() as stack:
        exports = options.exports or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        print(HEADING, flush=True)
        rows = []
        prompts = 4 if options.quick else options.prompts
        for row in measured(options.runs, options.formats, exports, options.data, prompts):
            print(row, flush=True)
            rows.append(row)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(row) | {"holds": row.holds} for row in rows], indent=2) + "\n"
        )
    sys.exit(not all(row.holds for row in rows))


def measured(runs: list[Path], wanted: list[str], exports: Path, data: str, prompts: int) -> Iterator[Row]:
    """A row for every export, run by run."""
    from keras_mtp import runs as finished
    from keras_mtp.data.encoding import encode_prompt
    from keras_mtp.tasks import load_task
    from tools.float64_llama import Float64Llama

    questions = [example.prompt for example in load_task("gsm8k", data).examples("test")[:prompts]]
    for run in runs:
        recipe = load_recipe(run / "recipe.toml")
        folders = {form: exported(run, form, exports) for form in held_by(recipe, wanted)}
        model = finished.load(run)
        ids = [np.array([encode_prompt(question, model.tokenizer)], "int32") for question in questions]
        exact = Float64Llama(model)
        apart, largest = dict.fromkeys(folders, 0.0), 0.0
        with contextlib.ExitStack() as stack:
            readers = {
                form: stack.enter_context(reader(form, folder, recipe, model))
                for form, folder in folders.items()
            }
            for prompt in ids:
                expected = exact.logits(prompt)[0]
                largest = max(largest, float(np.abs(expected).max()))
                for form, (_, read) in readers.items():
                    difference = read(prompt) - expected
                    apart[form] = max(apart[form], float(np.abs(difference).max()))
        for form, (name, _) in readers.items():
            yield Row(
                method=recipe.tuning.method,
                form=form,
                read_by=name,
                prompts=len(ids),
                tokens=sum(prompt.size for prompt in ids),
                apart=apart[form],
                largest=largest,
            )


def held_by(recipe: Recipe, wanted: list[str]) -> list[str]:
    """Those of the formats that can hold a run and can be read here; says of the others why they are left out."""
    found = []
    for form in wanted:
        try:
            formats.require(form, recipe)
        except UserError as error:
            print(f"Left out: {error}", file=sys.stderr)
            continue
        if form == "saved_model" and importlib.util.find_spec("openvino") is None:
            print("Left out: the SavedModel, since `openvino` is not installed.", file=sys.stderr)
            continue
        found.append(form)
    return found


def exported(run: Path, form: str, exports: Path) -> Path:
    """The folder of an export, made by the command, which chooses its own backend."""
    folder = exports / f"{own_name(run)}-{form}"
    if not folder.exists():
        command = [sys.executable, "-m", "keras_mtp", "export", str(run), str(folder), "--format", form]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@contextlib.contextmanager
def reader(form: str, folder: Path, recipe: Recipe, model) -> Iterator[tuple[str, Logits]]:
    """`(the program's name and version, what asks it for logits)`."""
    if form == "saved_model":
        yield openvino(folder)
    elif form == "onnx":
        yield onnx_runtime(folder)
    elif form == "transformers":
        yield hugging_face(folder)
    else:
        with base_of(recipe, model) as (base, options):
            yield hugging_face(base, adapter=folder, **options)


def openvino(folder: Path) -> tuple[str, Logits]:
    import openvino as ov

    compiled = ov.Core().compile_model(str(folder), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return f"OpenVINO {ov.__version__.partition('-')[0]}", lambda ids: compiled({"token_ids": ids})["logits"]


def onnx_runtime(folder: Path) -> tuple[str, Logits]:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return f"ONNX Runtime {onnxruntime.__version__}", lambda ids: session.run(["logits"], {"token_ids": ids})[
        0
    ]


def hugging_face(folder: Path, *, adapter: Path | None = None, **options) -> tuple[str, Logits]:
    import peft
    import torch
    import transformers

    name = f"transformers {transformers.__version__}"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **options).to(
        "cpu"
    )
    if adapter is not None:
        name = f"PEFT {peft.__version__}, {name}"
        model = peft.PeftModel.from_pretrained(model, adapter)
    model.eval()

    def read(ids: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(ids, dtype=torch.long, device="cpu")).logits
        return logits[:, -ids.shape[1] :].numpy()  # behind a prefix

    return name, read


@contextlib.contextmanager
def base_of(recipe: Recipe, model) -> Iterator[tuple[Path, dict]]:
    """Where transformers finds the base model, and its options: a GGUF file it reads itself."""
    from keras_mtp.export.for_hugging_face import original
    from keras_mtp.models.backbone import locate

    path = locate(recipe.model.name)
    if path.is_file():
        yield path.parent, {"gguf_file": path.name}
        return
    with (
        tempfile.TemporaryDirectory() as scratch,
        original(model, recipe.model.name, Path(scratch)) as folder,
    ):
        yield folder, {}


if __name__ == "__main__":
    main()
