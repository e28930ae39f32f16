"""Asks tasks of lm-eval of an untouched model, through keras_mtp and through lm-eval's own Hugging Face model.

    .venv/bin/python tools/compare_harness.py --backend jax --harness TASK,TASK --harness-path FOLDER --limit 100

Same weights, read from the same file by keras_mtp and by transformers. Prints, for every task, its metrics by both, the
largest difference of a log-likelihood, and how many generated texts differ. Needs what `tools/test` installs.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="jax")
    parser.add_argument("--model", default="smollm2-135m", help="a GGUF file, or smollm2-135m")
    parser.add_argument("--harness", required=True, metavar="TASK[,TASK...]")
    parser.add_argument("--harness-path", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--chat", action="store_true")
    options = parser.parse_args()
    from keras_mtp import backend

    backend.select(options.backend)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    from keras_mtp import MTPCausalLM, harness
    from keras_mtp.harness.language_model import HarnessLM
    from keras_mtp.models.backbone import locate
    from tests.harness_reference import hugging_face_lm

    model = MTPCausalLM.from_preset(options.model)
    ours = HarnessLM(model, name=options.model, max_length=options.max_length, batch_size=16)
    theirs = hugging_face_lm(
        locate(options.model), model.tokenizer, max_length=options.max_length, batch_size=4
    )
    print(f"{options.model}, {options.backend}: keras_mtp, HFLM", flush=True)
    for task in options.harness.split(","):
        wish = harness.Wish(tasks=[task], path=options.harness_path, limit=options.limit, chat=options.chat)
        for mine, other in zip(harness.ask(ours, wish), harness.ask(theirs, wish), strict=True):
            for a, b in zip(mine.metrics, other.metrics, strict=True):
                print(f"{mine.task:<20} {a.name:<16} {a.filter:<18} {a.value:.6f}  {b.value:.6f}  n={mine.n}")
            print(f"{mine.task:<20} {differences(mine.items, other.items)}", flush=True)


def differences(ours, theirs) -> str:
    """How far the answers of two models are apart, item by item."""
    pairs = [(a["resps"], b["resps"]) for a, b in zip(ours, theirs, strict=True)]
    flat = [(x, y) for mine, other in pairs for x, y in zip(_flat(mine), _flat(other), strict=True)]
    numbers = [(x, y) for x, y in flat if isinstance(x, float)]
    others = [(x, y) for x, y in flat if not isinstance(x, float)]
    said = []
    if numbers:
        largest = max(abs(x - y) for x, y in numbers)
        relative = max(abs(x - y) / max(abs(y), 1.0) for x, y in numbers)
        said.append(
            f"{len(numbers)} log-likelihoods, largest difference {largest:.1e}, relative {relative:.1e}"
        )
    if others:
        different = [(x, y) for x, y in others if x != y]
        said.append(
            f"{len(different)} of {len(others)} other answers differ"
            + "".join(f"\n    {x!r}\n    {y!r}" for x, y in different if isinstance(x, str))
        )
    return "; ".join(said)


def _flat(answers) -> list:
    if isinstance(answers, (list, tuple)):
        return [x for answer in answers for x in _flat(answer)]
    return [answers]


if __name__ == "__main__":
    main()
