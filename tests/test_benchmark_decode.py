"""What `tools/benchmark.py decode` gives every system, and what it makes of their times. Nothing here is timed."""

import argparse
import sys

import keras
import numpy as np
import pytest

from keras_mtp.data.encoding import encode_prompt
from keras_mtp.models.backbone import base_info, load_backbone
from keras_mtp.models.gguf import GGUFFile
from keras_mtp.models.llama import LlamaSizes
from keras_mtp.models.mtp_causal_lm import MTPCausalLM
from keras_mtp.tasks import load_task
from tests import tiny
from tests.tiny_gguf import write_tiny_gguf
from tools.benchmarks import decode, decode_results, decode_turns, decoders
from tools.benchmarks.decode_results import Measured
from tools.benchmarks.decode_workload import prompts
from tools.benchmarks.decoded import Case, Decoded, System, Workload
from tools.benchmarks.our_decoder import make_decoder
from tools.benchmarks.write_gguf import write_gguf

SHORT, LONG = Case(batch=2, context=128), Case(batch=2, context=1024)


def _measured(
    name, backend, seconds, *, group=0, mode="plain", case=SHORT, passes=10, row=(1, 2, 3), extra=0
):
    """Two rows of ten new tokens each."""
    rounds = [
        Decoded(tokens=20, passes=passes, seconds=s, prefill_seconds=2 * s, first_row=row, extra_bytes=extra)
        for s in seconds
    ]
    return Measured(group, System(name=name, backend=backend, dtype="float32"), mode, case, rounds)


MEASURED = [
    _measured("keras_mtp", "jax", [2.0, 50.0, 1.0]),
    _measured("keras_mtp", "jax", [1.0], mode="speculative", passes=4, row=(1, 2, 4), extra=40),
    _measured("keras_mtp", "jax", [2.5], case=LONG),
    _measured("keras_hub", "jax", [3.0], row=(1, 9, 3)),
    _measured("keras_hub", "torch", [7.0]),
    _measured("transformers", "torch", [4.0]),
    _measured("transformers", "torch", [6.0], group=1),
    _measured("llama_cpp", "llama.cpp", [1.5], case=LONG),
]


def test_rows_hold_medians_and_the_share_of_the_read_bandwidth():
    """10 passes of 25 weights in 2 s are 500 bytes/s; 4 passes of those and of the heads' 40 bytes in 1 s are 560."""
    ceilings = {(0, SHORT): [900.0, 1000.0]}
    rows = decode_results.rows(MEASURED[:2], 25, ceilings)
    assert rows[0] == {
        "system": "keras_mtp",
        "backend": "jax",
        "dtype": "float32",
        "batch": 2,
        "context": 128,
        "mode": "plain",
        "tokens_per_second": 10.0,
        "tokens_per_pass": 1.0,
        "share_of_ceiling": pytest.approx(0.5),
        "prefill_seconds": 4.0,
        "group": 0,
    }
    assert rows[1]["tokens_per_pass"] == 2.5
    assert rows[1]["share_of_ceiling"] == pytest.approx(0.56)


def test_the_spread_of_bandwidths_is_over_all_cases():
    assert decode_results.spread({(0, SHORT): [1.0, 5.0], (1, LONG): [2.0]}) == {"best": 5.0, "median": 2.0}


def test_ratios_compare_in_the_same_case_and_group():
    approx = pytest.approx
    assert decode_results.ratios(MEASURED) == {
        "jax/float32/2 x 128/plain": {"keras_hub plain": approx(1.5), "transformers plain": approx(2.0)},
        "jax/float32/2 x 128/speculative": {
            "keras_hub plain": approx(3.0),
            "transformers plain": approx(4.0),
            "plain": approx(2.0),
        },
        "jax/float32/2 x 1024/plain": {"llama_cpp plain": approx(0.6), "context 128": approx(0.8)},
    }


def test_agreements_count_the_tokens_before_the_first_that_differs():
    assert decode_results.agreements(MEASURED[:4]) == {
        "jax/float32/2 x 128/plain and keras_hub plain": 1,
        "jax/float32/2 x 128/speculative and keras_hub plain": 1,
        "jax/float32/2 x 128/speculative and plain": 2,
    }


def test_a_time_below_zero_is_no_time():
    useless = [_measured("keras_mtp", "jax", [-1.0]), _measured("keras_mtp", "jax", [])]
    assert decode_results.usable([*useless, MEASURED[0]]) == [MEASURED[0]]


def test_a_backend_is_alive_with_its_peers():
    options = argparse.Namespace(
        backends=["jax", "torch"], dtypes=["float32"], systems=list(decoders.DECODERS), quick=False
    )
    peers = [("transformers", "torch"), ("llama_cpp", "llama.cpp")]
    jax, torch = ([("keras_mtp", name), ("keras_hub", name)] for name in ("jax", "torch"))

    def groups():
        return [[(s.name, s.backend) for s in group] for group in decode_turns.groups(options)]

    assert groups() == [jax + peers, torch + peers]
    options.quick, options.systems = True, ["keras_mtp", "llama_cpp"]
    assert groups() == [[jax[0], torch[0], peers[1]]]


