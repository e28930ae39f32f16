import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_mtp import backend, memory
from keras_mtp.backend import rows
from keras_mtp.errors import UserError

ROOT = Path(__file__).parent.parent


def run(code: str, *options: str, **environment: str) -> str:
    """Runs code in a fresh process, where Keras is not imported yet."""
    inherited = {k: v for k, v in os.environ.items() if k not in (*DEFAULTS, "KERAS_BACKEND")}
    command = [sys.executable, *options, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    result = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


DEFAULTS = (
    "TF_CPP_MIN_LOG_LEVEL",
    "OMP_WAIT_POLICY",
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
SELECT = "from keras_mtp import backend; print(backend.select({}))"
MISTAKE = """
from keras_mtp import backend
from keras_mtp.errors import UserError
try:
    backend.select({})
except UserError as error:
    print(error)
"""


def test_what_is_computed_on_has_a_name():
    name = backend.device_name()
    assert name and (name == "the CPU") != backend.on_accelerator()


def test_choice_goes_before_the_environment_and_reaches_keras():
    name = keras.config.backend()
    other = next(b for b in backend.BACKENDS if b != name)
    code = SELECT.format(repr(name)) + "\nimport keras; print(keras.config.backend())"
    assert run(code, KERAS_BACKEND=other).split() == [name, name]


def test_environment_goes_before_what_is_installed():
    assert run(SELECT.format(""), KERAS_BACKEND="torch") == "torch"
    assert run(SELECT.format("")) == "jax"


def test_selecting_imports_no_backend():
    code = SELECT.format("") + "\nprint({'keras', 'jax', 'torch', 'tensorflow', 'numpy'} & set(sys.modules))"
    assert run(code).split() == ["jax", "set()"]


def test_not_installed_backend_names_the_extra_to_install():
    bare = ("-S", "-E")  # without site-packages there is no backend
    assert 'pip install "keras_mtp[torch]"' in run(MISTAKE.format("'torch'"), *bare)
    assert "No backend is installed" in run(MISTAKE.format(""), *bare)


def test_unknown_backend_is_refused():
    with pytest.raises(UserError, match="`--backend` must be one of jax, tensorflow, torch"):
        backend.select("pytorch")
    assert "`KERAS_BACKEND` must be one of" in run(MISTAKE.format(""), KERAS_BACKEND="mxnet")


def test_backend_cannot_change_once_keras_is_imported():
    name = keras.config.backend()
    other = next(b for b in backend.BACKENDS if b != name)
    assert backend.select(name) == name
    with pytest.raises(UserError, match=f"Keras already runs on {name} and cannot change to {other}"):
        backend.select(other)
    assert os.environ["KERAS_BACKEND"] == name


def test_defaults_of_the_environment_give_way_to_the_user(tmp_path):
    show = (
        "\nimport os; print(os.environ.get('JAX_COMPILATION_CACHE_DIR'), os.environ['TF_CPP_MIN_LOG_LEVEL'])"
    )
    jax = SELECT.format("'jax'") + show
    if sys.platform == "linux":
        assert run(jax, XDG_CACHE_HOME=str(tmp_path)).split() == ["jax", f"{tmp_path}/keras_mtp/jax", "2"]
    assert run(jax, JAX_COMPILATION_CACHE_DIR="/mine", TF_CPP_MIN_LOG_LEVEL="0").split() == [
        "jax",
        "/mine",
        "0",
    ]
    assert (
        run(SELECT.format("'torch'") + "\nimport os; print(os.environ['OMP_WAIT_POLICY'])").split()[-1]
        == "PASSIVE"
    )


def test_simulated_devices_have_threads_to_spare():
    """With one for each, some hundred steps of four devices that are begun without waiting end in a deadlock (JAX 0.11)."""
    show = SELECT.format("'jax'") + "\nimport os; print(os.environ.get('PJRT_NPROC'))"
    flags = "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=4"
    assert run(show, XLA_FLAGS=flags).split() == ["jax", "32"]
    assert run(show, XLA_FLAGS="").split() == ["jax", "None"]


def test_a_first_import_takes_no_more_than_it_must():
    """Nothing of it is looked through for garbage, and another backend than TensorFlow does without it until it is asked for."""
    name = keras.config.backend()
    code = f"""
import gc
from keras_mtp import backend
backend.select({name!r})
with backend.first_imports():
    from keras_mtp import pipeline
print(gc.isenabled(), gc.get_freeze_count() > 100_000, "tensorflow" in sys.modules, hasattr(backend.tensorflow(), "Tensor"))
"""
    assert run(code).split() == ["True", "True", str(name == "tensorflow"), "True"]


def test_quiet_imports_keep_what_is_not_a_greeting():
    code = """
import os
from keras_mtp import backend
with backend.quiet_imports():
    os.write(2, b"I0000 00:00:1 port.cc:153] oneDNN custom operations are on.\\n")
    print("a warning", file=sys.stderr)
print("later", file=sys.stderr)
"""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stderr == "a warning\nlater\n"


def test_a_fused_function_computes_the_same():
    function = backend.fused(lambda x, y: ops.tanh(x) * y + 1)
    x = ops.convert_to_tensor(np.linspace(-2, 2, 12, dtype="float32").reshape(3, 4))
    np.testing.assert_allclose(
        ops.convert_to_numpy(function(x, x)), np.tanh(np.asarray(x)) * np.asarray(x) + 1, rtol=1e-6
    )


@pytest.mark.skipif(keras.config.backend() != "torch", reason="only torch fuses what it runs step by step")
def test_where_torch_cannot_compile_a_warning_says_so_and_training_goes_on():
    import torch

    def refuse(*arguments):
        raise torch._dynamo.exc.TorchDynamoException("no C++ compiler\nand much more")

    function = backend.fused(lambda x: x + 1)
    function.compiled = refuse
    with pytest.warns(UserWarning, match="runs uncompiled: no C\\+\\+ compiler$"):
        assert float(function(torch.tensor(1.0))) == 2
    assert float(function(torch.tensor(2.0))) == 3  # and it warns once


def test_memory_between_what_is_still_used_goes_back_to_the_system():
    """Pages that are free, but not at the heap's end, where alone glibc gives them back by itself."""
    if sys.platform != "linux":
        pytest.skip("only glibc is asked to")
    pieces = [np.ones(100_000, "uint8") for _ in range(4000)]
    del pieces[::2], pieces[1::2]  # every fourth stays where it is
    before = memory.resident_bytes()
    backend.return_freed_memory()
    assert before - memory.resident_bytes() > 100_000_000 and len(pieces) == 1000


@pytest.mark.any_backend
@pytest.mark.parametrize("returned", [False, True])
def test_a_large_block_goes_back_to_the_system_as_soon_as_it_is_freed_once_that_is_asked_for(returned):
    if sys.platform != "linux":
        pytest.skip("only glibc is asked to")
    code = (
        "import numpy as np; from keras_mtp import memory; from keras_mtp.backend import allocator\n"
        f"allocator.keep_freed_memory(); {returned} and allocator.return_large_blocks()\n"
        "block = np.ones(100_000_000, 'uint8'); before = memory.resident_bytes(); del block\n"
        "print(before - memory.resident_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 90_000_000) == returned


def test_results_may_take_the_memory_of_an_argument_that_nobody_looks_at_again():
    add = backend.compiled(lambda x, y: y + x, [], consumed=(1,))
    kept, given = ops.ones((4, 3)), ops.ones((4, 3))
    np.testing.assert_array_equal(ops.convert_to_numpy(add(kept, given)), np.full((4, 3), 2.0))
    np.testing.assert_array_equal(ops.convert_to_numpy(kept), np.ones((4, 3)))
    if keras.config.backend() == "jax":
        assert given.is_deleted()


def test_rows_written_at_once_are_those_written_one_by_one(monkeypatch):
    """As on an accelerator; a CPU writes them one after another."""
    rng = np.random.default_rng(0)
    for shape, new_tokens in (((3, 2, 10, 4), 3), ((3, 10, 1), 2), ((1, 10, 4), 10)):
        buffer = rng.normal(size=shape).astype("float32")
        new = rng.normal(size=(*shape[:-2], new_tokens, shape[-1])).astype("float32")
        start = np.array([0, 10 - new_tokens, 4], "int32")[: shape[0]]
        expected = buffer.copy()
        for row, first in enumerate(start):
            expected[row, ..., first : first + new_tokens, :] = new[row]
        for at_once in (False, True):
            monkeypatch.setattr(rows, "on_accelerator", lambda at_once=at_once: at_once)
            tensors = (ops.convert_to_tensor(np.copy(array)) for array in (buffer, new, start))
            np.testing.assert_array_equal(ops.convert_to_numpy(backend.write_rows(*tensors)), expected)
