"""The job: plan, fit, evaluate, finish.

Two passes over the images, each one task per partition: the first sums the images of each
class, the second measures every image against the prototypes and writes distances and
predictions. A third, where it is asked for, finds the nearest images of each. Images are read,
used and dropped inside a task; between tasks travel sums and file names only.

Nothing that a scheduler remembers is trusted. What is done is read from the run folder: the
prototypes once their record is written, a partition once its table is, each with
the plan's identity and a digest that is checked before it is kept. The finish reads every
table back, so the metrics are those of the files, and writes the manifest last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from pipeline.config.audit_settings import audit_of_job
from pipeline.config.job_files import require_job
from pipeline.config.job_settings import JobSettings
from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import DamagedError, JobInterruptedError, RemoteError
from pipeline.core.paths import shown
from pipeline.core.schema import COUNT, DENOMINATOR, NUMERATOR
from pipeline.core.threads import meanwhile
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.ingestion.ingest import prepare_images
from pipeline.ingestion.plan import IngestPlan, expected_content
from pipeline.ingestion.request import store_path
from pipeline.jobs import plan as planning
from pipeline.jobs.audit import audit_images
from pipeline.jobs.evaluate_pass import EvaluatePartition
from pipeline.jobs.fit_pass import fit, forget
from pipeline.jobs.last_page import with_page
from pipeline.jobs.neighbours_pass import count_votes, find_neighbours
from pipeline.jobs.plan import JobPlan, plan_job
from pipeline.jobs.results import read_results, run_metrics
from pipeline.ops.highlights import closest_classes
from pipeline.report.opened import Run
from pipeline.storage import claims, manifest, run_files
from pipeline.storage.atomic import flush_tree, read_json, write_json
from pipeline.storage.folders import exists, list_folder
from pipeline.storage.run_files import (
    HIGHLIGHTS_FILE,
    METRICS_FILE,
    NEIGHBOURS,
    PREDICTIONS,
    REPORT_FILE,
    RunDigests,
    list_run_files,
    prototypes_digest,
)

if TYPE_CHECKING:
    from pipeline.report import page
else:
    page = deferred("pipeline.report.page")  # what draws is imported where it draws

Effort = Callable[[int], Mapping[str, Any]]
EFFORT = ("seconds", "pixel_bytes", "memory")  # what a manifest says of how a run went


@checked
def run_job(
    settings: JobSettings | Mapping[str, Any] | str | Path,
    reporter: Reporter | None = None,
    profile: Path | None = None,
    *,
    resume: bool = True,
    overwrite: bool = False,
) -> Run:
    """Run a job, or what is left of it, and return the finished run.

    Parameters
    ----------
    settings
        As `find_job`, `load_job` or `make_job` return, or what they take: a mapping, a job file, a
        folder of images, the name of a data set.
    reporter
        Told of the progress.
    profile
        A page of HTML to write dask's performance report into; needs worker processes.
    resume
        Whether to go on with what the output folder holds of this job, or to return it where it is
        finished; else the folder must be new or empty.
    overwrite
        Whether to replace what the output folder, or that of the store, holds of another job. What
        is finished stays there, in `.work`, until the new is complete.

    A job that names no cluster runs on the dask client that this process has opened, if any.

    Raises
    ------
    InputError
        Where the job cannot be run as it is; nothing is written.
    ConflictError
        Where the output folder holds another job's run; it is left as it is.
    InUseError
        Where another process runs the job in this folder, or makes its image set.
    ClusterError
        Where the cluster fails; the same command goes on from there.
    JobInterruptedError
        Where the user stopped it; the same command goes on from there.

    Examples
    --------
    >>> import pipeline
    >>> run = pipeline.run_job({"name": "digits", "images": "digits"})
    >>> round(run.metrics["l2"]["accuracy"], 4)
    0.8754
    """
    listener, settings = reporter or SilentReporter(), require_job(settings)
    if not resume:
        claims.require_unused(settings.output)
    claims.require_place(settings.output, lock=True)
    if settings.names_splits and not overwrite:
        claims.refuse_other(settings.output, manifest.RUN, settings.with_splits({}).decides())
    try:
        with deferred_executor(settings.named_cluster, listener, profile) as executor:
            return _run(settings, executor, listener, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt:
        raise JobInterruptedError(_interrupted(settings.output)) from None


def _run(
    settings: JobSettings, executor: Executor, reporter: Reporter, **terms: Unpack[claims.Terms]
) -> Run:
    """Do what of a job is not done, on workers that are asked for when needed; see `run_job`."""
    images = prepare_images(
        settings.images, executor, reporter, settings.storage_options,
        partial(_refuse_early, settings, executor, terms["overwrite"]),
        overwrite=terms["overwrite"],
    )  # fmt: skip
    outline = planning.outline_job(settings, images)
    if not settings.names_splits:
        reporter.say(outline.settings.choice)
    if claims.recognise(outline.output, manifest.RUN, outline.decides(), **terms):
        claims.tidy(outline.output)
        reporter.say(f"{shown(settings.output)} is complete already")
    else:
        plan = plan_job(settings, images, executor.layout, outline)
        run_plan(plan, executor, reporter, **terms)
    if settings.audit is not None:
        audit_images(audit_of_job(outline.settings), images, executor, reporter, **terms)
    return Run(settings.output, settings.images.storage_options)


def _refuse_early(
    settings: JobSettings, executor: Executor, overwrite: bool, images: IngestPlan
) -> None:
    """Refuse a job on images that are about to be ingested, for what is known of them by now."""
    content = expected_content(images, least=True)
    target = store_path(settings.images, settings.storage_options)
    outline = planning.outline_job(settings, target, content)  # asks no workers
    if not overwrite:
        claims.refuse_other(settings.output, manifest.RUN, outline.settings.decides())
    plan_job(settings, target, executor.layout, outline)


def _interrupted(output: Path) -> str:
    if not exists(output / manifest.WORK):
        return f"interrupted before {shown(output)} was begun; run the same command again"
    parts = sum(name.endswith(".parquet") for name in list_folder(output / PREDICTIONS))
    return (
        f"interrupted: {shown(output)} is incomplete, {parts} of its prediction tables are "
        "written and kept; run the same command again to complete it"
    )


def run_plan(
    plan: JobPlan, executor: Executor, reporter: Reporter, **terms: Unpack[claims.Terms]
) -> None:
    """Run what the plan says and the folder does not hold yet; see `run_job`."""
    begun = time.monotonic()
    with claims.claimed(plan.output, manifest.RUN, plan.decides(), reporter.say, **terms) as done:
        if done is not None:
            reporter.say(f"{shown(plan.settings.output)} is complete already")
            return
        before = executor.peak_memory()
        if not plan.write_distances:
            reporter.say(_why_no_distances(plan))
        resume_plan(plan, executor, reporter, partial(_effort, plan, executor, begun, before))


def resume_plan(plan: JobPlan, executor: Executor, reporter: Reporter, effort: Effort) -> None:
    """Do what of a plan is not done, or no longer as it was, in a folder that is locked.

    `effort` tells at the end, from the bytes of pixels that were read, what `EFFORT` names.
    """
    plan.choice.write()
    fitted, read = _fit(plan, executor, reporter)
    read += _evaluate(plan, executor, reporter, fitted)
    read += find_neighbours(plan, executor, reporter)
    _finish(plan, executor, reporter, fitted, partial(effort, read))


def _effort(
    plan: JobPlan, executor: Executor, begun: float, before: int | None, read: int
) -> dict[str, Any]:
    memory = {
        "planned": plan.footprint.worker,
        "before": before,
        "measured": executor.peak_memory(),
    }
    return {
        "seconds": round(time.monotonic() - begun, 3),
        "pixel_bytes": read,
        "memory": memory,
    }


def _why_no_distances(plan: JobPlan) -> str:
    values = len(plan.settings.metrics) * plan.evaluate.total * len(plan.selection.codes)
    if plan.settings.distances == "skip":
        return "distances are not written, as the job asks"
    limit = planning.MAX_AUTO_DISTANCES
    return (
        f"distances are not written: {values:.3g} values, more than {limit:.0e}; "
        "distances: write keeps them"
    )


def _fit(plan: JobPlan, executor: Executor, reporter: Reporter) -> tuple[str, int]:
    """Write the prototypes, unless they are there; return their digest, and the bytes read."""
    path = plan.output / run_files.PROTOTYPES
    kept = _kept_prototypes(path, _record(plan))
    if kept is not None:
        forget(plan)
        return kept, 0
    fitted = fit(plan, executor, reporter)
    expected = [
        plan.content["splits"][plan.settings.fit]["labels"][code] for code in plan.selection.codes
    ]
    if fitted[COUNT.name].values.tolist() != expected:
        forget(plan)
        raise DamagedError(
            f"{plan.images}: holds {fitted[COUNT.name].values.tolist()} images of the classes, "
            f"its manifest says {expected}; make the image set anew"
        )
    run_files.write_prototypes(path, fitted)
    digest = prototypes_digest(fitted)
    record_prototypes(plan, digest)
    forget(plan)
    images = sum(count for _, count, _ in plan.fit.splits)
    return digest, images * plan.sample_bytes * plan.passes


def record_prototypes(plan: JobPlan, digest: str) -> None:
    """Have a resume use the prototypes that are there, where they have this digest."""
    # the prototypes may reach the disk later as well: after a power cut they are made again
    write_json(_record(plan), {"digest": digest}, lasting=False)


def _record(plan: JobPlan) -> Path:
    return plan.work / "prototypes.json"


def _kept_prototypes(path: Path, record: Path) -> str | None:
    """Return the digest of an earlier try's prototypes where they are whole."""
    try:
        digest = str(read_json(record)["digest"])
        current = prototypes_digest(run_files.read_fractions(path))
    except RemoteError:
        raise
    except (OSError, ValueError, KeyError):
        return None
    return digest if current == digest else None


