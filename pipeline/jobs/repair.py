"""Verifying what is finished, and making again what is damaged, and only that.

A repair is a resume: a run goes on as if it had been cut short before what is damaged was written,
and so does an image set, see `repair_images`; a manifest is made from its copy. The result is
compared with what the manifest had recorded, so a repair ends with the digest that was there
before, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_job
from pipeline.core.arguments import checked
from pipeline.core.errors import ConflictError, DamagedError
from pipeline.core.partitions import image_bytes
from pipeline.core.paths import locate
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.execution.workers import require_room
from pipeline.jobs.job import EFFORT, record_prototypes, resume_plan
from pipeline.jobs.plan import JobPlan, plan_job
from pipeline.jobs.repair_images import ImageRepair
from pipeline.jobs.verification import Damage, examine, read_finished
from pipeline.report.opened import Run
from pipeline.report.page import add_report
from pipeline.storage import claims, manifest, run_arrays
from pipeline.storage.atomic import require_writable
from pipeline.storage.completeness import FOREIGN
from pipeline.storage.folders import remove_tree
from pipeline.storage.locks import held
from pipeline.storage.run_files import REPORT_FILE

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
            require_room(_shards(content), len(content["partitions"]), executor.layout)
        damages = examine(folder, executor, listener)
        if not repair or not damages:
            return damages
        with held(folder, "repair", listener.say):
            repaired = _repair(folder, damages, executor, listener, storage_options or {})
    return repaired


def _shards(content: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Yield the samples of a shard and the bytes of a sample, of each split of an image set."""
    for split in content["splits"].values():
        yield min(split["shard"], split["count"]), image_bytes(split["shape"], split["dtype"])


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
            content = ImageRepair(path, content, executor, reporter, options).run(left)
        else:
            content = _resume_run(path, content, left, executor, reporter, options)
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
            whole = add_report(report, whole)
    else:
        plan = _plan_again(path, content, executor, options)
        for file in files:
            remove_tree(path / file)
        if any(file.startswith(f"{run_arrays.PROTOTYPES}/") for file in files):
            remove_tree(path / run_arrays.PROTOTYPES)
        else:
            record_prototypes(plan, content["digests"]["prototypes"])
        resume_plan(plan, executor, reporter, lambda _: {name: content[name] for name in EFFORT})
        made = manifest.read_manifest(path, manifest.RUN)
        if made["digests"] != content["digests"]:
            raise DamagedError(
                f"{shown(path)}: has digest {made['digests']['run']} after it was repaired, "
                f"recorded was {content['digests']['run']}; run the job anew, to another place"
            )
        # it stays the run that it was; what a newer library writes otherwise has other hashes
        whole = dict(content) | {key: made[key] for key in ("files", "arrays", "sizes")}
        if REPORT_FILE in whole["files"]:
            whole = add_report(report, whole)
    manifest.put_manifest(path, whole)
    return whole


def _plan_again(
    path: Path, content: Mapping[str, Any], executor: Executor, options: Mapping[str, Any]
) -> JobPlan:
    """Plan the job of a run once more; its image set must be the one that it was."""
    kept = {k: v for k, v in content["settings"].items() if k not in _ELSEWHERE}
    place = content["images"]["path"]
    changed = {"images": place, "output": str(path), "storage_options": dict(options)}
    plan = plan_job(make_job(kept | changed), locate(place, options), executor.layout)
    if claims.identity(plan.decides()) != content["identity"]:
        raise ConflictError(
            f"{shown(path)}: was made from an image set with digest {content['images']['digest']}, "
            f"{place} has {plan.content['digest']} now; bring back that one to repair the run, "
            "or run the job anew"
        )
    return plan
