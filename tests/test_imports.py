"""What a job on threads imports: nothing that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jobs_for_tests import make_images

# each takes a tenth of a second to a second, and none is needed
NEVER = {
    "bokeh", "dask.array", "dask.dataframe", "distributed", "matplotlib", "numba", "pandas",
    "pipeline.kernels.torch", "pipeline.sources.torchvision", "pipeline.sources.xarray_source",
    "scipy", "sklearn", "tornado", "torch", "torchvision", "xarray",
}  # fmt: skip
NEEDED = {"numpy", "pyarrow", "zarr"}

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
from pipeline.cli import main
assert main(["run", sys.argv[1]]) == 0
print("imported:", *sys.modules)
"""


@pytest.mark.parametrize("report", [False, True])
def test_a_small_job_on_threads_imports_nothing_that_it_does_not_use(report, tmp_path):
    job = tmp_path / "job.yml"
    images = make_images(tmp_path / "images.zarr")
    text = JOB.format(images=images, output=tmp_path / "run", report=str(report).lower())
    job.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(job)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").exists() == report
    imported = set(done.stdout.splitlines()[-1].split()[1:])
    assert sorted(imported & NEVER) == []
    assert imported >= NEEDED
    assert ("pipeline.report.page" in imported) == report
