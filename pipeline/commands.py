"""The commands: each parses its arguments, calls the public API and prints; nothing else.

`import pipeline` gives names that are imported when first used, so that `pixsim --help` costs
no more than the parser.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import pipeline
from pipeline import printing
from pipeline.core.errors import DamagedError, InputError

_HERE = ("threads", "local", "gpus")
_OUTPUT = Parameter(name=["--output", "-o"])
_FLAG = Parameter(negative=())
Output = Annotated[str | None, _OUTPUT]
Override = Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True, negative=())]

app = App(
    name="pixsim",
    help="Pixel similarity: how far does the simplest possible model get on an image set?",
    version=pipeline.__version__,
    help_format="plaintext",  # no Markdown, whose parser takes a tenth of a second to import
    help_epilogue="Exit codes: 0 done, 1 the job failed, 2 the input was wrong, 3 it was stopped "
    "(the same\ncommand goes on), 4 another process holds the folder.\n"
    "--debug before a command shows the traceback of an error.",
)


@Parameter(name="*")
@dataclass(frozen=True)
class IngestPieces:
    """What of an ingest is done, and in which pieces.

    Attributes
    ----------
    append
        Add the samples to the store, all of them or none.
    only
        One step: plan; N or N:M, partitions; finish.
    shard
        Images per shard; default: some MB's worth.
    """

    append: Annotated[bool, _FLAG] = False
    only: str | None = None
    shard: int | None = None


@Parameter(name="*")
@dataclass(frozen=True)
class JobOptions:
    """What replaces keys of a job file that have options of their own.

    Attributes
    ----------
    output
        The run folder, instead of the job file's.
    cluster
        threads, local, a scheduler's address, or a file of workflows/clusters.
    without
        A table of samples to leave out, or a folder with keep.parquet.
    """

    output: Output = None
    cluster: str | None = None
    without: str | None = None


_WHOLE_INGEST, _AS_IN_THE_FILE = IngestPieces(), JobOptions()


@app.command
def demo() -> None:
    """Run the seed article's study on Fashion-MNIST, else on digits."""
    for run, picture in pipeline.run_demo(pipeline.make_reporter()):
        printing.print_run(pipeline.describe(run.path))
        print(f"prototypes drawn in {picture}\n")


@app.command
def datasets() -> None:
    """List the named data sets, and where their files are."""
    printing.print_datasets(pipeline.list_datasets())


@app.command
def ingest(
    source: str,
    /,
    *,
    output: Output = None,
    options: IngestPieces = _WHOLE_INGEST,
    cluster: str | None = None,
    profile: Path | None = None,
    override: Override = None,
) -> None:
    """Write an image set as a chunked Zarr store.

    Parameters
    ----------
    source
        A data set's name, a folder, archive, file, pattern or URL, or a job file.
    output
        The store to write, or its URL; default: data/stores/NAME.zarr.
    options
        What of it is done.
    cluster
        threads, local, a scheduler's address, or a file of workflows/clusters; default: the
        job's. Steps run where they are called, unless it is given.
    profile
        An HTML file for dask's performance report.
    override
        KEY=VALUE of the job's images: mode=RGB max_bad=1%.
    """
    images, settings = _images(source, override or (), cluster)
    reporter = pipeline.make_reporter()
    if options.only is not None:
        if cluster is None and settings is not None and settings.kind not in _HERE:
            settings = None  # the steps are what a cluster runs
        _ingest_step(options.only, images, output, options.shard, settings, reporter)
        return
    path = pipeline.ingest(
        images, output, options.shard, settings, reporter, append=options.append, profile=profile
    )
    printing.print_images(pipeline.describe(path))


def _images(source: str, overrides: Sequence[str], cluster: str | None) -> tuple[Any, Any]:
    """Return what a source or a job file says of images, with overrides, and of the cluster."""
    if source.lower().endswith((".yml", ".yaml")):
        inner = [f"images.{text}" for text in overrides]
        job = pipeline.load_job(source, inner, cluster=cluster)
        return job.images, job.named_cluster
    settings = None if cluster is None else pipeline.make_cluster(cluster, Path(source).parent)
    return pipeline.make_images(source, overrides), settings


def _ingest_step(
    step: str, images: Any, output: str | None, shard: int | None, settings: Any, reporter: Any
) -> None:
    """Do one step of an ingest, for clusters that run them apart."""
    if step == "plan":
        planned = pipeline.plan_ingest(images, output, shard, settings, reporter)
        print(
            f"{printing.count_of(planned, 'partition')} to write" if planned else "finished already"
        )
        return
    if step == "finish":
        path = pipeline.finish_ingest(images, output, shard, settings, reporter)
        printing.print_images(pipeline.describe(path))
        return
    first, colon, last = step.partition(":")
    if not first.isdecimal() or not (last if colon else first).isdecimal():
        raise InputError(f"--only {step}: expected plan, finish, or partitions such as 17 or 0:100")
    stop = int(last) if colon else int(first) + 1
    pipeline.ingest_partitions(images, int(first), stop, output, shard, settings, reporter)


@app.command
def run(
    job: Path,
    /,
    *,
    options: JobOptions = _AS_IN_THE_FILE,
    profile: Path | None = None,
    override: Override = None,
    resume: bool = True,
) -> None:
    """Run a job file, or what is left of it.

    Parameters
    ----------
    job
        The job file, such as workflows/digits.yml.
    options
        Where to, and where its tasks run.
    profile
        An HTML file for dask's performance report.
    override
        KEY=VALUE instead of the job file's, such as device=cpu.
    resume
        Go on with what the folder holds of this job; else it must be new or empty.
    """
    settings = _job(job, override, options)
    finished = pipeline.run_job(settings, pipeline.make_reporter(), resume=resume, profile=profile)
    printing.print_run(pipeline.describe(finished.path))


