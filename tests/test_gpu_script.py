"""`make gpu` where there is no GPU: it says so, and all its checks and rows run, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from strategies import HAS_CUDA

ROOT = Path(__file__).parent.parent
# what a machine with a GPU need not have
ABSENT = ("zarr", "dask", "distributed", "xarray", "pyarrow", "PIL", "matplotlib", "sklearn")


@pytest.mark.slow
@pytest.mark.skipif(HAS_CUDA, reason="this machine has a GPU: make gpu measures it")
def test_the_script_runs_small_with_nothing_but_numpy_numba_torch_and_triton(tmp_path):
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r})); "
    script = absent + "from benchmarks.gpu import main; sys.exit(main(['--json', 'figures.json']))"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("no GPU on this machine: the kernels are interpreted")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["failed"] == []
    assert figures["interpreted"]
    asked = [row["asked"] for row in figures["rows"] if row["asked"] is not None]
    assert asked == [0.7, 0.3, 0.8, 10.0, 2.0, 10.0]  # the share of a peak needs one
    assert {row["name"] for row in figures["tuning"]} == {
        "class sums", "prototypes", "tiles l1", "tiles l2",
    }  # fmt: skip
    assert len(lines) >= len(figures["rows"]) + len(figures["tuning"])
