"""Runs readers on damaged files, some hundred to a child process: what kills a process is counted like any crash."""

import dataclasses
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from keras_mtp.errors import UserError
from tools.fuzzing import mutations
from tools.fuzzing.readers import READERS, Reader, number_fields

CHUNK, HANG_SECONDS, STOP_SECONDS, MEMORY = 500, 1.0, 30, 4 << 30
SHARED_MEMORY = Path("/dev/shm")


@dataclasses.dataclass
class Counts:
    """What came of the inputs of one reader.

    Args:
        inputs: how many there were; the next one has this number.
        clean: read without complaint. refused: by a `UserError`.
        crashes, hangs: the first hundred of each, [number of the input, what was seen].
    """

    inputs: int = 0
    clean: int = 0
    refused: int = 0
    crashes: list[Any] = dataclasses.field(default_factory=list)
    hangs: list[Any] = dataclasses.field(default_factory=list)

    def add(self, other: "Counts") -> None:
        self.inputs, self.clean, self.refused = (
            self.inputs + other.inputs,
            self.clean + other.clean,
            self.refused + other.refused,
        )
        self.crashes = (self.crashes + other.crashes)[:100]
        self.hangs = (self.hangs + other.hangs)[:100]


class Bench:
    """A reader with its good folder and the files to damage."""

    def __init__(self, name: str, folder: Path, seed: int):
        self.name, self.reader, self.folder, self._seed = name, READERS[name], folder, seed
        self.reader.prepare(folder)
        self.reader.read(folder)  # the good one must be good
        self._path = folder / self.reader.file
        self._seeds = [self._path.read_bytes(), *self.reader.seeds]
        self._fields = _fields(self.reader, self._seeds[0])

    def try_input(self, number: int) -> Counts:
        """Makes an input, and sees what its reader does."""
        self.write(number)
        counts, begin = Counts(inputs=1), time.process_time()
        signal.alarm(STOP_SECONDS)
        try:
            self.reader.read(self.folder)
            counts.clean = 1
        except UserError:
            counts.refused = 1
        except BaseException as error:
            counts.crashes = [[number, f"{type(error).__name__}: {error!s:.200}", _last_lines(error)]]
        finally:
            signal.alarm(0)
        if (seconds := time.process_time() - begin) > HANG_SECONDS:
            counts.hangs = [[number, f"{seconds:.1f} s"]]
        return counts

    def write(self, number: int) -> None:
        """Puts input `number` in its place."""
        rng = np.random.default_rng([self._seed, *self.name.encode(), number])
        made = _made(rng, self.reader.kind, self._seeds, self._fields)
        self._path.write_bytes(made)


def run(names: list[str], each: int, *, seed: int, path: Path | None = None) -> dict[str, Counts]:
    """Gives every reader so many inputs, and keeps the counts in a file as it goes."""
    counts = _read(path, seed)
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as folder:
        for name in names:
            place = Path(folder) / name
            place.mkdir()
            bench = Bench(name, place, seed)
            mine = counts.setdefault(name, Counts())
            while mine.inputs < each:
                mine.add(_in_a_child(bench, range(mine.inputs, min(mine.inputs + CHUNK, each))))
                _write(path, seed, counts)
    return counts


def repeat(name: str, seed: int, number: int) -> None:
    """One input again, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, Path(folder), seed)
        bench.write(number)
        kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{number}"
        kept.write_bytes((Path(folder) / bench.reader.file).read_bytes())
        print(f"The input is {kept}.")
        bench.reader.read(Path(folder))
        print("It was read without complaint.")


def table(counts: dict[str, Counts]) -> str:
    """The counts as a table in Markdown."""
    rows = [[name, c.inputs, c.clean, c.refused, len(c.crashes), len(c.hangs)] for name, c in counts.items()]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 6))])
    lines = [
        "| reader | inputs | read | refused | crashes | hangs |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in row) + " |"
        for row in rows
    ]
    for name, count in counts.items():
        kinds = Counter(seen[1][:100] for seen in count.crashes + count.hangs)
        first = {seen[1][:100]: seen[0] for seen in reversed(count.crashes + count.hangs)}
        lines += [
            f"{name}: {times} x {kind} (first: --reader {name} --only {first[kind]})"
            for kind, times in kinds.items()
        ]
    return "\n".join(lines)


def _in_a_child(bench: Bench, numbers: range) -> Counts:
    context = multiprocessing.get_context("fork")
    current, (mine, theirs) = context.Value("q", numbers.start), context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(bench, numbers, current, theirs))
    child.start()
    theirs.close()
    counts = Counts()
    try:
        counts = mine.recv()
    except EOFError:  # it died: what came before the deadly input is tried again without it
        deadly = current.value
        child.join()
        counts = _in_a_child(bench, range(numbers.start, deadly)) if deadly > numbers.start else Counts()
        counts.add(Counts(inputs=1, crashes=[[deadly, f"the process died, exit code {child.exitcode}", ""]]))
    child.join()
    return counts


def _child(bench: Bench, numbers: range, current: Any, answer: Any) -> None:
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # Rust's panics and HDF5's own tracebacks
    signal.signal(signal.SIGALRM, _stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    warnings.simplefilter("error", RuntimeWarning)
    total = Counts()
    for number in numbers:
        current.value = number
        total.add(bench.try_input(number))
    answer.send(total)
    answer.close()
    os._exit(0)


def _stop(*_: Any) -> None:
    raise TimeoutError(f"stopped after {STOP_SECONDS} s")


def _made(rng: np.random.Generator, kind: str, seeds: list[bytes], fields: list[tuple[int, int]]) -> bytes:
    content = seeds[rng.integers(len(seeds))]
    if fields and rng.integers(2):
        return mutations.with_number(rng, seeds[0], fields)
    if kind == "safetensors" and rng.integers(2):
        length = int.from_bytes(content[:8], "little")
        header = mutations.other_json(rng, content[8 : 8 + length].decode()).encode()
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    if kind == "values" or (kind in ("text", "json", "lines") and rng.integers(4)):
        return _other_text(rng, kind, content.decode()).encode("utf-8", "surrogatepass")
    return mutations.damaged(rng, content, seeds)


def _other_text(rng: np.random.Generator, kind: str, text: str) -> str:
    if kind == "text":
        return mutations.other_text(rng, text)
    if kind in ("json", "values"):
        return mutations.other_json(rng, text)
    lines = text.splitlines()
    place = int(rng.integers(len(lines)))
    lines[place] = mutations.other_json(rng, lines[place])
    return "\n".join(lines)


def _fields(reader: Reader, content: bytes) -> list[tuple[int, int]]:
    return number_fields(reader.kind, content) if reader.kind in ("gguf", "safetensors") else []


def _last_lines(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-3:])


def _read(path: Path | None, seed: int) -> dict[str, Counts]:
    if path is None or not path.is_file():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["seed"] != seed:
        raise SystemExit(f"{path} was begun with --seed {kept['seed']}. Give that one, or another file.")
    return {name: Counts(**counts) for name, counts in kept["readers"].items()}


def _write(path: Path | None, seed: int, counts: dict[str, Counts]) -> None:
    if path is not None:
        kept = {"seed": seed, "readers": {name: dataclasses.asdict(count) for name, count in counts.items()}}
        temporary = path.with_name(path.name + ".partial")
        temporary.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        temporary.replace(path)
