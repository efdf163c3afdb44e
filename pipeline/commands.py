"""The commands: each parses its arguments, calls the public API and prints; nothing else.

`import pipeline` gives names that are imported when first used, so that `pixsim --help` costs
no more than the parser.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

import pipeline
from pipeline import options as given
from pipeline import printing
from pipeline.core.errors import DamagedError, InputError
from pipeline.options import OUTPUT, Output, Override
from pipeline.output import of_lines

_HERE = ("threads", "local", "gpus")
_FLAG = Parameter(negative=())

app = App(
    name="pixsim",
    help="Pixel similarity: how far does the simplest possible model get on an image set?",
    version=pipeline.__version__,
    help_format="plaintext",  # no Markdown, whose parser takes a tenth of a second to import
    help_epilogue="Exit codes: 0 done, 1 the job failed, 2 the input was wrong, 3 it was stopped "
    "(the same\ncommand goes on), 4 another process holds the folder.\n"
    "--debug before a command shows the traceback of an error.",
    suppress_keyboard_interrupt=False,  # else it ends the process without a word
)


@app.command
def demo(*, printed: given.Printed = given.AS_TEXT) -> None:
    """Run the seed article's study on Fashion-MNIST, else on digits."""
    runs = []
    for run, picture in pipeline.run_demo(printed.reporter):
        runs.append(pipeline.describe(run.path))
        if printed.format == "text":
            printed.show(None, printing.of_run(runs[-1]))
        printed.note(f"prototypes drawn in {picture}\n")
    if printed.format != "text":
        printed.show(runs, (part for each in runs for part in printing.of_run(each)))


@app.command
def datasets(*, printed: given.Printed = given.AS_TEXT) -> None:
    """List the named data sets, and where their files are."""
    known = pipeline.list_datasets()
    printed.show(printing.datasets(known), printing.of_datasets(known))


@app.command
def init(
    source: str,
    /,
    *,
    output: Annotated[Path | None, OUTPUT] = None,
    override: Override = None,
    printed: given.Printed = given.AS_TEXT,
) -> None:
    """Write a job file for an image set, with comments on what is there and on every key.

    Parameters
    ----------
    source
        What run takes: a folder, archive, table or URL, a store, the name of a data set.
    output
        The file to write; default: NAME.yml here. One that is there is left as it is.
    override
        KEY=VALUE of the job: images.resize=64 metrics=l1.
    """
    told: list[str] = []
    say = printed.reporter.say
    path = pipeline.init_job(source, output, override or (), say=say, told=told.append)
    line = f"job in {path}; {' '.join(told)}"
    printed.show({"job": str(path)}, of_lines(line, job=str(path)))


