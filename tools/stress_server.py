"""Asks too much of `keras-mtp serve`: ten times what it can answer, nonsense, and to end while it answers.

    .venv/bin/python tools/stress_server.py DIR --json stress.json      # DIR: what `keras-mtp export RUN DIR` wrote
    .venv/bin/python tools/stress_server.py DIR --quick                 # seconds instead of minutes

    overload      for `--seconds`, requests come ten times as often as the server answers them. Each must end: with 200 and the text
                  that it gives alone, or with 429. Then one alone must be answered as before.
    hostile       `--hostile` requests of nonsense, noise and clients that go away. No status of 500 or above, nobody's place kept,
                  and the same answer afterwards.
    drain         SIGTERM while answers stream: all must come to their end, and then the server's process.
    clients       the official `openai` client, and curl in TensorFlow Serving's shape, 1, 8 and 32 at a time: the tokens that the
                  SavedModel's `generate` gives in this process, without Keras
    speculative   one client, with the heads' drafts and without (`serve --plain`), by turns: the same texts, tokens per second after the
                  first. Plain passes run over as many rows, padding counted, as those with drafts.

SmolLM2-135M with three sequential heads, float32, two CPU cores that others used as well:

    overload      5,385 sent in 300 s at 10 x 1.8 a second: 700 answered, 4,685 refused, no other text; 4.29 to 4.32 GB
    hostile       5,000: 4,310 refused, 275 answered, 281 gone, 134 connections closed; no place kept, the same answer afterwards
    drain         4 streams, none lost
    clients       32 questions, 1,477 tokens, asked in three ways by 1, 8 and 32: none differs
    speculative   27.5 against 14.3 tokens per second, 1.89 times plain, 2.55 tokens a pass, the same texts

Everything is sent from this machine to itself alone. Exit code 1 where something does not hold.
"""

import argparse
import asyncio
import json
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.stress.clients import clients
from tools.stress.hostile import attack
from tools.stress.served import Served

BATCH, QUEUE = 4, 16  # answers at a time, and further ones that may wait
TOO_MUCH = 10
SHORT, LONG = 16, 96  # tokens of an answer
PARTS = ("overload", "hostile", "drain", "clients", "speculative")
CUT_OFF: dict = {}  # no event at all; a stream ends with None
PROMPTS = [f"Tom has {n} apples and buys {n + 3} more. How many has he now?" for n in range(2, 10)]
ENDED = (0, -signal.SIGTERM)  # uvicorn passes the signal on once all has been answered
Found = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--seconds", type=int, default=300, help="of overload")
    parser.add_argument("--hostile", type=int, default=5000, help="requests of nonsense")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="5 seconds, 100 requests")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.hostile = 5, 100
    found = asyncio.run(stressed(options))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(part["holds"] for part in found.values()))


async def stressed(options: argparse.Namespace) -> dict[str, Found]:
    """The parts that are wanted."""
    found = {}
    async for name, part in parts(options):
        found[name] = part
        print(f"{name}: {json.dumps(part)}", flush=True)
    return found


async def parts(options: argparse.Namespace) -> AsyncIterator[tuple[str, Found]]:
    """Those of one small server, which ends with the drain; then those that start their own."""
    wanted = set(options.parts)
    if wanted & {"overload", "hostile", "drain"}:
        served = Served(
            options.folder, f"--max-batch={BATCH}", f"--max-queue={QUEUE}", "--max-new-tokens=128"
        )
        await served.ready()
        expected = {prompt: (await served.complete(prompt, SHORT))[1] for prompt in PROMPTS}
        if "overload" in wanted:
            yield "overload", await overload(served, expected, options.seconds)
        if "hostile" in wanted:
            yield "hostile", await hostile(served, expected, options.hostile, options.seed)
        if "drain" in wanted:
            yield "drain", await drain(served)
        served.end()
    if "clients" in wanted:
        yield "clients", await clients(options.folder)
    if "speculative" in wanted:
        yield "speculative", await speculative(options.folder)


async def overload(served: Served, expected: dict[str, str], seconds: int) -> Found:
    """Requests by the clock, whatever becomes of those before."""
    alone = await answered_as_before(served, expected)
    capacity = await answered_a_second(served, max(5.0, seconds / 10))
    before, peak = served.resident_bytes, 0
    counts, slowest, others, running = Counter[int](), {200: 0.0, 429: 0.0}, 0, set()

    async def ask(prompt: str) -> None:
        nonlocal others
        begun = time.monotonic()
        status, text = await served.complete(prompt, SHORT)
        counts[status] += 1
        slowest[status] = max(slowest.get(status, 0.0), time.monotonic() - begun)
        others += status == 200 and text != expected[prompt]

    begun, sent = time.monotonic(), 0
    while (now := time.monotonic() - begun) < seconds:
        if sent < now * TOO_MUCH * capacity:
            task = asyncio.create_task(ask(PROMPTS[sent % len(PROMPTS)]))
            running.add(task)
            task.add_done_callback(running.discard)
            sent += 1
        else:
            peak = max(peak, served.resident_bytes)
            await asyncio.sleep(0.02)
    await asyncio.gather(*running)
    after = await answered_as_before(served, expected)
    return {
        "capacity_per_second": round(capacity, 2),
        "sent": sent,
        "answered": counts[200],
        "refused": counts[429],
        "slowest_answer_seconds": round(slowest[200], 2),
        "slowest_refusal_seconds": round(slowest[429], 2),
        "other_texts": others,
        "resident_before": before,
        "resident_peak": peak,
        "alone_seconds": round(alone, 2),
        "alone_after_seconds": round(after, 2),
        "holds": sent == counts[200] + counts[429] and counts[429] > 0 and not others and after < alone + 2,
    }


