"""What a job will do, in plain values: for `pixsim plan`. Nothing but metadata is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.config.job_files import require_job
from pipeline.config.job_settings import JobSettings
from pipeline.core.partitions import ceil_div, image_bytes
from pipeline.core.paths import shown
from pipeline.ingestion.plan import expected_content, plan_source, require_memory
from pipeline.ingestion.request import find_images, store_path
from pipeline.jobs.fit_pass import SUMS, kept_files
from pipeline.jobs.neighbours_pass import describe_search
from pipeline.jobs.plan import JobPlan, outline_job, plan_job
from pipeline.jobs.search_plan import Arrangement, Search
from pipeline.sources.registry import folder_note, open_source, packed, release
from pipeline.storage import claims, manifest, run_files
from pipeline.storage.run_files import (
    HIGHLIGHTS_FILE,
    METRICS_FILE,
    NEIGHBOURS,
    PREDICTIONS,
    REPORT_FILE,
)

# Bytes of a row of predictions in Parquet, as measured.
_ROW_BYTES = 40
# Bytes of a row of neighbours, likewise.
_NEIGHBOUR_BYTES = 48


def forecast(settings: JobSettings | Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Work out what a job will read, write and take, without reading a pixel.

    Where the image set is not made yet it goes by what the source says of itself; the number of
    images of each class is not known then, and taken to be as large as can be.

    Parameters
    ----------
    settings
        As `find_job`, `load_job` or `make_job` return, or what they take.

    Returns
    -------
    `name`, `images`, `ingested` (whether the image set exists), `classes`, `shape`, `dtype`;
    `fit` and `evaluate` (splits), `choice` (a line that says that they were chosen, else None);
    `passes`, each with name, partitions, tasks, reads (how often it reads the images), images
    and bytes (of pixels); `leave_one_out` (the split whose images are measured without
    themselves, or None); `pairs` (distances that a search for neighbours without bounds would
    measure); `workers` (processes, tasks each, threads a task, bytes of memory each);
    `memory` (bytes: fit, evaluate, search, worker, client, total, limit); `device` (description,
    and bytes of its own memory that one process needs and may take); `arithmetic` (name,
    reason), `tiles` and `tiling` (of pixels, and why there are several), `files` (path, files,
    bytes); `excluded` (how many samples are left out of each split, and why), `holdout`.

    Raises
    ------
    InputError
        Where the job cannot be run as it is; as `run_job`.
    """
    settings = require_job(settings)
    claims.require_place(settings.output)
    path = find_images(settings.images, settings.storage_options)
    if path is not None:
        return _describe(plan_job(settings, path), settings, ingested=True)
    target = store_path(settings.images, settings.storage_options)
    claims.require_place(target)
    claims.could_hold(target, manifest.IMAGES)
    source = open_source(settings.images)
    try:
        planned = plan_source(packed(source, settings.images), target, settings.images.shard)
        content = expected_content(planned)
    finally:
        release(source)
    plan = plan_job(settings, target, outline=outline_job(settings, target, content))
    require_memory(planned, plan.workers)
    described = _describe(plan, settings, ingested=False)
    return described | {"images": folder_note(settings.images) or described["images"]}


