"""What a job on threads imports: nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

# each takes a tenth of a second to a second, and none is needed
NEVER = {
    "dask.array", "dask.dataframe", "dask.distributed", "distributed", "fastapi", "pandas",
    "sklearn", "tornado", "torch", "torchvision", "xarray", "pipeline.kernels.torch",
    "pipeline.sources.torchvision", "pipeline.sources.xarray_source",
}  # fmt: skip
# what draws the report
DRAWING = {"matplotlib"}

JOB = """
name: few
images: {images}
evaluate: test
device: cpu
cluster: {{kind: threads, workers: 2}}
output: {output}
report: {report}
"""

SCRIPT = """
import importlib.metadata as metadata
import sys
import numba.core.entrypoints
numba.core.entrypoints._already_initialized = True  # what other packages would add to numba
from pipeline.cli import main
assert main(["run", sys.argv[1]]) == 0
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("report", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_job_on_threads_imports_nothing_that_it_does_not_use(report, small_store, tmp_path):
    job = tmp_path / "job.yml"
    text = JOB.format(images=small_store, output=tmp_path / "run", report=str(report).lower())
    job.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(job)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert not imported & NEVER
    if report:
        assert imported & DRAWING
