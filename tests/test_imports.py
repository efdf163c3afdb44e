"""What a job on threads imports: nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jobs_for_tests import make_images

# each takes a tenth of a second to a second, and none is needed
NEVER = {
    "bokeh", "dask.array", "dask.dataframe", "distributed", "pandas", "pipeline.kernels.torch",
    "pipeline.sources.torchvision", "pipeline.sources.xarray_source", "sklearn",
    "tornado", "torch", "torchvision", "xarray",
}  # fmt: skip
# what the job itself needs; matplotlib draws its report, and is imported for nothing else
NEEDED = {"numba", "numpy", "pyarrow", "zarr"}

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
import sys
import numba.core.entrypoints
numba.core.entrypoints._already_initialized = True  # imports what other packages add to numba
from pipeline.cli import main
assert main(["run", sys.argv[1]]) == 0
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("report", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_job_on_threads_imports_nothing_that_it_does_not_use(report, tmp_path):
    job = tmp_path / "job.yml"
    images = make_images(tmp_path / "images.zarr")
    text = JOB.format(images=images, output=tmp_path / "run", report=str(report).lower())
    job.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(job)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert sorted(imported & NEVER) == []
    assert imported >= NEEDED
    for library in ("matplotlib", "scipy.cluster"):  # which draws, and what orders classes
        assert (library in imported) == report