def _describe(plan: JobPlan, asked: JobSettings, ingested: bool) -> dict[str, Any]:
    chosen = plan.settings
    claims.refuse_other(chosen.output, manifest.RUN, chosen.decides())
    workers = plan.workers
    memory = {
        name: getattr(plan.footprint, name)
        for name in ("fit", "evaluate", "search", "worker", "client", "total")
    }
    return {
        "name": plan.settings.name,
        "output": str(plan.settings.output),
        "images": shown(plan.images) if ingested else plan.settings.images.title,
        "ingested": ingested,
        "classes": len(plan.selection.codes),
        "shape": list(plan.shape),
        "dtype": plan.dtype,
        "fit": chosen.fit,
        "evaluate": list(chosen.evaluate),
        "choice": None if asked.names_splits else chosen.choice,
        "passes": list(_passes(plan, ingested)),
        "leave_one_out": chosen.fit if chosen.leaves_one_out else None,
        "pairs": plan.search.pairs if plan.search else 0,
        "workers": {
            "processes": workers.processes,
            "tasks": workers.tasks,
            "threads": max(1, workers.cores // workers.at_once),
            "memory": workers.memory,
        },
        "memory": memory | {"limit": workers.memory},
        "device": {
            "description": plan.device.description,
            "needed": plan.footprint.device,
            "memory": plan.device.memory,
        },
        "arithmetic": {"name": plan.arithmetic.name, "reason": plan.arithmetic.reason},
        "tiles": len(plan.tiles),
        "tiling": plan.tiling if len(plan.tiles) > 1 else None,
        "files": _files(plan, ingested),
        **plan.choice.recorded(),
    }


def _passes(plan: JobPlan, ingested: bool) -> Iterator[dict[str, Any]]:
    if not ingested:
        yield _ingest(plan)
    yield _fit(plan)
    yield _evaluate(plan)
    if plan.search is not None and plan.arrangement is not None:
        yield _neighbours(plan, plan.search, plan.arrangement)


def _neighbours(plan: JobPlan, search: Search, arrangement: Arrangement) -> dict[str, Any]:
    """Describe the search: references are read once for each process, or for each task."""
    tasks, reads = arrangement.tasks(search), arrangement.reads(search, plan.workers)
    images = search.queries.total * arrangement.shares + search.references.total * reads
    known = _pass(describe_search(search), search.queries.steps, 1, search.queries.total, 0)
    return known | {"tasks": tasks, "reads": reads, "bytes": images * plan.sample_bytes}


def _pass(name: str, partitions: int, reads: int, images: int, size: int) -> dict[str, Any]:
    return {
        "name": name, "partitions": partitions, "tasks": partitions * reads, "reads": reads,
        "images": images, "bytes": size * reads,
    }  # fmt: skip


def _ingest(plan: JobPlan) -> dict[str, Any]:
    splits = plan.content["splits"].values()
    partitions = sum(ceil_div(split["count"], split["shard"]) for split in splits)
    size = sum(s["count"] * image_bytes(s["shape"], s["dtype"]) for s in splits)
    return _pass("ingest", partitions, 1, sum(split["count"] for split in splits), size)


def _fit(plan: JobPlan) -> dict[str, Any]:
    images = sum(count for _, count, _ in plan.fit.splits)
    reads = plan.passes * len(plan.tiles)
    name = f"prototypes from '{plan.settings.fit}'"
    return _pass(name, len(plan.fit), reads, images, images * plan.sample_bytes)


def _evaluate(plan: JobPlan) -> dict[str, Any]:
    steps = plan.evaluate
    name = "distances of " + ", ".join(f"'{name}'" for name, _ in steps.counts)
    return _pass(name, steps.steps, 1, steps.total, steps.total * plan.sample_bytes)


def _files(plan: JobPlan, ingested: bool) -> list[dict[str, Any]]:
    """Return what will be written; bytes before compression."""
    classes, metrics = len(plan.selection.codes), len(plan.settings.metrics)
    steps, total = plan.evaluate.steps, plan.evaluate.total
    rows = []
    if not ingested:
        ingest = _ingest(plan)
        rows.append((str(plan.images), ingest["partitions"], ingest["bytes"]))
    kept, size = kept_files(plan)
    if kept:
        rows.append((f"{manifest.WORK}/{SUMS} (until the prototypes are made)", kept, size))
    image = 8 * math.prod(plan.shape) * classes
    rows.append((run_files.PROTOTYPES, 1, (3 + 2 * plan.shifts) * image))
    if plan.write_distances:
        rows.append((run_files.DISTANCES, steps, total * (8 * metrics * classes + 16)))
    rows.append((f"{PREDICTIONS}/part-*.parquet", steps, total * metrics * _ROW_BYTES))
    if plan.search is not None and plan.arrangement is not None:
        tables, shares = plan.search.queries.steps, plan.arrangement.shares
        pairs = plan.search.queries.total * len(plan.search.measures) * plan.search.k
        saved = f"{manifest.WORK}/{NEIGHBOURS} (until the neighbours are written)"
        rows.append((saved, tables * shares, 16 * pairs * shares))
        rows.append((f"{NEIGHBOURS}/part-*.parquet", tables, pairs * _NEIGHBOUR_BYTES))
    rows += [(name, 1, plan.choice.memory) for name in plan.choice.files]
    rows += [
        (name, 1, None) for name in (METRICS_FILE, HIGHLIGHTS_FILE, REPORT_FILE, manifest.MANIFEST)
    ]
    return [{"path": path, "files": files, "bytes": size} for path, files, size in rows]
