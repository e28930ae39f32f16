"""One part of the crash test, on one backend, in a process of its own: a line of JSON for every finding.

python -m tools.crashes.worker PART BACKEND FOLDER COUNT SEED [DATA]
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keras_mtp import backend
from tools.crashes import toy

TRUNCATIONS = 0.15  # for every flip


def main() -> None:
    part, name, folder, count, seed, *data = sys.argv[1:]
    backend.select(name)
    with backend.first_imports():
        from keras_mtp import pipeline  # noqa: F401  slow, and nothing is computed yet

    for finding in PARTS[part](name, Path(folder), int(count), int(seed), *data):
        print(json.dumps(finding), flush=True)


def _kills(name: str, folder: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    from tools.crashes import kills

    return kills.kills(_arguments(name, folder), list(toy.METHODS), folder, count, seed)


def _real(name: str, folder: Path, count: int, seed: int, data: str) -> Iterator[dict[str, Any]]:
    from tools.crashes import kills

    def arguments(method: str, run: Path) -> list[str]:
        return toy.command(data, run, name, toy.real_settings(method))

    return kills.kills(arguments, ["prefix"], folder, count, seed)


def _stall(name: str, folder: Path, count: int, seed: int, data: str) -> Iterator[dict[str, Any]]:
    from tools.crashes import stall

    for method in toy.METHODS:
        share = stall.share(data, method, folder / method)
        yield {"stalled": method, "per_mille": round(1000 * share, 2)}


def _repeats(name: str, folder: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    from tools.crashes import kills

    arguments = _arguments(name, folder)
    first = kills.uninterrupted(arguments, "prefix", folder / "first")
    for place in range(1, count):
        again = kills.uninterrupted(arguments, "prefix", folder / f"again-{place}")
        yield {"runs": 2 if place == 1 else 1, "identical": again == first}


def _files(name: str, folder: Path, count: int, seed: int) -> Iterator[dict[str, Any]]:
    from tools.crashes import files, kills

    run = folder / "run"
    kills.cut_off(_arguments(name, folder), "prefix", run, CUT_OFF_AT)
    for recovered in files.write_points(run, folder / "work"):
        yield {"kind": "write_point", "held": recovered}
    for kind, detected in files.damages(run, count, round(TRUNCATIONS * count), seed):
        yield {"kind": kind, "held": detected}


def _arguments(name: str, folder: Path):
    from tests import tiny_run

    inputs = folder / "inputs"
    inputs.mkdir()
    tiny_run.write_inputs(inputs)
    return lambda method, run: toy.command(inputs, run, name, toy.settings(method), inputs / "tiny.gguf")


CUT_OFF_AT = 150  # an operation on the disk, after which several snapshots have been taken
PARTS = {"kills": _kills, "real": _real, "repeats": _repeats, "files": _files, "stall": _stall}

if __name__ == "__main__":
    main()