def _evaluate(plan: JobPlan, executor: Executor, reporter: Reporter, fitted: str) -> int:
    """Measure every image that is not measured yet; return how many bytes of pixels were read."""
    settings, steps = plan.settings, plan.evaluate
    if plan.write_distances:
        codes = np.array(plan.selection.codes, np.int32)
        run_files.create_distances(
            plan.output / run_files.DISTANCES, settings.metrics, plan.selection.names, codes,
            steps.total, steps.step, settings.evaluate,
        )  # fmt: skip
    task = EvaluatePartition(
        plan.output, plan.images, plan.content["digest"], steps, plan.selection,
        settings.metrics, plan.device.name,
        plan.write_distances, claims.identity(plan.decides()), fitted,
        executor.threads_for(steps.steps), settings.fit if settings.leaves_one_out else None,
        plan.choice.measured,
    )  # fmt: skip
    name = "distances of " + ", ".join(f"'{split}'" for split in settings.evaluate)
    size = steps.total * plan.sample_bytes
    with reporter.phase(name, steps.steps, size) as phase, task.token.issued():
        done = executor.map(task, steps.steps, phase)
    bounds = [steps.bounds(index) for index, was_done in enumerate(done) if was_done]
    return plan.sample_bytes * sum(stop - start for start, stop in bounds)


