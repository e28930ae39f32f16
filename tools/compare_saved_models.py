"""Exports finished runs as SavedModels, and compares the tokens that a client without Keras gets with those of the model in process.

    .venv/bin/python tools/compare_saved_models.py RUN [RUN ...] --data FOLDER --work DIR --json FILE
    .venv/bin/python tools/compare_saved_models.py --quick                # a tiny run of its own: a minute

Every system answers the first prompts of GSM8K's test set greedily, in a process of its own, one prompt at a time and in
batches of 8, ragged, padded on the right:

    saved_model       as the export's README.md says: transformers' tokenizer, `tf.saved_model.load`, the signature `generate`, in a
                      process in which an import of keras or keras_hub fails
    tensorflow        the run, loaded by keras_mtp, with the heads' drafts, as `keras-mtp generate --speculate` answers
    jax, torch        the same on another backend, in batches alone; with `--backends`

`differ` counts the prompts whose answers part. The first difference has a margin, computed by the model on TensorFlow, in the
run's precision: how far the less likely of the two tokens is behind the likeliest one, in logits. The SavedModel must say what
the model on TensorFlow says, every token of every prompt. Other backends, and another size of batches, round otherwise, and may
differ where the margin is below 1e-3. Exit code 1 where a difference is not allowed, or a prompt's token ids are not the same.

SmolLM2-135M on GSM8K's test set, `--prompts 500 --new-tokens 16 --backends jax torch`, in float32, two CPU cores: of runs trained on
TensorFlow, JAX and torch, with a prefix and one or two transformer heads, the same for each

    compared                             prompts  tokens differ
    saved_model by 1 - tensorflow by 1       500    8000      0
    saved_model by 8 - tensorflow by 8       500    8000      0
    saved_model by 1 - saved_model by 8      500    8000      0
    saved_model by 8 - jax by 8              500    8000      0
    saved_model by 8 - torch by 8            500    8000      0

(7998 tokens of the run trained on TensorFlow, where an answer ended.)

`--work DIR` keeps exports and answers: what was cut off goes on there. Needs what `tools/test` installs.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from keras_mtp import backend
from tools.named_runs import own_name, weights_of
from tools.partings import TIE, Logits
from tools.saved_models.answering import Job
from tools.saved_models.comparing import HEADING, Row, compared
from tools.saved_models.processes import answer, exported, tiny_run_in
from tools.saved_models.systems import SAVED_MODEL

REFERENCE = "tensorflow"
ALONE, TOGETHER = 1, 8  # questions at a time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--data", default="builtin", help="hub, tfds, builtin or a folder")
    parser.add_argument(
        "--backends", nargs="+", choices=["jax", "torch"], default=[], help="compare these too"
    )
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument(
        "--alone", type=int, help="how many of them one at a time, if not all: it takes longest"
    )
    parser.add_argument("--new-tokens", type=int, default=64, help="of the longest answer")
    parser.add_argument("--quick", action="store_true", help="a few prompts; without RUN a tiny run")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where to keep answers, and exports")
    parser.add_argument("--exports", type=Path, metavar="DIR", help="where to keep exports, if elsewhere")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not (options.runs or options.quick):
        parser.error("give a RUN, or --quick")
    with contextlib.ExitStack() as stack:
        options.work = (options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))).resolve()
        options.exports = (options.exports or options.work / "exports").resolve()
        if options.quick:
            options.prompts, options.new_tokens = 5, 12
        if not options.runs:
            options.runs = [tiny_run_in(options.work / "quick")]
        print(HEADING, flush=True)
        rows = []
        for row in measured(options):
            print(row, flush=True)
            rows.append(row)
            if options.json:
                write(rows, options.json)
    sys.exit(not all(row.holds for row in rows))


def measured(options: argparse.Namespace) -> Iterator[Row]:
    """A row for every pair of systems, run by run."""
    from keras_mtp.tasks import load_task

    examples = load_task("gsm8k", options.data).examples("test")[: options.prompts]
    together = (TOGETHER, len(examples))
    alone = (ALONE, len(examples) if options.alone is None else min(options.alone, len(examples)))
    systems = {SAVED_MODEL: [together, alone], REFERENCE: [together, alone]}
    systems |= {name: [together] for name in options.backends}
    for run in options.runs:
        name = own_name(run)
        jobs = {
            system: Job(
                system=system,
                run=str(run.resolve()),
                export=str(exported(run, options.exports / name)),
                about=weights_of(run),
                questions=[example.prompt for example in examples],
                batches=batches,
                new_tokens=options.new_tokens,
                folder=str(options.work / name),
            )
            for system, batches in systems.items()
        }
        for job in jobs.values():
            answer(job)
        yield from rows_of(run, jobs)


def rows_of(run: Path, jobs: dict[str, Job]) -> Iterator[Row]:
    """The SavedModel beside every other system, and beside itself by another size of batches."""
    pairs = [(REFERENCE, batch, batch, 0.0) for batch in (ALONE, TOGETHER)]
    pairs += [(SAVED_MODEL, ALONE, TOGETHER, TIE)]
    pairs += [(name, TOGETHER, TOGETHER, TIE) for name in jobs if name not in (SAVED_MODEL, REFERENCE)]
    trained_on = json.loads((run / "report.json").read_text())["backend"]
    job = jobs[SAVED_MODEL]
    stop_ids = json.loads((Path(job.export) / "generation_config.json").read_text())["eos_token_id"]
    logits = reference(run)
    for other, batch, others_batch, allowed in pairs:
        ours, others = job.answered(batch), jobs[other].answered(others_batch)
        count = min(len(ours.answers), len(others.answers))
        if not count:
            continue
        tokens, otherwise, partings = compared(
            ours.first(count),
            others.first(count),
            new_tokens=job.new_tokens,
            stop_ids=stop_ids,
            logits=logits,
        )
        yield Row(
            run=run.name,
            trained_on=trained_on,
            a=SAVED_MODEL,
            b=other,
            batches=(batch, others_batch),
            prompts=count,
            tokens=tokens,
            encoded_otherwise=otherwise,
            partings=partings,
            allowed=allowed,
        )


def reference(run: Path) -> Logits:
    """The run's logits on TensorFlow; loads it when it is first asked."""
    loaded: list = []

    def logits(ids: list[int]) -> np.ndarray:
        if not loaded:
            backend.select(REFERENCE)
            from keras_mtp import runs

            loaded.append(runs.load(run))
        from keras_mtp.export.another_program import logits_of

        return logits_of(loaded[0], np.array([ids], "int32"))[0, -1]

    return logits


def write(rows: list[Row], file: Path) -> None:
    found = [asdict(row) | {"largest_margin": row.largest_margin, "holds": row.holds} for row in rows]
    file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
