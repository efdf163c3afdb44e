"""pixsim: pixel similarity for labelled image sets of any size.

The public API. Names are imported when they are first used, so that importing this package,
and asking the command line for help, stays instant. No module has the name of a public function:
importing `pipeline.x` sets the attribute `x` of the package, and would hide the function.
"""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pipeline.cluster import open_executor as open_executor
    from pipeline.cluster_settings import make_cluster as make_cluster
    from pipeline.config import JobSettings as JobSettings
    from pipeline.config import load_images as load_images
    from pipeline.config import load_job as load_job
    from pipeline.config import make_images as make_images
    from pipeline.config import make_job as make_job
    from pipeline.datasets import list_datasets as list_datasets
    from pipeline.demo import run_demo as run_demo
    from pipeline.description import describe as describe
    from pipeline.description import digest as digest
    from pipeline.distance import distances as distances
    from pipeline.draining import running_here as running_here
    from pipeline.draining import stop_on_signals as stop_on_signals
    from pipeline.explained import draw_explanation as draw_explanation
    from pipeline.explanation import explain as explain
    from pipeline.grids import draw_grid as draw_grid
    from pipeline.image_set import ImageSet as ImageSet
    from pipeline.image_set import open_store as open_store
    from pipeline.ingestion import finish_ingest as finish_ingest
    from pipeline.ingestion import ingest as ingest
    from pipeline.ingestion import ingest_partitions as ingest_partitions
    from pipeline.ingestion import plan_ingest as plan_ingest
    from pipeline.job import run_job as run_job
    from pipeline.median import class_medians as class_medians
    from pipeline.opening import open_source as open_source
    from pipeline.outlook import forecast as forecast
    from pipeline.predictions import predict as predict
    from pipeline.progress import make_reporter as make_reporter
    from pipeline.prototype import class_sums as class_sums
    from pipeline.prototype import prototypes as prototypes
    from pipeline.repair import verify as verify
    from pipeline.report import write_report as write_report
    from pipeline.runs import Run as Run
    from pipeline.runs import open_run as open_run
    from pipeline.sources.arrays import from_arrays as from_arrays
    from pipeline.store import open_images as open_images
    from pipeline.terminal import print_pixels as print_pixels
    from pipeline.terminal import print_table as print_table

_HOMES = {
    "ImageSet": "image_set",
    "JobSettings": "config",
    "Run": "runs",
    "class_medians": "median",
    "class_sums": "prototype",
    "describe": "description",
    "digest": "description",
    "distances": "distance",
    "draw_explanation": "explained",
    "draw_grid": "grids",
    "explain": "explanation",
    "finish_ingest": "ingestion",
    "forecast": "outlook",
    "from_arrays": "sources.arrays",
    "ingest": "ingestion",
    "ingest_partitions": "ingestion",
    "list_datasets": "datasets",
    "load_images": "config",
    "load_job": "config",
    "make_cluster": "cluster_settings",
    "make_images": "config",
    "make_job": "config",
    "make_reporter": "progress",
    "open_executor": "cluster",
    "open_images": "store",
    "open_run": "runs",
    "open_source": "opening",
    "open_store": "image_set",
    "plan_ingest": "ingestion",
    "predict": "predictions",
    "print_pixels": "terminal",
    "print_table": "terminal",
    "prototypes": "prototype",
    "run_demo": "demo",
    "run_job": "job",
    "verify": "repair",
    "running_here": "draining",
    "stop_on_signals": "draining",
    "write_report": "report",
}

_MODULES = {"plots"}

__all__ = sorted(_HOMES)


# A process that is forked while another thread imports waits for that module for ever, since the
# thread stays with its parent: so a fork waits until what is imported here is.
_importing = threading.RLock()
os.register_at_fork(
    before=_importing.acquire,
    after_in_parent=_importing.release,
    after_in_child=_importing.release,
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _importing:
        module = importlib.import_module(f"pipeline.{_HOMES.get(name, name)}")
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, *_MODULES]
