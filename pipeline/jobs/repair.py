"""Verifying what is finished, and making again what is damaged, and only that.

Every file of an image set or run is read again and compared with its manifest. Documents and tables
must have the SHA-256 that the manifest has for them. Of arrays every chunk must pass its checksum,
and every file must be the one that was written there; the samples of an image set must have their
SHA-256 besides. What is not as it was is named, file by file.

A repair is a resume: a run goes on as if it had been cut short before what is damaged was written,
and so does an image set, see `repair_images`; a manifest is made from its copy. The result is
compared with what the manifest had recorded, so a repair ends with the digest that was there
before, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.audit_settings import make_audit
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_job
from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import ConflictError, DamagedError
from pipeline.core.partitions import image_bytes
from pipeline.core.paths import locate, shown
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.execution.workers import require_room
from pipeline.jobs.audit import resume_audit
from pipeline.jobs.audit_plan import plan_audit
from pipeline.jobs.examination import Damage, examine, read_finished
from pipeline.jobs.job import EFFORT, record_prototypes, resume_plan
from pipeline.jobs.plan import JobPlan, plan_job
from pipeline.jobs.repair_images import ImageRepair
from pipeline.report.opened import Run
from pipeline.storage import claims, manifest, run_files
from pipeline.storage.atomic import require_writable
from pipeline.storage.folders import remove_tree
from pipeline.storage.locks import held
from pipeline.storage.recorded_files import FOREIGN
from pipeline.storage.run_files import REPORT_FILE
from pipeline.storage.sample_lists import EXCLUDED

if TYPE_CHECKING:
    from pipeline.report import page
else:
    page = deferred("pipeline.report.page")  # what draws is imported where it draws

_SHOWN = 5
_ELSEWHERE = ("images", "output", "cluster")  # settings that this command has


@checked
def verify(
    path: Path | str,
    *,
    repair: bool = False,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Damage]:
    """Read a finished image set or run whole, and tell which of its files are damaged.

    Parameters
    ----------
    path
        Its folder, or URL.
    repair
        Whether to make these files again: parts of an image set from its source, parts of a run
        from its image set.
    cluster
        Where tasks run; default: threads.
    reporter
        Told of the progress.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Returns
    -------
    The damaged files; where `repair`, those that were damaged and are whole again.

    Raises
    ------
    StoreError
        Where there is no such folder, or it was never finished.
    DamagedError
        Where neither the manifest nor its copy can be read, or something is damaged that cannot
        be made again; says why.
    SourceError, ConflictError
        Where the source, or the image set of a run, is not there or not what it was.
    InUseError
        Where another process repairs it.
    """
    folder, listener = locate(path, storage_options), reporter or SilentReporter()
    content, _ = read_finished(folder)
    if repair:
        require_writable(folder)
    with deferred_executor(cluster, listener) as executor:
        if content["kind"] == manifest.IMAGES:
            splits = content["splits"].values()
            shards = [
                (min(s["shard"], s["count"]), image_bytes(s["shape"], s["dtype"])) for s in splits
            ]
            require_room(shards, len(content["partitions"]), executor.layout)
        damages = examine(folder, executor, listener)
        if not repair or not damages:
            return damages
        with held(folder, "repair", listener.say):
            repaired = _repair(folder, damages, executor, listener, storage_options or {})
    return repaired


def _repair(
    path: Path,
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> list[Damage]:
    """Make damaged files again, until none is left; return all that were.

    What hides behind damaged metadata shows once that is repaired, so there may be several rounds.
    """
    content, _ = read_finished(path)
    repaired: set[Damage] = set()
    left = list(damages)
    while left:
        if repaired.issuperset(left):
            named = ", ".join(damage.file for damage in left[:_SHOWN])
            raise DamagedError(
                f"{shown(path)}: {len(left)} files are damaged still ({named}); make it anew"
            )
        repaired |= set(left)
        if content["kind"] == manifest.IMAGES:
            content = ImageRepair(path, content, executor, reporter, options).run(
                {damage.file: damage.partition for damage in left}
            )
        else:
            resume = _resume_audit if content["kind"] == manifest.AUDIT else _resume_run
            content = resume(path, content, left, executor, reporter, options)
        left = examine(path, executor, reporter)
    return sorted(repaired)


def _resume_run(
    path: Path,
    content: Mapping[str, Any],
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Remove the damaged files of a run, and resume it as if it had been cut short."""
    files = {damage.file for damage in damages} - {manifest.MANIFEST, manifest.COPY}
    foreign = {damage.file for damage in damages if damage.reason == FOREIGN}
    report = Run(path, options)
    if files - foreign <= {REPORT_FILE}:
        for file in foreign:
            remove_tree(path / file)
        whole = dict(content)
        if REPORT_FILE in files:
            whole = page.add_report(report, whole)
    else:
        plan = _plan_again(path, content, executor, options, files)
        for file in files:
            remove_tree(path / file)
        if any(file.startswith(f"{run_files.PROTOTYPES}/") for file in files):
            remove_tree(path / run_files.PROTOTYPES)
        else:
            record_prototypes(plan, content["digests"]["prototypes"])
        resume_plan(plan, executor, reporter, lambda _: {name: content[name] for name in EFFORT})
        made = manifest.read_manifest(path, manifest.RUN)
        _require_same_digest(path, content, made, "run")
        # it stays the run that it was; what a newer library writes otherwise has other hashes
        whole = dict(content) | {key: made[key] for key in ("files", "arrays", "sizes")}
        if REPORT_FILE in whole["files"]:
            whole = page.add_report(report, whole)
    manifest.put_manifest(path, whole)
    return whole


