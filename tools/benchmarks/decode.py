"""Times decoding: ours, beside keras-hub's and transformers' `generate` and llama.cpp, on the same weights.

Systems of a group are alive together and take turns, round by round; a round decodes every row's new tokens greedily, and
nothing stops before. Tokens per second are those of all rows over the time after the first token, the median over rounds;
reading the prompts is shown apart. The ceiling is how fast memory can be read: the best of ten or more sums over 1 GiB in
two threads, made between the turns.
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.table import Table

from keras_mtp.backend import BACKENDS
from keras_mtp.errors import UserError
from keras_mtp.models.location import DEFAULT_MODEL
from keras_mtp.run_folder import require_run
from tools.benchmarks import decode_results, decode_turns, decode_workload, machine
from tools.benchmarks.bandwidth import ReadBandwidth
from tools.benchmarks.decode_results import WIDTHS, Measured
from tools.benchmarks.decode_turns import PEERS
from tools.benchmarks.decoded import Case, Workload
from tools.benchmarks.decoders import DECODERS
from tools.benchmarks.screen import console

BATCHES, CONTEXTS = (1, 8, 32), (128, 1024)
DISTRIBUTIONS = {"transformers": "transformers", "llama_cpp": "llama-cpp-python"}
PACKAGES = ("keras", "keras-hub", "jax", "tensorflow", "torch", "transformers", "llama-cpp-python")
progress = console(stderr=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's options."""
    parser.add_argument("--data", default="builtin", help="builtin, hub, or a folder with GSM8K's files")
    parser.add_argument("--model", help=f"a model's name or path; default: the run's, else {DEFAULT_MODEL}")
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument("--run", dest="run_folder", metavar="RUN", type=Path, help="a run with trained heads")
    heads.add_argument("--train-steps", metavar="N", type=_positive, help="train heads first, for N steps")
    parser.add_argument(
        "--heads", type=_positive, default=2, help="beyond head_1, with --train-steps; default: 2"
    )
    parser.add_argument("--systems", nargs="+", choices=DECODERS, default=tuple(DECODERS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--dtypes", nargs="+", choices=WIDTHS, help="default: both; float32 with --quick")
    parser.add_argument("--batches", nargs="+", type=_positive, help="default: 1 8 32; 1 with --quick")
    parser.add_argument("--contexts", nargs="+", type=_positive, help="default: 128 1024; 128 with --quick")
    parser.add_argument("--new-tokens", type=_positive, help="per row; default: 64; 32 with --quick")
    parser.add_argument("--rounds", type=_positive, help="default: 5; 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="batch 1, short context, float32, all at once")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return value


def run(options: argparse.Namespace) -> None:
    """Measures, shows a table, and writes JSON."""
    try:
        _fill_in(options)
        with tempfile.TemporaryDirectory() as folder:
            workload = decode_workload.prepare(options, Path(folder))
            measured, ceilings, failed = _measure(options, workload)
    except UserError as error:
        sys.exit(f"Error: {error}")
    if not measured:
        sys.exit("Error: no system could be measured; the reasons stand above.")
    found = {
        "rows": decode_results.rows(measured, workload.weights, ceilings),
        "ratios": decode_results.ratios(measured),
        "agreements": decode_results.agreements(measured),
        "read_bytes_per_second": decode_results.spread(ceilings),
        "new_tokens": workload.new_tokens,
        "failed": failed,
        "machine": machine.describe(filter(_is_installed, PACKAGES)),
        "command": " ".join(sys.argv),
        "data": Path(options.data).name,
    }
    _show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _fill_in(options: argparse.Namespace) -> None:
    quick = options.quick
    options.dtypes = options.dtypes or list(WIDTHS)[: 1 if quick else None]
    options.batches = options.batches or BATCHES[: 1 if quick else None]
    options.contexts = options.contexts or CONTEXTS[: 1 if quick else None]
    options.new_tokens = options.new_tokens or (32 if quick else 64)
    options.rounds = options.rounds or (2 if quick else 5)
    if options.run_folder:
        require_run(options.run_folder, "--run")
        if options.model:
            raise UserError(
                "`--model` must not be given with --run, which has its own. Leave one of them out."
            )
    options.model = options.model or DEFAULT_MODEL
    options.systems = [name for name in options.systems if _can_run(name)]
    options.modes = ["plain", "speculative"] if options.run_folder or options.train_steps else ["plain"]


def _can_run(name: str) -> bool:
    if name not in PEERS or importlib.util.find_spec(name):
        return True
    progress.print(
        f"{name}: left out, {DISTRIBUTIONS[name]} is not installed (see tools/benchmark-requirements.txt)",
        soft_wrap=True,
    )
    return False


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def _measure(options: argparse.Namespace, workload: Workload) -> tuple[list[Measured], dict, list[str]]:
    measured: list[Measured] = []
    ceilings: dict[tuple[int, Case], list[float]] = {}
    failed: list[str] = []
    bandwidth = ReadBandwidth()
    for number, group in enumerate(decode_turns.groups(options)):
        with decode_turns.Turns(number, group, workload, bandwidth, progress) as turns:
            measured += turns.measure(options.rounds, options.modes)
            ceilings |= turns.ceilings
            failed += turns.failed
    usable = decode_results.usable(measured)
    for m in (m for m in measured if m.rounds and m not in usable):
        progress.print(f"{m.system.name} {m.label()}: left out, the machine was too busy to tell its time")
    return usable, ceilings, failed


def _show(found: dict) -> None:
    title = f"Decoding, {found['new_tokens']} new tokens, {found['machine']['processor']}"
    table = Table(title=title)
    for heading in ("system", "backend", "dtype", "mode"):
        table.add_column(heading)
    for heading in ("batch", "context", "tokens/s", "per pass", "of ceiling", "prefill s"):
        table.add_column(heading, justify="right")
    for row in found["rows"]:
        table.add_row(
            *(str(row[key]) for key in ("system", "backend", "dtype", "mode", "batch", "context")),
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_pass']:.2f}",
            f"{row['share_of_ceiling']:.0%}",
            f"{row['prefill_seconds']:.2f}",
        )
    output = console()
    output.print(table)
    output.print("our tokens per second over theirs, in the same rounds:")
    for label, others in found["ratios"].items():
        output.print(f"  {label}: " + ", ".join(f"{name} {ratio:.2f}x" for name, ratio in others.items()))
    best, middle = (found["read_bytes_per_second"][key] / 1e9 for key in ("best", "median"))
    output.print(
        f"memory is read at {best:.1f} GB/s at best, {middle:.1f} in the median: far apart if others are busy"
    )
    output.print(f"leading tokens alike, of {1 + found['new_tokens']}:")
    for label, count in found["agreements"].items():
        output.print(f"  {label}: {count}")