async def answered_as_before(served: Served, expected: dict[str, str]) -> float:
    """Seconds that one request takes, alone."""
    begun = time.monotonic()
    status, text = await served.complete(PROMPTS[0], SHORT)
    if status != 200 or text != expected[PROMPTS[0]]:
        sys.exit(f"Error: asked alone, the server says {text!r} with status {status}.")
    return time.monotonic() - begun


async def answered_a_second(served: Served, seconds: float) -> float:
    """By as many clients as it answers at a time, each with a request after the other."""
    begun, done = time.monotonic(), 0

    async def client(place: int) -> None:
        nonlocal done
        while time.monotonic() < begun + seconds:
            await served.complete(PROMPTS[place % len(PROMPTS)], SHORT)
            done += 1

    await asyncio.gather(*(client(place) for place in range(BATCH)))
    return done / (time.monotonic() - begun)


async def hostile(served: Served, expected: dict[str, str], count: int, seed: int) -> Found:
    """Nonsense, and what it left behind."""
    counts, kept = await attack(served, count, seed), -1.0
    for _ in range(100):  # who went away is noticed between two passes
        kept = await served.metric("keras_mtp_running") + await served.metric("keras_mtp_waiting")
        if not kept:
            break
        await asyncio.sleep(0.1)
    await answered_as_before(served, expected)
    failures = sum(n for status, n in counts.items() if status.startswith("5"))
    return {
        "sent": count,
        "by_status": dict(sorted(counts.items())),
        "places_kept": kept,
        "holds": not failures and not kept and sum(counts.values()) == count,
    }


async def drain(served: Served) -> Found:
    """Told to end while it answers as many as it can at a time."""
    expected = [(await served.complete(prompt, LONG))[1] for prompt in PROMPTS[:BATCH]]
    begun = asyncio.Barrier(BATCH + 1)

    async def client(prompt: str) -> str:
        text, events = "", served.stream(prompt, LONG)
        event = await anext(events, CUT_OFF)
        await begun.wait()
        while event:
            text += "".join(choice["text"] for choice in event["choices"])
            event = await anext(events, CUT_OFF)
        return text if event is None else f"cut off: {text}"

    clients = [asyncio.create_task(client(prompt)) for prompt in PROMPTS[:BATCH]]
    await begun.wait()
    served.tell_to_end()
    texts = await asyncio.gather(*clients)
    code = await asyncio.to_thread(served.end)
    lost = sum(a != b for a, b in zip(texts, expected, strict=True))
    return {"streams": BATCH, "lost": lost, "exit_code": code, "holds": not lost and code in ENDED}


async def speculative(folder: Path) -> Found:
    """Two servers of the same folder, one asked after the other."""
    both = {"drafts": Served(folder), "plain": Served(folder, "--plain")}
    for served in both.values():
        await served.ready()
        await timed(served, PROMPTS[0])  # whatever is made at a first request
    ratios, speeds, others = [], {name: [] for name in both}, 0
    for prompt in PROMPTS:
        said = {name: await timed(served, prompt) for name, served in both.items()}
        others += said["drafts"][0] != said["plain"][0]
        for name, (_, speed) in said.items():
            speeds[name].append(speed)
        ratios.append(said["drafts"][1] / said["plain"][1])
    tokens = await both["drafts"].metric("keras_mtp_tokens_per_pass_sum")
    passes = await both["drafts"].metric("keras_mtp_tokens_per_pass_count")
    for served in both.values():
        served.end()
    return {
        "tokens_per_second": {name: round(statistics.median(found), 1) for name, found in speeds.items()},
        "times_plain": round(statistics.median(ratios), 2),
        "tokens_per_pass": round(tokens / passes, 2),
        "other_texts": others,
        "holds": not others,
    }


async def timed(served: Served, prompt: str) -> tuple[str, float]:
    """(the answer, tokens per second after the first)."""
    text, times, tokens = "", [], 0
    async for event in served.stream(prompt, LONG):
        if event is not None:
            times.append(time.monotonic())
            text += "".join(choice["text"] for choice in event["choices"])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return text, (tokens - 1) / max(times[-1] - times[0], 1e-9)


if __name__ == "__main__":
    main()
