"""Scaling on paper: laws of what was counted, seconds of a machine, where more devices stop paying."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from keras_mtp.errors import UserError
from tools.collective_calls import Collective, totals
from tools.on_paper.machine import Machine
from tools.on_paper.step import half, of_one_batch, step
from tools.on_paper.volumes import Counts, Volume
from tools.scaling import COUNTS, MESHES, job

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.any_backend

SHARE = 0.165  # of the peak
FILES = sorted(COUNTS.glob("*.json"))


def file_of(path, sizes, *, meshes=((2, 2),), **changes):
    """Counts as `tools/collectives.py` writes them: `sizes(layers, positions)` bytes along "model", 100 along "data"."""
    counts = [
        {
            "recipe": "gsm8k",
            "set": ["model.name=random:llama3.2_1b"],
            "data": data,
            "model": model,
            "layers": layers,
            "positions": positions,
            "chunk_rows": 128,
            "collectives": totals(
                [
                    Collective(kind="all-reduce", bytes=100, in_loop=False, devices=(0, model)),
                    Collective(
                        kind="all-reduce", bytes=sizes(layers, positions), in_loop=False, devices=(0, 1)
                    ),
                    Collective(kind="all-gather", bytes=256, in_loop=True, devices=(0, 1)),
                ],
                data,
                model,
            ),
        }
        | changes
        for data, model in meshes
        for layers in (1, 2)
        for positions in (1000, 2000)
    ]
    path.write_text(json.dumps({"commands": ["made up"], "counts": counts}))
    return path


def bytes_of(volumes):
    return {(volume.kind, volume.axis): volume.bytes for volume in volumes}


# Volumes


def test_counts_follow_a_law(tmp_path):
    counts = Counts.read(file_of(tmp_path / "c.json", lambda L, N: 7 + 3 * L + 5 * N + 2 * L * N))
    found = counts.volumes(64, 2, layers=16, positions=10000, labelled=2048, chunk_rows=1024)
    assert bytes_of(found) == pytest.approx(
        {
            ("all-reduce", "data"): 100,
            ("all-reduce", "model"): 7 + 3 * 16 + 5 * 10000 + 2 * 16 * 10000,
            ("all-gather", "model"): 256 / 128 * 2048,
        }
    )
    assert [v.calls for v in found if v.kind == "all-gather"] == pytest.approx([2])


def test_one_device_says_nothing_and_one_row_of_a_mesh_nothing_along_data(tmp_path):
    counts = Counts.read(file_of(tmp_path / "c.json", lambda L, N: L * N))
    wanted = {"layers": 4, "positions": 100, "labelled": 10, "chunk_rows": 128}
    assert counts.volumes(1, 1, **wanted) == []
    assert {volume.axis for volume in counts.volumes(1, 2, **wanted)} == {"model"}


def test_counts_off_the_law_are_refused(tmp_path):
    curved = file_of(tmp_path / "c.json", lambda L, N: N * N * L, meshes=((2, 2), (4, 2)))
    counts = json.loads(curved.read_text())
    counts["counts"][-1]["collectives"][-1]["bytes"] += 1000
    curved.write_text(json.dumps(counts))
    with pytest.raises(UserError, match=r"grow evenly .* all-\w+ along model"):
        Counts.read(curved).volumes(2, 2, layers=4, positions=100, labelled=10, chunk_rows=128)


def test_too_few_counts_are_refused(tmp_path):
    path = file_of(tmp_path / "c.json", lambda L, N: L, layers=1)
    with pytest.raises(UserError, match="two numbers of blocks and two of rows"):
        Counts.read(path).volumes(2, 2, layers=4, positions=100, labelled=10, chunk_rows=128)


def test_a_mesh_that_was_not_counted_is_refused(tmp_path):
    path = file_of(tmp_path / "c.json", lambda L, N: L)
    with pytest.raises(UserError, match=r"2 x 4 must have been counted\. Received: counts of 2 x 2"):
        Counts.read(path).volumes(2, 4, layers=4, positions=100, labelled=10, chunk_rows=128)


@pytest.mark.parametrize("text", ["", "[]", '{"counts": []}', '{"counts": [{"recipe": "gsm8k"}]}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=r"must be what `tools/collectives\.py --json` prints"):
        Counts.read(tmp_path / "c.json")


# Seconds

QUICK = Machine(link=100.0, network=10.0, per_host=8, link_share=1.0, latency=0.0)


def seconds(axis, data, model, machine=QUICK, kind="all-reduce"):
    return machine.seconds(Volume(kind=kind, axis=axis, calls=3, bytes=1000), data, model)


def test_a_ring_sends_its_share():
    assert seconds("data", 1, 1) == 0
    assert seconds("data", 2, 1) == pytest.approx(1000 / 100)
    assert seconds("data", 8, 1) == pytest.approx(2 * 7 / 8 * 1000 / 100)
    assert seconds("model", 4, 2, kind="all-gather") == pytest.approx(1000 / 2 / 100)


def test_between_hosts_all_adapters_of_a_group_carry():
    assert seconds("data", 64, 1) == pytest.approx(2 * 63 / 64 * 1000 / 80)  # eight adapters
    assert seconds("data", 8, 8) == pytest.approx(2 * 7 / 8 * 1000 / 10)  # one
    assert seconds("model", 8, 8) == pytest.approx(2 * 7 / 8 * 1000 / 100)  # within a host


def test_calls_take_their_time():
    slow = dataclasses.replace(QUICK, latency=0.5)
    assert seconds("data", 8, 1, slow) - seconds("data", 8, 1) == pytest.approx(3 * 0.5 * math.log2(8))


# Steps


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def work(request):
    return job(request.param, 512, 0.45)


def test_counts_are_here():
    assert {"llama3.2_1b-prefix", "llama3.2_3b-prefix", "llama3.2_1b-lora"} <= {path.stem for path in FILES}


def test_more_devices_never_do_better_than_ideal(work):
    alone = step(work, Machine(), SHARE, 1, 1, 16)
    assert alone.talk == 0 and alone.efficiency(alone) == 1
    for mesh in (each for each in MESHES if each[1] in work.counts.shares and each != (1, 1)):
        each = step(work, Machine(), SHARE, *mesh, 16 * mesh[0] * mesh[1])
        assert max(each.compute, each.talk) == each.fastest < each.slowest == each.compute + each.talk
        # A prefix is computed once for the rows of a device: with more of them, a little less for each.
        assert 0 < each.efficiency(alone) < 1.01
        assert each.compute == pytest.approx(alone.compute, rel=0.02)


def test_faster_computing_leaves_more_talk(work):
    slow, fast = (step(work, Machine(), share, 8, 2, 128) for share in (SHARE, 0.4))
    assert fast.compute < slow.compute and fast.talk == slow.talk and fast.share > slow.share


def test_slower_links_leave_more_talk(work):
    there, gone = (step(work, Machine(link=link), SHARE, 4, 2, 128) for link in (450e9, 45e9))
    assert gone.said["model"] > there.said["model"] and gone.compute == there.compute


def test_one_batch_ends_at_a_row_each(work):
    steps = list(of_one_batch(work, Machine(), SHARE, 32))
    assert [each.data for each in steps] == [1, 2, 4, 8, 16, 32]
    times = [each.compute for each in steps]
    assert times == sorted(times, reverse=True)


def test_where_it_stops_is_where_talk_takes_half(work):
    steps = list(of_one_batch(work, Machine(link=1e6, network=1e6), 0.5, 32))
    stops = half(steps)
    assert stops.share >= 0.5 and all(each.share < 0.5 for each in steps[: steps.index(stops)])
    assert half(of_one_batch(work, Machine(link=1e15, network=1e15, latency=0), 0.5, 32)) is None


def test_what_stays_is_no_computing(work):
    each = step(work, Machine(fixed=1.0), SHARE, 8, 1, 128)
    assert each.slowest == pytest.approx(1 + step(work, Machine(), SHARE, 8, 1, 128).slowest)
    assert half(of_one_batch(work, Machine(fixed=each.compute), SHARE, 128)).data == 8  # 16 rows each


def test_the_measured_step():
    """One H200, torch, Llama-3.2 1B's shape, a prefix and a head: 0.266 s a step of 16 x 512 tokens."""
    each = step(job(COUNTS / "llama3.2_1b-prefix.json", 512, 0.45), Machine(), SHARE, 1, 1, 16)
    assert each.slowest == pytest.approx(0.266, rel=0.02)


def test_the_tool_prints_a_page():
    command = [
        sys.executable,
        "tools/scaling.py",
        "--counts",
        str(FILES[0]),
        "--mesh",
        "1x1",
        "64x1",
        "--share",
        "0.2",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"## {FILES[0].stem}, on paper" in done.stdout
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines() if " x 1 |" in line] == [
        "1 x 1",
        "64 x 1",
    ]
