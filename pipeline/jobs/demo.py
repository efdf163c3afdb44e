"""The demonstration: the article's study on real images, with whatever is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.config.job_files import workflow
from pipeline.config.job_settings import load_environment, load_job
from pipeline.core.errors import DatasetNotFoundError
from pipeline.execution.progress import Reporter
from pipeline.ingestion.request import default_store
from pipeline.jobs.job import run_job
from pipeline.report.description import draw_grid
from pipeline.report.opened import Run
from pipeline.sources.catalog import open_dataset
from pipeline.storage.manifest import IMAGES, kind_of

_FASHION_JOBS = ("fashion_mnist_dress_vs_pullover", "fashion_mnist")


def run_demo(reporter: Reporter) -> Iterator[tuple[Run, Path]]:
    """Run the demonstration jobs, yielding each run and the picture of its prototypes.

    Fashion-MNIST where its files are at hand or can be downloaded, else the digits that
    scikit-learn carries; it says which.
    """
    names: tuple[str, ...] = _FASHION_JOBS
    try:
        if kind_of(default_store("fashion-mnist")) != IMAGES:
            open_dataset("fashion-mnist")
        reporter.say("demo on fashion-mnist: 60,000 train and 10,000 test images of garments")
    except DatasetNotFoundError as error:
        reporter.say(str(error))
        reporter.say("demo on digits instead: the 1,797 images that scikit-learn carries")
        names = ("digits",)
    runs = load_environment().data / "runs"
    for name in names:
        settings = load_job(workflow(name))
        run = run_job(settings.model_copy(update={"output": runs / settings.name}), reporter)
        picture = run.path / "prototypes.png"
        draw_grid(run.path, picture)
        yield run, picture
