"""A job file with every key, and what `load_job` says of one."""

from __future__ import annotations

import pytest

from pipeline.config.job_settings import load_job
from pipeline.core.errors import ConfigError

EVERY_KEY = """\
name: study
images: some/store.zarr
classes: [cat, dog]
fit: training
evaluate: [validation, test]
leave_one_out: false
prototypes: mean
metrics: [l2]
neighbours: {k: 5, among: training, metrics: [l1, l2]}
audit: {k: 7, metric: l2, variants: mirror, near: 0.5, labels: 0.8, outliers: 0.9, keep: [test]}
exclude: some/out.csv
device: torch:cpu
distances: skip
report: false
allow_empty_classes: true
cluster:
  kind: local
  workers: 3
  threads_per_worker: 2
  memory: 2 GB
output: /results/study
"""


def write(folder, text, name="job.yml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def refused(*arguments, **keywords):
    """Return the message with which `load_job` refuses these arguments."""
    with pytest.raises(ConfigError) as caught:
        load_job(*arguments, **keywords)
    return str(caught.value)