def _finish(
    plan: JobPlan,
    executor: Executor,
    reporter: Reporter,
    fitted: str,
    effort: Callable[[], Mapping[str, Any]],
) -> None:
    """Read every table back: metrics and digests are those of the files. Manifest last.

    The disk takes meanwhile what tasks wrote, so that the manifest waits for little.
    """
    stores = run_files.PROTOTYPES, PREDICTIONS, NEIGHBOURS, run_files.DISTANCES
    with meanwhile(lambda at: flush_tree(plan.output / stores[at]), len(stores)) as wait:
        content, written = _results(plan, executor, fitted, effort)
        wait()
    if plan.settings.report:
        run = Run(plan.output, plan.settings.images.storage_options)
        cure = "; 'pixsim report' tries it again"
        path = plan.settings.output / REPORT_FILE
        # looked up within: it may be the import that fails
        content = with_page(lambda c: page.add_report(run, c), content, path, reporter, cure)
    manifest.write_manifest(plan.output, manifest.RUN, content, run_files.flushed(written, stores))


def _results(
    plan: JobPlan, executor: Executor, fitted: str, effort: Callable[[], Mapping[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the metrics; return what the manifest says but for the report, and of which files."""
    results, votes = read_results(plan), count_votes(plan)
    figures = run_metrics(plan, results.counts)
    if votes is not None:
        votes.add_to(figures)
    figures |= plan.choice.recorded()
    voted = votes.digest.result(list(plan.selection.names)) if votes else None
    digests = RunDigests(fitted, results.distances, results.predictions, voted)
    write_json(plan.output / METRICS_FILE, figures, indent=None, lasting=False)
    highlighted = results.highlights | {"prototypes": _closest(plan, executor)}
    write_json(plan.output / HIGHLIGHTS_FILE, highlighted, indent=None, lasting=False)
    written: dict[str, Any] = {"partitions": results.parts}
    if votes is not None:
        written[NEIGHBOURS] = {"partitions": votes.parts}
    written |= list_run_files(plan.output, written, plan.write_distances, plan.choice.files)
    return _manifest(plan, executor, digests, written, effort()), written


def _manifest(
    plan: JobPlan,
    executor: Executor,
    digests: RunDigests,
    written: Mapping[str, Any],
    effort: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the manifest will say, but for the report."""
    decides = plan.decides()
    return manifest.draft(
        manifest.RUN,
        {
            "name": plan.settings.name,
            "identity": claims.identity(decides),
            "plan": decides,
            "settings": plan.settings.model_dump(mode="json"),
            "class_names": list(plan.selection.names),
            "images": {
                "path": shown(plan.images),
                "digest": plan.content["digest"],
                "provenance": plan.content["provenance"],
            },
            **plan.choice.recorded(),
            "digests": digests.as_dict(),
            "arithmetic": plan.arithmetic.reason,
            "executor": executor.description,
            "device": plan.device.description,
            **effort,
            **written,
        },
    )


def _closest(plan: JobPlan, executor: Executor) -> dict[str, Any]:
    """Compare the prototypes that were written with each other."""
    written = run_files.read_fractions(plan.output / run_files.PROTOTYPES)
    fraction = written[NUMERATOR.name].values, written[DENOMINATOR.name].values
    threads = executor.layout.cores if not executor.layout.processes else 1
    return closest_classes(*fraction, plan.full_scale, plan.settings.metrics, threads)