def test_prompt_lookup_takes_one_prompt():
    transformers = MEASURED[5].system
    assert decode_turns.modes_of(transformers, Case(batch=1, context=9), ["plain"]) == [
        "plain",
        "prompt_lookup",
    ]
    assert decode_turns.modes_of(transformers, SHORT, ["plain"]) == ["plain"]
    assert decode_turns.modes_of(MEASURED[0].system, SHORT, ["plain", "speculative"]) == [
        "plain",
        "speculative",
    ]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path, tied=False)
    return path


def test_prompts_end_where_an_answer_begins(gguf):
    tokenizer = load_backbone(str(gguf)).tokenizer
    examples = load_task("gsm8k", "builtin").examples("test")
    asked = [encode_prompt(example.prompt, tokenizer) for example in examples[:2]]
    assert prompts(examples, tokenizer, 2, 50) == [ids[-50:] for ids in asked]
    long = prompts(examples, tokenizer, 2, 3000)
    assert [len(row) for row in long] == [3000, 3000]
    assert [row[-len(ids) :] for row, ids in zip(long, asked, strict=True)] == asked


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_llama_cpp_is_given_the_same_weights(gguf, tmp_path, dtype):
    sizes = LlamaSizes(**base_info(str(gguf)).architecture)
    write_gguf(tmp_path / "copy.gguf", load_backbone(str(gguf)).backbone, sizes, dtype)
    original, copy = GGUFFile(gguf), GGUFFile(tmp_path / "copy.gguf")
    assert copy.shapes == original.shapes
    for name, shape in original.shapes.items():
        exact = dtype == "float32" or len(shape) == 1
        np.testing.assert_allclose(copy.read(name), original.read(name), rtol=0 if exact else 2**-8)
    numbers = {
        k: v for k, v in original.metadata.items() if k.startswith("llama.") and "context_length" not in k
    }
    assert numbers == {k: copy.metadata.get(k) for k in numbers}


def test_ours_decodes_as_many_tokens_as_asked():
    model = MTPCausalLM(tiny.backbone())
    rows = tiny.token_ids(2, 5).tolist()
    decoded = make_decoder(model, "plain", 6)(rows)
    assert (decoded.tokens, decoded.passes) == (12, 6)
    expected = model.generate(rows, max_new_tokens=7, stop_ids=[tiny.VOCABULARY])
    assert decoded.first_row == expected[0]


@pytest.mark.slow
def test_systems_decode_the_same_tokens(gguf):
    name, case = keras.config.backend(), Case(batch=1, context=40)
    workload = Workload(
        model=str(gguf),
        path=gguf,
        run=None,
        new_tokens=12,
        weights=1,
        vocabulary_size=1,
        gguf={},
        prompts={case: np.random.default_rng(0).integers(0, 256, (1, 40)).tolist()},
    )
    found = {}
    for who, where in (("keras_mtp", name), ("keras_hub", name), ("transformers", "torch")):
        system = System(name=who, backend=where, dtype="float32")
        decode_one = decoders.DECODERS[who](system, workload)
        for mode in decode_turns.modes_of(system, case, ["plain"]):
            found[who, mode] = decode_one(workload.prompts[case], mode)
    rows = [list(decoded.first_row) for decoded in found.values()]
    assert len(rows[0]) == 13 and len(set(rows[0])) > 1
    assert rows == [rows[0]] * 4
    assert [d.passes for (_, mode), d in found.items() if mode == "plain"] == [12, 12, 12]
    lookup = found["transformers", "prompt_lookup"]
    assert lookup.tokens <= 12 and lookup.passes <= lookup.tokens


def _options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "must be at least 1. Received: 0"),
        (["--backends", "numpy"], "invalid choice: 'numpy'"),
        (["--run", "a", "--train-steps", "3"], "not allowed with argument"),
    ],
)
def test_impossible_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        _options(*arguments)
    assert message in capsys.readouterr().err


def test_a_run_must_be_one_and_brings_its_model(tmp_path):
    with pytest.raises(SystemExit, match="`--run` must be the folder of a run"):
        decode.run(_options("--run", str(tmp_path)))
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(SystemExit, match="`--model` must not be given with --run"):
        decode.run(_options("--run", str(tmp_path), "--model", "smollm2-135m"))


def test_a_missing_peer_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    options = _options("--quick")
    decode._fill_in(options)
    assert options.systems == ["keras_mtp", "keras_hub", "transformers"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "llama-cpp-python is not installed" in said
