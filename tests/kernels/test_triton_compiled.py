"""The kernels of a GPU, compiled for one that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_every_kernel_compiles_for_hopper_and_keeps_its_numbers_in_registers():
    script = Path(__file__).with_name("compile_for_hopper.py")
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], env=plain | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    stacks = dict(reversed(line.split(" ", 1)) for line in done.stdout.splitlines())
    assert len(stacks) == 21
    assert {name: stack for name, stack in stacks.items() if stack != "0"} == {}
