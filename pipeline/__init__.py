"""pixsim: pixel similarity for labelled image sets of any size.

The public API. Names are imported when they are first used, so that importing this package,
and asking the command line for help, stays instant. No package has the name of a public function:
importing `pipeline.x` sets the attribute `x` of this one, and would hide the function.

Whatever returns a data set of xarray has loaded xarray by the time it is used, so with the first
such name `pipeline.accessor` is imported too: then each data set has `.pixsim`.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from pipeline.config.audit_settings import make_audit as make_audit
    from pipeline.config.cluster_settings import make_cluster as make_cluster
    from pipeline.config.job_files import find_job as find_job
    from pipeline.config.job_settings import JobSettings as JobSettings
    from pipeline.config.job_settings import load_images as load_images
    from pipeline.config.job_settings import load_job as load_job
    from pipeline.config.job_settings import make_images as make_images
    from pipeline.config.job_settings import make_job as make_job
    from pipeline.estimators.classifiers import NearestImagesClassifier as NearestImagesClassifier
    from pipeline.estimators.classifiers import (
        NearestPrototypeClassifier as NearestPrototypeClassifier,
    )
    from pipeline.execution.executor import open_executor as open_executor
    from pipeline.execution.progress import make_reporter as make_reporter
    from pipeline.execution.signals import running_here as running_here
    from pipeline.execution.signals import stop_on_signals as stop_on_signals
    from pipeline.ingestion.ingest import finish_ingest as finish_ingest
    from pipeline.ingestion.ingest import ingest as ingest
    from pipeline.ingestion.ingest import ingest_partitions as ingest_partitions
    from pipeline.ingestion.ingest import plan_ingest as plan_ingest
    from pipeline.jobs.audit import load_audit as load_audit
    from pipeline.jobs.audit import run_audit as run_audit
    from pipeline.jobs.demo import run_demo as run_demo
    from pipeline.jobs.job import run_job as run_job
    from pipeline.jobs.job_writing import init_job as init_job
    from pipeline.jobs.job_writing import save_job as save_job
    from pipeline.jobs.preview import forecast as forecast
    from pipeline.jobs.repair import verify as verify
    from pipeline.ops.distances import distances as distances
    from pipeline.ops.medians import class_medians as class_medians
    from pipeline.ops.neighbours import neighbours as neighbours
    from pipeline.ops.neighbours import vote as vote
    from pipeline.ops.pairs import pairs_within as pairs_within
    from pipeline.ops.predictions import predict as predict
    from pipeline.ops.prototypes import class_sums as class_sums
    from pipeline.ops.prototypes import prototypes as prototypes
    from pipeline.report.comparison import Comparison as Comparison
    from pipeline.report.comparison import compare as compare
    from pipeline.report.description import describe as describe
    from pipeline.report.description import digest as digest
    from pipeline.report.description import draw_grid as draw_grid
    from pipeline.report.explanation import explain as explain
    from pipeline.report.explanation_picture import draw_explanation as draw_explanation
    from pipeline.report.neighbour_graph import knn_graph as knn_graph
    from pipeline.report.opened import ImageSet as ImageSet
    from pipeline.report.opened import Run as Run
    from pipeline.report.opened import open_run as open_run
    from pipeline.report.opened import open_store as open_store
    from pipeline.report.opened_audit import Audit as Audit
    from pipeline.report.opened_audit import open_audit as open_audit
    from pipeline.report.page import write_report as write_report
    from pipeline.sources.arrays import from_arrays as from_arrays
    from pipeline.sources.catalog import list_datasets as list_datasets
    from pipeline.sources.registry import open_source as open_source
    from pipeline.storage.image_content import open_images as open_images
    from pipeline.terminal import print_pixels as print_pixels
    from pipeline.terminal import print_table as print_table

_HOMES = {
    "Audit": "report.opened_audit",
    "Comparison": "report.comparison",
    "ImageSet": "report.opened",
    "JobSettings": "config.job_settings",
    "NearestImagesClassifier": "estimators.classifiers",
    "NearestPrototypeClassifier": "estimators.classifiers",
    "Run": "report.opened",
    "class_medians": "ops.medians",
    "class_sums": "ops.prototypes",
    "compare": "report.comparison",
    "describe": "report.description",
    "digest": "report.description",
    "distances": "ops.distances",
    "draw_explanation": "report.explanation_picture",
    "draw_grid": "report.description",
    "explain": "report.explanation",
    "find_job": "config.job_files",
    "finish_ingest": "ingestion.ingest",
    "forecast": "jobs.preview",
    "from_arrays": "sources.arrays",
    "ingest": "ingestion.ingest",
    "init_job": "jobs.job_writing",
    "ingest_partitions": "ingestion.ingest",
    "knn_graph": "report.neighbour_graph",
    "list_datasets": "sources.catalog",
    "load_audit": "jobs.audit",
    "load_images": "config.job_settings",
    "load_job": "config.job_settings",
    "make_audit": "config.audit_settings",
    "make_cluster": "config.cluster_settings",
    "make_images": "config.job_settings",
    "make_job": "config.job_settings",
    "make_reporter": "execution.progress",
    "neighbours": "ops.neighbours",
    "open_audit": "report.opened_audit",
    "open_executor": "execution.executor",
    "open_images": "storage.image_content",
    "open_run": "report.opened",
    "open_source": "sources.registry",
    "open_store": "report.opened",
    "pairs_within": "ops.pairs",
    "plan_ingest": "ingestion.ingest",
    "predict": "ops.predictions",
    "print_pixels": "terminal",
    "print_table": "terminal",
    "prototypes": "ops.prototypes",
    "run_audit": "jobs.audit",
    "run_demo": "jobs.demo",
    "run_job": "jobs.job",
    "running_here": "execution.signals",
    "save_job": "jobs.job_writing",
    "stop_on_signals": "execution.signals",
    "verify": "jobs.repair",
    "vote": "ops.neighbours",
    "write_report": "report.page",
}

_MODULES = {"plots": "report.plots"}

__all__ = sorted(_HOMES)


# A process that is forked while another thread imports waits for that module for ever, since the
# thread stays with its parent: so a fork waits until what is imported here is.
importing = threading.RLock()
os.register_at_fork(
    before=importing.acquire,
    after_in_parent=importing.release,
    after_in_child=importing.release,
)


is_command = False
"""Whether this process is that of a command: what it holds after an import is what stays."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage in what stays: that takes a tenth of a small job's time.

    In the process of a command it is not looked through later on either.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_command:
            gc.freeze()
        if collects:
            gc.enable()


def register_accessor() -> None:
    """Give data sets of xarray the accessor `pixsim`, where xarray is imported."""
    if "xarray" in sys.modules:
        importlib.import_module("pipeline.accessor")


def __getattr__(name: str) -> Any:
    if name not in _HOMES and name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing, uncollected():
        module = importlib.import_module(f"pipeline.{_HOMES.get(name) or _MODULES[name]}")
        register_accessor()
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES, *_MODULES]