@app.command
def ingest(
    source: str,
    /,
    *,
    output: Output = None,
    options: given.IngestPieces = given.NO_PIECES,
    cluster: str | None = None,
    profile: Path | None = None,
    override: Override = None,
    printed: given.Printed = given.AS_TEXT,
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
    place = (output, options.shard)
    if options.only is not None:
        if options.append or options.overwrite:
            raise InputError("--only does one step of an ingest, without --append or --overwrite")
        if cluster is None and settings is not None and settings.kind not in _HERE:
            settings = None  # the steps are what a cluster runs
        _ingest_step(options.only, images, place, settings, printed)
        return
    path = pipeline.ingest(
        images, *place, settings, printed.reporter,
        append=options.append, profile=profile, overwrite=options.overwrite,
    )  # fmt: skip
    content = pipeline.describe(path)
    printed.show(content, printing.of_images(content))


def _images(source: str, overrides: Sequence[str], cluster: str | None) -> tuple[Any, Any]:
    """Return what a source or a job file says of images, with overrides, and of the cluster."""
    if source.lower().endswith((".yml", ".yaml")):
        inner = [f"images.{text}" for text in overrides]
        job = pipeline.load_job(source, inner, cluster=cluster)
        return job.images, job.named_cluster
    settings = None if cluster is None else pipeline.make_cluster(cluster, Path(source).parent)
    return pipeline.make_images(source, overrides), settings


def _ingest_step(
    step: str, images: Any, place: tuple[Any, Any], settings: Any, printed: given.Printed
) -> None:
    """Do one step of an ingest, for clusters that run them apart."""
    if step == "plan":
        planned = pipeline.plan_ingest(images, *place, settings, printed.reporter)
        left = printing.count_of(planned, "partition") + " to write"
        line = left if planned else "finished already"
        printed.show({"partitions": planned}, of_lines(line, partitions=planned))
        return
    if step == "finish":
        path = pipeline.finish_ingest(images, *place, settings, printed.reporter)
        content = pipeline.describe(path)
        printed.show(content, printing.of_images(content))
        return
    first, colon, last = step.partition(":")
    if not first.isdecimal() or not (last if colon else first).isdecimal():
        raise InputError(f"--only {step}: expected plan, finish, or partitions such as 17 or 0:100")
    stop = int(last) if colon else int(first) + 1
    pipeline.ingest_partitions(images, int(first), stop, *place, settings, printed.reporter)


@app.command
def run(
    source: str,
    /,
    *,
    options: given.JobOptions = given.AS_IT_IS,
    doing: given.RunOptions = given.ONLY_RUN,
    override: Override = None,
    printed: given.Printed = given.AS_TEXT,
) -> None:
    """Run a job, or what is left of it.

    Parameters
    ----------
    source
        A folder of images, archive, table or URL, a store, the name of a data set or of a job that
        comes with pixsim, such as digits; or a job file.
    options
        What replaces keys of the job.
    doing
        What becomes of what is there, and what else is written.
    override
        KEY=VALUE of the job, such as device=cpu images.resize=64.
    """
    reporter = printed.reporter
    job = pipeline.find_job(source, override or (), options.changes(), reporter.say)
    if doing.save_job is not None:
        pipeline.save_job(job, doing.save_job, write=False)  # refuses what could not be written
    finished = pipeline.run_job(
        job, reporter, doing.profile, resume=doing.resume, overwrite=doing.overwrite
    )
    content = pipeline.describe(finished.path)
    printed.show(content, printing.of_run(content))
    if doing.save_job is not None:
        printed.note(f"job in {pipeline.save_job(job, doing.save_job, finished)}")


@app.command
def audit(
    source: str,
    /,
    *,
    options: given.Placement = given.NOWHERE_ELSE,
    doing: given.Again = given.GO_ON,
    override: Override = None,
    printed: given.Printed = given.AS_TEXT,
) -> None:
    """Find what is in an image set twice, named wrongly, or like nothing else.

    Parameters
    ----------
    source
        A store, what ingest takes, or a job file.
    options
        Where to, and where its tasks run; default: data/audits/NAME, or audit in a job's output.
    doing
        What becomes of what is there.
    override
        KEY=VALUE: k=20 variants=mirror images.mode=RGB; of a job file, its keys.
    """
    settings = pipeline.load_audit(source, override or (), options.output, options.cluster)
    how = {"resume": doing.resume, "overwrite": doing.overwrite}
    content = pipeline.describe(pipeline.run_audit(settings, printed.reporter, **how).path)
    printed.show(content, printing.of_audit(content))


@app.command
def plan(
    source: str,
    /,
    *,
    options: given.JobOptions = given.AS_IT_IS,
    override: Override = None,
    printed: given.Printed = given.AS_TEXT,
) -> None:
    """Show what a job will read, write and take, without reading a pixel.

    Parameters
    ----------
    source
        What run takes, such as a folder of images or workflows/digits.yml.
    options
        What replaces keys of the job.
    override
        KEY=VALUE of the job: cluster.memory=4GB.
    """
    job = pipeline.find_job(source, override or (), options.changes(), printed.reporter.say)
    content = pipeline.forecast(job)
    printed.show(content, printing.of_plan(content))


@app.command
def show(
    path: str,
    /,
    *,
    grid: Path | None = None,
    split: str | None = None,
    printed: given.Printed = given.AS_TEXT,
) -> None:
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
    printed.show(content, printing.of_folder(content))
    if grid is not None:
        pipeline.draw_grid(path, grid, split)
        printed.note(f"drawn in {grid}")


@app.command
def compare(*runs: str, printed: given.Printed = given.AS_TEXT) -> None:
    """Show runs side by side: accuracies, what differs in their settings, what they leave out.

    Parameters
    ----------
    runs
        The folders of two or more finished runs.
    """
    compared = pipeline.compare(runs)
    printed.show(compared, printing.of_comparison(compared))


@app.command
def explain(
    path: str,
    /,
    *,
    split: str,
    sample: given.WholeNumber,
    options: given.Explained = given.ONLY_DISTANCES,
    printed: given.Printed = given.AS_TEXT,
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
    options
        What else is shown of it.
    """
    pixels = options.pixels
    if pixels is not None and printed.format == "csv":
        raise InputError("--pixels shades a text; --format json has the pixels of the image")
    explanation = pipeline.explain(path, split, sample, neighbours=options.neighbours)
    content = printing.explained(explanation, with_image=pixels is not None)
    printed.show(content, printing.of_explanation(explanation))
    if pixels is not None and printed.format == "text" and not printed.quiet:
        pipeline.print_pixels(explanation.image, explanation.full_scale, pixels)
    if options.picture is not None:
        pipeline.draw_explanation(explanation, options.picture, pixels)
        printed.note(f"drawn in {options.picture}")


@app.command
def report(
    path: str,
    /,
    *,
    output: Annotated[Path | None, OUTPUT] = None,
    show: Annotated[bool, Parameter(name="--open", negative=())] = False,
    printed: given.Printed = given.AS_TEXT,
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
    printed.show({"report": str(page)}, of_lines(f"report in {page}", report=str(page)))
    if show:
        if not isinstance(page, type(Path())):
            raise InputError(f"{page}: is no local file; --output writes one, which can be opened")
        webbrowser.open(page.absolute().as_uri())


@app.command
def digest(path: str, /, *, printed: given.Printed = given.AS_TEXT) -> None:
    """Read a store or a run whole, and compare its digests.

    Parameters
    ----------
    path
        The folder of a store or a run.
    """
    digests = pipeline.digest(path)
    printed.show(digests, printing.of_digests(digests))


@app.command
def verify(
    path: str,
    /,
    *,
    repair: Annotated[bool, _FLAG] = False,
    cluster: str | None = None,
    printed: given.Printed = given.AS_TEXT,
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
    damaged = pipeline.verify(path, repair=repair, cluster=settings, reporter=printed.reporter)
    content = {"path": path, "repaired": repair, "damaged": damaged}
    printed.show(content, printing.of_verified(content))
    if damaged and not repair:
        raise DamagedError(
            f"{path}: {printing.count_of(len(damaged), 'file')} not as written; "
            f"'pixsim verify {path} --repair' makes what is damaged again"
        )
