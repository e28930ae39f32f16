"""Kills runs, breaks disks and flips bits, and counts what was lost: nothing may be.

    .venv/bin/python tools/crashtest.py --json FILE         100 kills on each backend, and all else
    .venv/bin/python tools/crashtest.py --quick             two minutes
    .venv/bin/python tools/crashtest.py --real FOLDER       besides, 10 kills of SmolLM2-135M on GSM8K's files in FOLDER, and what a
                                                            snapshot every 50 steps costs it, in thousandths of its time

    kills         SIGKILL while a toy run trains a prefix, LoRA or everything, at a random moment or in the middle of a save; the same command
                  line goes on with it. Identical: every byte of weights and optimizer, every loss, every answer is as in the run that nobody
                  killed
    repeats       runs of one seed, one after the other; identical in the same sense
    write points  every write, fsync, rename and removal of a save, killed, on a full disk, and on a broken one. Recovered: the previous or
                  the new snapshot is there, whole, and nothing else
    flips         of one bit anywhere in the newest snapshot, and truncations of its files. Detected: before any of it is used, with a
                  warning, and the run goes on from the snapshot before

A part that is in FILE already is not made again. Needs what `tools/test` installs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "tensorflow", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only this; may be repeated")
    parser.add_argument("--kills", type=int, default=100, help="on each backend (100)")
    parser.add_argument("--real", metavar="FOLDER", help="also kill runs of SmolLM2-135M on these data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="3 kills on one backend, 60 flips")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    backends = options.backend or (["torch"] if options.quick else list(BACKENDS))
    kills, repeats, flips = (3, 2, 60) if options.quick else (options.kills, 10, 2000)
    plan: list[tuple[str, str, int, list[str]]] = [("files", backends[0], flips, [])]
    for name in backends:
        plan += [("repeats", name, repeats, []), ("kills", name, kills, [])]
    if options.real:
        plan += [(part, backends[-1], 10, [options.real]) for part in ("real", "stall")]
    parts = json.loads(options.json.read_text())["parts"] if options.json and options.json.exists() else {}
    for part, name, count, data in plan:
        if f"{part} {name}" not in parts:
            parts[f"{part} {name}"] = run(part, name, count, options.seed, data)
            print(f"{part:8} {name:11} {parts[f'{part} {name}']}", flush=True)
            if options.json:
                options.json.write_text(json.dumps(totals(parts) | {"parts": parts}, indent=2) + "\n")
    found = totals(parts)
    print(" ".join(f"{key} {value}" for key, value in found.items()))
    held = all(found[what] == found[of] for what, of in HELD.items())
    sys.exit(0 if held else 1)


HELD = {"identical": "kills", "recovered": "write_points", "detected": "flips", "same": "repeats"}


def run(part: str, name: str, count: int, seed: int, data: list[str]) -> dict[str, int]:
    """Makes a part in a process of its own, and adds its findings up."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        environment["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/jax"  # hundreds of runs compile the same
        command = [
            sys.executable,
            "-m",
            "tools.crashes.worker",
            part,
            name,
            folder,
            str(count),
            str(seed),
            *data,
        ]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            found: Counter[str] = Counter()
            for line in process.stdout:
                found.update(counted(json.loads(line)))
        if process.returncode:
            logs = "".join(path.read_text(errors="replace")[-2000:] for path in Path(folder).glob("*.log"))
            sys.exit(f"The part {part} on {name} did not end well.\n{logs}")
    return dict(found)


def counted(finding: dict[str, Any]) -> dict[str, Any]:
    """A worker's finding as numbers to be added up."""
    if "kind" in finding:
        of, what = (
            ("write_points", "recovered") if finding["kind"] == "write_point" else ("flips", "detected")
        )
        return {of: 1, what: int(finding["held"])}
    if "runs" in finding:
        return {"repeats": finding["runs"], "same": finding["runs"] * finding["identical"]}
    if "stalled" in finding:
        return {f"per_mille_{finding['stalled']}": finding["per_mille"]}
    kills = finding["kills"]
    return {"kills": kills, "in_a_save": finding["in_a_save"], "identical": kills * finding["identical"]}


def totals(parts: dict[str, dict[str, int]]) -> dict[str, int]:
    """All parts together."""
    found: Counter[str] = Counter()
    for part in parts.values():
        found.update(part)
    names = (
        "kills",
        "identical",
        "in_a_save",
        "write_points",
        "recovered",
        "flips",
        "detected",
        "repeats",
        "same",
    )
    return {name: found[name] for name in names}


if __name__ == "__main__":
    main()
