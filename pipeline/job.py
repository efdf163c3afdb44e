"""The job: plan, fit, evaluate, finish.

Two passes over the images, each one task per partition: the first sums the images of each
class, the second measures every image against the prototypes and writes distances and
predictions. Images are read, used and dropped inside a task; between tasks travel sums and
file names only.

Nothing that a scheduler remembers is trusted. What is done is read from the run folder: the
prototypes once their record is written, a partition once its prediction table is, each with
the plan's identity and a digest that is checked before it is kept. The finish reads every
table back, so the metrics are those of the files, and writes the manifest last.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline import manifest, results, store, tables
from pipeline.chunked import consolidate
from pipeline.classes import ClassSelection, select_classes
from pipeline.cluster import Executor, open_executor
from pipeline.config import JobSettings
from pipeline.digests import ColumnDigest
from pipeline.distance import Reference, distances_block, make_reference
from pipeline.errors import DamagedError, JobInterruptedError, ShapeError
from pipeline.exact import Int64Array, choose_arithmetic
from pipeline.files import read_json, write_json
from pipeline.ingestion import partition_table, prepare_images
from pipeline.metrics import confusion_counts, summarise
from pipeline.partitions import Concatenation, PartitionTable
from pipeline.predictions import predict_block
from pipeline.progress import Reporter, SilentReporter
from pipeline.prototype import class_sums_block, prototypes, refuse_empty_classes
from pipeline.runs import (
    DIGESTED,
    METRICS_FILE,
    Run,
    RunDigests,
    distance_columns,
    part_path,
    prototypes_digest,
)
from pipeline.schema import (
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    DISTANCE,
    LABEL,
    METRIC,
    NUMERATOR,
    PIXEL_SUM,
    SAMPLE,
)

MAX_AUTO_DISTANCES = 10**8


@dataclass(frozen=True)
class JobPlan:
    """Everything that is known before a pixel is read.

    Attributes
    ----------
    settings
        The job file.
    images, content
        The folder of the image set, absolute: a worker may run elsewhere; and its manifest.
    output
        The run folder, absolute.
    selection
        The classes.
    fit, evaluate
        The partitions of the two passes.
    shape, dtype, full_scale
        Of one image.
    write_distances
        Whether every distance is written.
    """

    settings: JobSettings
    images: Path
    content: Mapping[str, Any]
    output: Path
    selection: ClassSelection
    fit: PartitionTable
    evaluate: Concatenation
    shape: tuple[int, ...]
    dtype: str
    full_scale: int
    write_distances: bool

    @property
    def sample_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def pixels(self) -> int:
        return int(np.prod(self.shape))

    def decides(self) -> dict[str, Any]:
        """What decides the result and its files; a folder with another such plan is refused."""
        settings = self.settings
        return {
            "images": self.content["digest"],
            "classes": list(self.selection.names),
            "fit": settings.fit,
            "evaluate": list(settings.evaluate),
            "prototypes": settings.prototypes,
            "metrics": list(settings.metrics),
            "distances": "write" if self.write_distances else "skip",
            "allow_empty_classes": settings.allow_empty_classes,
            "step": self.evaluate.step,
        }


def plan_job(settings: JobSettings, images: Path) -> JobPlan:
    """Work out a job on an image set, and refuse what cannot be.

    Raises
    ------
    StoreError, LabelError, EmptyClassError, ShapeError, ExactnessError
        Where a split, a class, an image of a class, one shape, or an exact arithmetic is
        missing.
    """
    content = manifest.read_manifest(images, manifest.IMAGES)
    selection = select_classes(content["class_names"], settings.classes)
    fit = store.require_split(content, settings.fit, images)
    counts = [fit["labels"][code] for code in selection.codes]
    if not any(counts) or not settings.allow_empty_classes:
        refuse_empty_classes(selection.names, counts, settings.fit)
    evaluated = {name: store.require_split(content, name, images) for name in settings.evaluate}
    for name, split in evaluated.items():
        if (split["shape"], split["dtype"]) != (fit["shape"], fit["dtype"]):
            raise ShapeError(
                f"split '{name}' has images of {split['shape']} {split['dtype']}, expected those "
                f"of '{settings.fit}', {fit['shape']} {fit['dtype']}; bring both to one shape"
            )
    choose_arithmetic(max(counts), int(np.prod(fit["shape"])), fit["dtype"])
    step = max(split["shard"] for split in evaluated.values())
    concatenation = Concatenation(tuple((n, s["count"]) for n, s in evaluated.items()), step)
    values = len(settings.metrics) * concatenation.total * len(selection.codes)
    write = settings.distances == "write" or (
        settings.distances == "auto" and values <= MAX_AUTO_DISTANCES
    )
    return JobPlan(
        settings=settings,
        images=images.absolute(),
        content=content,
        output=settings.output.absolute(),
        selection=selection,
        fit=partition_table(content, [settings.fit]),
        evaluate=concatenation,
        shape=tuple(fit["shape"]),
        dtype=fit["dtype"],
        full_scale=content["full_scale"],
        write_distances=write,
    )


def run_job(settings: JobSettings, reporter: Reporter | None = None) -> Run:
    """Run a job, or what is left of it, and return the finished run.

    Parameters
    ----------
    settings
        As `load_job` or `make_job` return.
    reporter
        Told of the progress.

    Raises
    ------
    InputError
        Where the job cannot be run as it is; nothing is written.
    ConflictError
        Where the output folder holds another job's run; it is left as it is.
    JobInterruptedError
        Where the user stopped it; the same command goes on from there.
    """
    listener = reporter or SilentReporter()
    try:
        with open_executor(settings.cluster) as executor:
            images = prepare_images(settings.images, executor, listener)
            run_plan(plan_job(settings, images), executor, listener)
            return Run(settings.output)
    except KeyboardInterrupt:
        raise JobInterruptedError(_interrupted(settings.output)) from None


def _interrupted(output: Path) -> str:
    parts = len(list((output / "predictions").glob("part-*.parquet")))
    return (
        f"interrupted: {output} is incomplete, {parts} of its prediction tables are written and "
        "kept; run the same command again to complete it"
    )


def run_plan(plan: JobPlan, executor: Executor, reporter: Reporter) -> None:
    """Run what the plan says and the folder does not hold yet."""
    started = time.monotonic()
    decides = plan.decides()
    if manifest.start(plan.output, manifest.RUN, decides) is not None:
        reporter.say(f"{plan.settings.output} is complete already")
        return
    if not plan.write_distances:
        reporter.say(_why_no_distances(plan))
    found = _fit(plan, executor, reporter)
    _evaluate(plan, executor, reporter, found)
    _finish(plan, executor, prototypes_digest(found), time.monotonic() - started)


def _why_no_distances(plan: JobPlan) -> str:
    values = len(plan.settings.metrics) * plan.evaluate.total * len(plan.selection.codes)
    if plan.settings.distances == "skip":
        return "distances are not written, as the job asks"
    return (
        f"distances are not written: {values:.3g} values, more than {MAX_AUTO_DISTANCES:.0e}; "
        "distances: write keeps them"
    )


# fit ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FitPartition:
    """Sums the images of one partition by class; called with its number."""

    images: Path
    table: PartitionTable
    selection: ClassSelection
    device: str

    def __call__(self, index: int) -> Int64Array:
        part = self.table[index]
        images, labels = store.read_images(self.images, part.split, part.start, part.stop)
        return class_sums_block(images, labels, self.selection, self.device, part.start)


def _fit(plan: JobPlan, executor: Executor, reporter: Reporter) -> xr.Dataset:
    """Return the prototypes, in memory, and write them unless they are there already."""
    path = plan.output / results.PROTOTYPES
    record = plan.output / manifest.WORK / "prototypes.json"
    kept = _kept_prototypes(path, record)
    if kept is not None:
        return kept
    task = FitPartition(plan.images, plan.fit, plan.selection, plan.settings.device)
    classes, pixels = len(plan.selection.codes), plan.pixels
    size = sum(count for _, count, _ in plan.fit.splits) * plan.sample_bytes
    with reporter.phase(f"prototypes from '{plan.settings.fit}'", len(plan.fit), size) as phase:
        packed = executor.add(task, len(plan.fit), (classes, pixels + 1), phase)
    found = prototypes(_sums(plan, packed), plan.settings.prototypes).compute()
    expected = [
        plan.content["splits"][plan.settings.fit]["labels"][code] for code in plan.selection.codes
    ]
    if found[COUNT.name].values.tolist() != expected:
        raise DamagedError(
            f"{plan.images}: holds {found[COUNT.name].values.tolist()} images of the classes, "
            f"its manifest says {expected}; make the image set anew"
        )
    results.write_prototypes(path, found)
    write_json(record, {"digest": prototypes_digest(found)})
    return found


def _kept_prototypes(path: Path, record: Path) -> xr.Dataset | None:
    """Return the prototypes of an earlier try where they are whole."""
    try:
        digest = read_json(record)["digest"]
        found = results.open_prototypes(path).load()
    except (OSError, ValueError, KeyError):
        return None
    return found if prototypes_digest(found) == digest else None


def _sums(plan: JobPlan, packed: Int64Array) -> xr.Dataset:
    dims = store.pixel_dims(plan.shape)
    sums = packed[:, :-1].reshape(len(packed), *plan.shape)
    return xr.Dataset(
        {
            PIXEL_SUM.name: ((CLASS, *dims), sums, PIXEL_SUM.attributes),
            COUNT.name: (CLASS, packed[:, -1], COUNT.attributes),
        },
        {
            CLASS: list(plan.selection.names),
            CLASS_CODE.name: (
                CLASS, np.array(plan.selection.codes, np.int32), CLASS_CODE.attributes,
            ),
        } | {dim: np.arange(n, dtype=np.int32) for dim, n in zip(dims, plan.shape, strict=True)},
        {
            "class_names": list(plan.selection.all_names),
            "full_scale": plan.full_scale,
            "pixel_dtype": plan.dtype,
        },
    )  # fmt: skip


# evaluate -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluatePartition:
    """Measures one step of samples and writes its distances and predictions.

    Called with the number of the step. The prediction table is written last and says what was
    written; running a step twice writes the same.
    """

    output: Path
    images: Path
    evaluate: Concatenation
    selection: ClassSelection
    metrics: tuple[str, ...]
    device: str
    write_distances: bool
    identity: str
    prototypes: str

    def __call__(self, index: int) -> bool:
        """Do step `index`; return whether there was anything to do."""
        if self._is_done(index):
            return False
        images, samples = self._read(index)
        reference = load_reference(self.output, self.prototypes)
        distance = distances_block(images, reference, self.metrics, self.device)
        del images
        columns = {DISTANCE.name: distance, **samples}
        notes = {"identity": self.identity, "distances": ""}
        if self.write_distances:
            start, _ = self.evaluate.bounds(index)
            results.write_distances(self.output / results.DISTANCES, start, columns)
            notes["distances"] = _distances_digest(columns, self.metrics)
        rows, notes["digest"] = self._rows(distance, samples)
        tables.write_part(part_path(self.output, index), rows, notes)
        return True

    def _is_done(self, index: int) -> bool:
        path = part_path(self.output, index)
        notes = tables.read_notes(path)
        if notes.get("identity") != self.identity:
            return False
        try:
            if _table_digest(tables.read_part(path, DIGESTED)) != notes["digest"]:
                return False
            if not self.write_distances:
                return True
            start, stop = self.evaluate.bounds(index)
            written = results.read_distances(self.output / results.DISTANCES, start, stop)
        except DamagedError:
            return False
        return _distances_digest(written, self.metrics) == notes["distances"]

    def _read(self, index: int) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]]]:
        splits = [name for name, _ in self.evaluate.counts]
        pieces = list(self.evaluate.pieces(index))
        read = [store.read_images(self.images, *piece) for piece in pieces]
        images = read[0][0] if len(read) == 1 else np.concatenate([image for image, _ in read])
        codes = [np.full(b - a, splits.index(name), np.int32) for name, a, b in pieces]
        return images, {
            LABEL.name: np.concatenate([label for _, label in read]),
            SAMPLE: np.concatenate([np.arange(a, b) for _, a, b in pieces]),
            "split": np.concatenate(codes),
        }

    def _rows(
        self, distance: npt.NDArray[np.float64], samples: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, Any], str]:
        """Return the prediction table of the step, and its digest.

        It has a row per metric and sample of the selected classes or without label: sample by
        sample, so that steps put end to end make the same table.
        """
        labels = samples[LABEL.name]
        positions = self.selection.positions(labels)
        kept = (positions >= 0) | (labels < 0)
        codes = np.array(self.selection.codes, np.int32)
        rows = predict_block(distance[:, kept], codes, positions[kept]).T.reshape(-1)
        times = len(self.metrics)
        columns = {
            name: np.repeat(samples[name][kept], times) for name in (SAMPLE, "split", "label")
        }
        columns[METRIC] = np.tile(np.arange(times, dtype=np.int32), int(kept.sum()))
        columns |= {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names or ()}
        names = self.selection.all_names
        missing = {name: np.isnan(columns[name]) for name in ("margin", "label_distance")}
        table = {
            SAMPLE: columns[SAMPLE],
            "split": tables.dictionary(columns["split"], [n for n, _ in self.evaluate.counts]),
            "label": tables.nullable(columns["label"], columns["label"] < 0),
            "label_name": tables.dictionary(columns["label"], names),
            METRIC: tables.dictionary(columns[METRIC], self.metrics),
            "predicted": columns["predicted"],
            "predicted_name": tables.dictionary(columns["predicted"], names),
            "distance": columns["distance"],
            "margin": tables.nullable(columns["margin"], missing["margin"]),
            "label_distance": tables.nullable(columns["label_distance"], missing["label_distance"]),
            "label_rank": tables.nullable(columns["label_rank"], columns["label_rank"] < 0),
        }
        return table, _table_digest(columns)


def _table_digest(columns: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = ColumnDigest()
    digest.update({name: columns[name] for name in DIGESTED})
    return digest.result()


def _distances_digest(columns: dict[str, npt.NDArray[Any]], metrics: tuple[str, ...]) -> str:
    digest = ColumnDigest()
    digest.update(distance_columns(columns, list(metrics)))
    return digest.result()


@lru_cache(maxsize=4)
def load_reference(output: Path, digest: str) -> Reference:
    """Read a run's prototypes, once for all tasks of a process.

    Raises
    ------
    DamagedError
        Where they no longer have that digest.
    """
    found = results.open_prototypes(output / results.PROTOTYPES).load()
    if prototypes_digest(found) != digest:
        raise DamagedError(
            f"{output / results.PROTOTYPES}: was changed after it was written; remove "
            f"{output} and run the job again"
        )
    return make_reference(
        found[NUMERATOR.name].values,
        found[DENOMINATOR.name].values,
        str(found.attrs["pixel_dtype"]),
        int(found.attrs["full_scale"]),
    )


def _evaluate(plan: JobPlan, executor: Executor, reporter: Reporter, found: xr.Dataset) -> None:
    settings, steps = plan.settings, plan.evaluate
    if plan.write_distances:
        codes = np.array(plan.selection.codes, np.int32)
        results.create_distances(
            plan.output / results.DISTANCES, settings.metrics, plan.selection.names, codes,
            steps.total, steps.step, settings.evaluate,
        )  # fmt: skip
    task = EvaluatePartition(
        plan.output, plan.images, steps, plan.selection, settings.metrics, settings.device,
        plan.write_distances, manifest.identity(plan.decides()), prototypes_digest(found),
    )  # fmt: skip
    name = "distances of " + ", ".join(f"'{split}'" for split in settings.evaluate)
    with reporter.phase(name, steps.steps, steps.total * plan.sample_bytes) as phase:
        executor.map(task, steps.steps, phase)


# finish ---------------------------------------------------------------------------------------


def _finish(plan: JobPlan, executor: Executor, fitted: str, seconds: float) -> None:
    """Read every table back: metrics and digests are those of the files. Manifest last."""
    names = [name for name, _ in plan.evaluate.counts]
    metrics, classes = plan.settings.metrics, len(plan.selection.codes)
    counts = np.zeros((len(names), len(metrics), classes, classes), np.int64)
    predictions, distances = ColumnDigest(), ColumnDigest()
    parts: list[dict[str, Any]] = []
    for index in range(plan.evaluate.steps):
        start, stop = plan.evaluate.bounds(index)
        path = part_path(plan.output, index)
        columns = tables.read_part(path, DIGESTED)
        _count(counts, columns, plan.selection)
        predictions.update(columns)
        notes = tables.read_notes(path)
        parts.append(
            {"start": start, "stop": stop, "rows": len(columns[SAMPLE]), "digest": notes["digest"]}
        )
        if _table_digest(columns) != notes["digest"]:
            raise DamagedError(f"{path}: was changed while the job ran; run it again")
        if plan.write_distances:
            block = results.read_distances(plan.output / results.DISTANCES, start, stop)
            distances.update(distance_columns(block, list(metrics)))
    if plan.write_distances:
        consolidate(plan.output / results.DISTANCES)
    header = list(plan.selection.names)
    digests = RunDigests(
        fitted,
        distances.result(header) if plan.write_distances else None,
        predictions.result(header),
    )
    write_json(plan.output / METRICS_FILE, _metrics(plan, counts))
    _write_manifest(plan, executor, digests, parts, seconds)


def _count(
    counts: Int64Array, columns: Mapping[str, npt.NDArray[Any]], selection: ClassSelection
) -> None:
    """Add the rows of one table to the confusion counts, [split, metric, label, predicted]."""
    labels = selection.positions(columns["label"])
    predicted = selection.positions(columns["predicted"])
    for split in range(counts.shape[0]):
        for metric in range(counts.shape[1]):
            mine = (columns["split"] == split) & (columns[METRIC] == metric)
            counts[split, metric] += confusion_counts(
                labels[mine], predicted[mine], counts.shape[2]
            )


def _metrics(plan: JobPlan, counts: Int64Array) -> dict[str, Any]:
    """Per metric over all evaluated samples; and, of several splits, each by itself."""
    names = plan.selection.names
    splits = [name for name, _ in plan.evaluate.counts]

    def by_metric(pairs: Int64Array) -> dict[str, Any]:
        return {
            metric: summarise(pairs[at], names) for at, metric in enumerate(plan.settings.metrics)
        }

    result = by_metric(counts.sum(axis=0))
    if len(splits) > 1:
        result["splits"] = {name: by_metric(counts[at]) for at, name in enumerate(splits)}
    return result


def _write_manifest(
    plan: JobPlan,
    executor: Executor,
    digests: RunDigests,
    parts: list[dict[str, Any]],
    seconds: float,
) -> None:
    decides = plan.decides()
    arithmetic = load_reference(plan.output, digests.prototypes).arithmetic
    manifest.write_manifest(
        plan.output,
        manifest.RUN,
        {
            "name": plan.settings.name,
            "identity": manifest.identity(decides),
            "plan": decides,
            "settings": plan.settings.model_dump(mode="json"),
            "class_names": list(plan.selection.names),
            "images": {
                "path": str(plan.images),
                "digest": plan.content["digest"],
                "provenance": plan.content["provenance"],
            },
            "digests": digests.as_dict(),
            "arithmetic": arithmetic.reason,
            "executor": executor.description,
            "seconds": round(seconds, 3),
            "partitions": parts,
        },
    )
