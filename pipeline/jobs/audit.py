"""An audit of an image set: what is in it twice, named wrongly, or like nothing else.

It is one search of everything among everything, which is cut into tasks, saved and resumed as that
of a job, and a finish in this process, which reads the lists back and puts the tables together. The
manifest is written last: the folder is verified, repaired and recognised like that of a run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from pipeline.config.audit_settings import AuditSettings, audit_of_job, make_audit
from pipeline.config.job_settings import load_environment, load_job
from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import JobInterruptedError
from pipeline.core.exact import Int64Array
from pipeline.core.paths import short_name, shown
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.ingestion.duplicates import DUPLICATES
from pipeline.ingestion.ingest import prepare_images
from pipeline.jobs.audit_lists import ListTables
from pipeline.jobs.audit_plan import AuditPlan, plan_audit
from pipeline.jobs.audit_tables import write_findings
from pipeline.jobs.last_page import with_page
from pipeline.jobs.neighbours_pass import write_neighbours
from pipeline.jobs.search_pass import SearchedJob
from pipeline.report.opened_audit import Audit
from pipeline.storage import claims, manifest, tables
from pipeline.storage.audit_files import PAGE_FILE, audit_digest, list_audit_files
from pipeline.storage.run_files import NEIGHBOURS

if TYPE_CHECKING:
    from pipeline.report import audit_page
else:
    audit_page = deferred("pipeline.report.audit_page")  # what draws is imported where it draws


@checked
def run_audit(
    settings: AuditSettings | Mapping[str, Any],
    reporter: Reporter | None = None,
    *,
    resume: bool = True,
    overwrite: bool = False,
) -> Audit:
    """Audit an image set, or do what is left of it, and return what was found.

    Parameters
    ----------
    settings
        As `make_audit` returns, or the mapping that it takes.
    reporter
        Told of the progress.
    resume
        Whether to go on with what the output folder holds of this audit, or to return it where it
        is finished; else the folder must be new or empty.
    overwrite
        Whether to replace what the output folder, or that of the store, holds of another. What is
        finished stays there, in `.work`, until the new is complete.

    Raises
    ------
    InputError
        Where it cannot be done as it is; nothing is written.
    ConflictError
        Where the output folder holds another audit, or anything else. It is left as it is.
    InUseError
        Where another process fills the folder.
    JobInterruptedError
        Where the user stopped it; the same command goes on from there.
    """
    listener = reporter or SilentReporter()
    if not isinstance(settings, AuditSettings):
        settings = make_audit(settings)
    claims.require_place(settings.output, lock=True)
    try:
        with deferred_executor(settings.named_cluster, listener) as executor:
            images = prepare_images(
                settings.images, executor, listener, settings.storage_options, overwrite=overwrite
            )
            terms = claims.Terms(resume=resume, overwrite=overwrite)
            return audit_images(settings, images, executor, listener, **terms)
    except KeyboardInterrupt:
        raise JobInterruptedError(
            f"interrupted: {shown(settings.output)} is incomplete, what was searched is kept; run "
            "the same command again to complete it"
        ) from None


def audit_images(
    settings: AuditSettings,
    images: Path,
    executor: Executor,
    reporter: Reporter,
    **terms: Unpack[claims.Terms],
) -> Audit:
    """Audit an image set that is there, on workers that are; see `run_audit`."""
    plan = plan_audit(settings, images, executor.layout)
    with claims.claimed(plan.output, manifest.AUDIT, plan.decides(), reporter.say, **terms) as done:
        if done is None:
            resume_audit(plan, executor, reporter)
        else:
            reporter.say(f"{shown(settings.output)} is complete already")
    return Audit(settings.output, settings.storage_options)


@checked
def load_audit(
    source: Path | str,
    overrides: Iterable[str] = (),
    output: Path | str | None = None,
    cluster: str | None = None,
) -> AuditSettings:
    """Return the audit of a source, a store, or the images of a job file.

    Parameters
    ----------
    source
        As for an ingest; or the job file, whose key `audit` says what is looked for.
    overrides
        `key=value` texts that replace keys: of the audit, such as `k=20` or `images.mode=RGB`; of
        the job, such as `audit.k=20`, where there is one.
    output
        The folder of the audit; default: `audit` in the job's output, else `data/audits/NAME`.
    cluster
        Where its tasks run, see `make_cluster`.

    Raises
    ------
    ConfigError
        Where a file cannot be read, keys are unknown, or values wrong.
    """
    text = str(source)
    if text.lower().endswith((".yml", ".yaml")):
        return audit_of_job(load_job(text, overrides, cluster=cluster), output)
    name = short_name(text)
    place = load_environment().data / "audits" / name if output is None else output
    known = {"name": name, "images": text, "output": place}
    return make_audit(known | ({} if cluster is None else {"cluster": cluster}), overrides)


def resume_audit(
    plan: AuditPlan, executor: Executor, reporter: Reporter, effort: Mapping[str, Any] | None = None
) -> None:
    """Do what of an audit is not done in a folder that is locked; `effort` is that of before."""
    begun = time.monotonic()
    job = SearchedJob(
        plan.output, plan.images, plan.content["digest"], plan.search, None,
        claims.identity(plan.decides()), plan.pixels, plan.content["full_scale"],
    )  # fmt: skip
    read = write_neighbours(job, plan.arrangement, plan.settings.device, executor, reporter)
    lists = ListTables(plan.output, plan.search)
    found = write_findings(plan, lists, _copies(plan), executor)
    digests = {NEIGHBOURS: lists.digest.result(plan.search.names), **found}
    known = effort or {"seconds": round(time.monotonic() - begun, 3), "pixel_bytes": read}
    content = manifest.draft(
        manifest.AUDIT,
        {
            "name": plan.settings.name,
            "identity": claims.identity(plan.decides()),
            "plan": plan.decides(),
            "settings": plan.settings.model_dump(mode="json"),
            "class_names": list(plan.content["class_names"]),
            "images": {
                "path": shown(plan.images),
                "digest": plan.content["digest"],
                "provenance": plan.content["provenance"],
            },
            "digests": digests | {"audit": audit_digest(digests)},
            "executor": executor.description,
            "device": plan.device.description,
            NEIGHBOURS: {"partitions": lists.parts},
            "measures": plan.search.names,
            **known,
            **list_audit_files(plan.output, len(lists.parts)),
        },
    )
    made = Audit(plan.output, plan.settings.storage_options)
    path = plan.settings.output / PAGE_FILE
    # looked up within: it may be the import that fails
    content = with_page(lambda c: audit_page.add_page(made, c), content, path, reporter)
    manifest.write_manifest(plan.output, manifest.AUDIT, content)


def _copies(plan: AuditPlan) -> Int64Array:
    """Return the pairs of an image and a later one of the same pixels, [pair, 2], by numbers."""
    if not plan.content["duplicates"]:
        return np.empty((0, 2), np.int64)
    names = dict(zip(plan.splits, plan.firsts, strict=True))
    manifest.require_files(plan.images, plan.content, [DUPLICATES])
    pairs = []
    for rows in tables.read_groups(plan.images / DUPLICATES):
        ends = []
        for prefix in ("first_", ""):
            splits, code = np.unique(rows.texts(f"{prefix}split").astype(str), return_inverse=True)
            firsts = np.array([names[str(split)] for split in splits], np.int64)
            ends.append(firsts[code] + rows.integers(f"{prefix}sample"))
        pairs.append(np.stack(ends, axis=1))
    return np.concatenate(pairs)