def _resume_audit(
    path: Path,
    content: Mapping[str, Any],
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Remove the damaged files of an audit, and resume it as if it had been cut short."""
    settings = make_audit(_settings_again(path, content, options))
    images = locate(content["images"]["path"], options)
    plan = plan_audit(settings, images, executor.layout)
    _require_same_images(path, content, claims.identity(plan.decides()), plan.content["digest"])
    for damage in damages:
        if damage.file not in (manifest.MANIFEST, manifest.COPY):
            remove_tree(path / damage.file)
    effort = {name: content[name] for name in ("seconds", "pixel_bytes")}
    resume_audit(plan, executor, reporter, effort)
    made = manifest.read_manifest(path, manifest.AUDIT)
    _require_same_digest(path, content, made, "audit")
    whole = dict(content) | {key: made[key] for key in ("files", "arrays", "sizes")}
    manifest.put_manifest(path, whole)
    return whole


def _settings_again(
    path: Path, content: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that a manifest has, for the folder and the image set as they lie now."""
    kept = {k: v for k, v in content["settings"].items() if k not in _ELSEWHERE}
    known = {"images": content["images"]["path"], "output": str(path)}
    return kept | known | {"storage_options": dict(options)}


def _require_same_digest(
    path: Path, content: Mapping[str, Any], made: Mapping[str, Any], name: str
) -> None:
    """Raise `DamagedError` unless what was repaired has the digests that it had."""
    if made["digests"] != content["digests"]:
        raise DamagedError(
            f"{shown(path)}: has digest {made['digests'][name]} after it was repaired, "
            f"recorded was {content['digests'][name]}; make it anew, to another place"
        )


def _require_same_images(
    path: Path, content: Mapping[str, Any], identity: str, digest: str
) -> None:
    """Raise `ConflictError` where the image set is not the one that it was made from."""
    if identity != content["identity"]:
        raise ConflictError(
            f"{shown(path)}: was made from an image set with digest {content['images']['digest']}, "
            f"{content['images']['path']} has {digest} now; bring back that one to repair it, "
            "or make it anew"
        )


def _plan_again(
    path: Path,
    content: Mapping[str, Any],
    executor: Executor,
    options: Mapping[str, Any],
    damaged: Container[str],
) -> JobPlan:
    """Plan the job of a run once more; its image set must be the one that it was.

    So must the samples that it leaves out: those of its copy, unless that is `damaged`.
    """
    settings = _settings_again(path, content, options)
    settings.setdefault("leave_one_out", False)  # of a run that was made before there was this
    if EXCLUDED in content["files"] and EXCLUDED not in damaged:
        settings["exclude"] = str(path.absolute() / EXCLUDED)
    images = locate(content["images"]["path"], options)
    plan = plan_job(make_job(settings), images, executor.layout)
    _require_same_images(path, content, claims.identity(plan.decides()), plan.content["digest"])
    return plan
