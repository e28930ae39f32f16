"""A measurement in a process of its own: the tool calls itself with `--one` and what to measure, and reads what that prints."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

_SAID = "measured: "


def say(found: Mapping[str, Any]) -> None:
    """In the process that measures: hands over what was found."""
    print(_SAID + json.dumps(found))


def in_a_process(tool: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What `tool --one WANTED` says. JAX compiles anew in it: programs kept from before would take other memory.

    Args:
        tool: the file of the tool. wanted: what `--one` gets, as JSON.
    """
    with tempfile.TemporaryDirectory() as programs:
        done = subprocess.run(
            [sys.executable, tool, "--one", json.dumps(wanted)],
            env=os.environ | {"JAX_COMPILATION_CACHE_DIR": programs},
            capture_output=True,
            text=True,
        )
    for line in done.stdout.splitlines():
        if line.startswith(_SAID):
            return json.loads(line.removeprefix(_SAID))
    sys.exit(f"Error: it failed.\n{done.stderr[-2000:]}")