@app.command
def audit(
    source: str,
    /,
    *,
    options: JobOptions = _AS_IN_THE_FILE,
    override: Override = None,
    resume: bool = True,
) -> None:
    """Find what is in an image set twice, named wrongly, or like nothing else.

    Parameters
    ----------
    source
        A store, what ingest takes, or a job file.
    options
        Where to, and where its tasks run; default: data/audits/NAME, or audit in a job's output.
    override
        KEY=VALUE: k=20 variants=mirror images.mode=RGB; of a job file, its keys.
    resume
        Go on with what the folder holds of this audit; else it must be new or empty.
    """
    settings = pipeline.load_audit(source, override or (), options.output, options.cluster)
    finished = pipeline.run_audit(settings, pipeline.make_reporter(), resume=resume)
    printing.print_audit(pipeline.describe(finished.path))


@app.command
def plan(job: Path, /, *, options: JobOptions = _AS_IN_THE_FILE, override: Override = None) -> None:
    """Show what a job will read, write and take, without reading a pixel.

    Parameters
    ----------
    job
        The job file, such as workflows/digits.yml.
    options
        Where to, and where its tasks run.
    override
        KEY=VALUE instead of the job file's: cluster.memory=4GB.
    """
    printing.print_plan(pipeline.forecast(_job(job, override, options)))


def _job(job: Path, override: Override, options: JobOptions) -> Any:
    return pipeline.load_job(job, override or (), options.output, options.cluster, options.without)


@app.command
def show(path: str, /, *, grid: Path | None = None, split: str | None = None) -> None:
    """Show what a store or a run holds.

    Parameters
    ----------
    path
        The folder of a store or a run.
    grid
        A PNG file to draw: sample images, or a run's prototypes.
    split
        The split to draw from; default: the first.
    """
    content = pipeline.describe(path)
    if content["kind"] == "pixsim run":
        printing.print_run(content)
        printing.print_run_content(content)
    elif content["kind"] == "pixsim audit":
        printing.print_audit(content)
    else:
        printing.print_images(content)
    if grid is not None:
        pipeline.draw_grid(path, grid, split)
        print(f"drawn in {grid}")


@app.command
def compare(*runs: str) -> None:
    """Show runs side by side: accuracies, what differs in their settings, what they leave out.

    Parameters
    ----------
    runs
        The folders of two or more finished runs.
    """
    printing.print_comparison(pipeline.compare(runs))


@app.command
def explain(
    path: str,
    /,
    *,
    split: str,
    sample: int,
    neighbours: int = 0,
    pixels: str | None = None,
    picture: Path | None = None,
) -> None:
    """Show how far one image is from every prototype of a run, and its nearest images.

    Parameters
    ----------
    path
        The folder of the run.
    split
        The split of the image.
    sample
        Its index there.
    neighbours
        How many of the nearest images to show, by each metric of the run; default: none.
    pixels
        ROWS,COLS to show as a shaded table, such as 5:25,4:24.
    picture
        A PNG or SVG file to draw: image, prototypes, differences, nearest, distances, pixels.
    """
    explanation = pipeline.explain(path, split, sample, neighbours=neighbours)
    printing.print_explanation(explanation)
    if pixels is not None:
        pipeline.print_pixels(explanation.image, explanation.full_scale, pixels)
    if picture is not None:
        pipeline.draw_explanation(explanation, picture, pixels)
        print(f"drawn in {picture}")


@app.command
def report(
    path: str,
    /,
    *,
    output: Annotated[Path | None, _OUTPUT] = None,
    show: Annotated[bool, Parameter(name="--open", negative=())] = False,
) -> None:
    """Write the report of a run again: one page that can be mailed.

    Parameters
    ----------
    path
        The folder of the run.
    output
        The page to write; default: report.html in the folder.
    show
        Open it in the browser.
    """
    page = pipeline.write_report(path, output)
    print(f"report in {page}")
    if show:
        if not isinstance(page, type(Path())):
            raise InputError(f"{page}: is no local file; --output writes one, which can be opened")
        webbrowser.open(page.absolute().as_uri())


@app.command
def digest(path: str, /) -> None:
    """Read a store or a run whole, and compare its digests.

    Parameters
    ----------
    path
        The folder of a store or a run.
    """
    printing.print_digests(pipeline.digest(path))


@app.command
def verify(
    path: str,
    /,
    *,
    repair: Annotated[bool, _FLAG] = False,
    cluster: str | None = None,
) -> None:
    """Read a store or a run whole, and name each damaged file; exit code 1 where there is one.

    Parameters
    ----------
    path
        The folder of a store or a run.
    repair
        Make what is damaged again: of a store from its source, of a run from its store.
    cluster
        threads, local, a scheduler's address, or a file of workflows/clusters.
    """
    settings = None if cluster is None else pipeline.make_cluster(cluster)
    reporter = pipeline.make_reporter()
    damaged = pipeline.verify(path, repair=repair, cluster=settings, reporter=reporter)
    if not damaged:
        print(f"{path} is whole: every file is as it was written")
        return
    rows = [[damage.file, damage.reason] for damage in damaged]
    pipeline.print_table(["mended" if repair else "damaged", "what is wrong"], rows)
    if not repair:
        raise DamagedError(
            f"{path}: {printing.count_of(len(damaged), 'file')} not as written; "
            f"'pixsim verify {path} --repair' makes what is damaged again"
        )
