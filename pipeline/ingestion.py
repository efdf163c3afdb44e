"""From a source to an image-set store: plan, one partition per task, finish.

A partition is one whole shard, read from the source, checked, hashed and written by one task.
Its last act is a small table of its samples, `.work/samples/part-*.parquet`, which says what
was written and its digest; a partition whose table and shard agree is not written again. The
finish puts the tables together as `samples.parquet` and writes the manifest, last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import manifest, store, tables
from pipeline.chunked import consolidate
from pipeline.classes import check_labels
from pipeline.cluster import Executor, open_executor
from pipeline.config import ClusterSettings, load_environment, nearest
from pipeline.datasets import load_catalog, open_dataset
from pipeline.digests import SAMPLE_RECORD, json_digest, sample_records
from pipeline.errors import (
    ConfigError,
    DamagedError,
    JobInterruptedError,
    LabelError,
    ShapeError,
    SourceError,
)
from pipeline.partitions import Partition, PartitionTable, choose_layout, image_bytes
from pipeline.progress import Reporter, SilentReporter
from pipeline.sources import Block, Source
from pipeline.sources.arrays import read_npz
from pipeline.sources.folder import FolderSource

SAMPLES = "samples.parquet"
STATUSES = ("ok",)


def ingest(
    source: Source | str,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Write an image set as a store.

    Parameters
    ----------
    source
        A source, or a text for `open_source`.
    output
        The folder of the store; default, for a text: `default_store`. Where it holds the same
        image set already, nothing is done; where it holds a part of it, the rest is added.
    shard_samples
        Samples per shard; default: a few MB's worth.
    cluster
        Where tasks run; default: threads.
    reporter
        Told of the progress.

    Returns
    -------
    The folder of the store.

    Raises
    ------
    SourceError, ShapeError, LabelError
        Where the source is not what it should be. The store stays without manifest.
    ConflictError
        Where the folder holds something else.
    """
    if output is None and not isinstance(source, str):
        raise ConfigError("ingest() of a source object needs an output, the folder of the store")
    output = default_store(str(source)) if output is None else output
    opened = open_source(source) if isinstance(source, str) else source
    try:
        with open_executor(cluster) as executor:
            return ingest_on(executor, opened, Path(output), shard_samples, reporter)
    except KeyboardInterrupt:
        raise JobInterruptedError(
            f"interrupted: {output} is incomplete; run the same command again to complete it"
        ) from None


def ingest_on(
    executor: Executor,
    source: Source,
    path: Path,
    shard_samples: int | None = None,
    reporter: Reporter | None = None,
) -> Path:
    """Do as `ingest`, on an executor that is open already."""
    listener = reporter or SilentReporter()
    if shard_samples is not None and shard_samples < 1:
        raise ConfigError(f"{shard_samples} images per shard, expected 1 or more")
    _check_names(source.class_names)
    templates = _templates(source, shard_samples)
    if not any(template.count for template in templates.values()):
        raise SourceError(f"{path}: the source holds no image, expected one at least")
    plan = _plan(source, templates)
    if manifest.start(path, manifest.IMAGES, plan) is not None:
        listener.say(f"{path} is complete already")
        return path
    attributes = {
        "class_names": list(source.class_names),
        "full_scale": source.full_scale,
        "provenance": dict(source.provenance),
    }
    store.create_images(path, attributes, templates)
    table = PartitionTable(tuple((n, t.count, t.layout.shard) for n, t in templates.items()))
    task = IngestPartition(path.absolute(), source, table, templates, manifest.identity(plan))
    size = sum(template.count * template.sample_bytes for template in templates.values())
    try:
        with listener.phase("ingest", len(table), size) as phase:
            executor.map(task, len(table), phase)
    finally:
        source.close()
    _finish(path, plan, table, templates)
    return path


def _templates(source: Source, shard_samples: int | None) -> dict[str, store.SplitTemplate]:
    templates = {}
    for name, info in source.splits().items():
        layout = choose_layout(info.count, image_bytes(info.shape, info.dtype), shard_samples)
        templates[name] = store.SplitTemplate(info.count, info.shape, info.dtype, layout)
    return templates


def expected_content(source: Source) -> dict[str, Any]:
    """Return what the manifest of a source's store will say, as far as it is known.

    Labels are not: each class is given as many images as the split has, the most there can be.
    """
    content = _plan(source, _templates(source, None))
    for split in content["splits"].values():
        split["labels"] = [split["count"]] * len(content["class_names"])
        split["unlabelled"] = 0
    return content | {"digest": None}


def _check_names(names: Sequence[str]) -> None:
    """Raise `LabelError` where two classes have one name, or there is none."""
    doubled = [name for name in names if names.count(name) > 1]
    if doubled or not names:
        found = f"two classes named '{doubled[0]}'" if doubled else "no class names"
        raise LabelError(f"{found}, expected one name for each label code; name them apart")


def _plan(source: Source, templates: Mapping[str, store.SplitTemplate]) -> dict[str, Any]:
    return {
        "source": dict(source.provenance),
        "class_names": list(source.class_names),
        "full_scale": source.full_scale,
        "splits": {
            name: {
                "count": template.count,
                "shape": list(template.shape),
                "dtype": template.dtype,
                "chunk": template.layout.chunk,
                "shard": template.layout.shard,
            }
            for name, template in templates.items()
        },
    }


@dataclass(frozen=True)
class IngestPartition:
    """The task of one partition; called with its number. Running it twice changes nothing."""

    path: Path
    source: Source
    table: PartitionTable
    templates: Mapping[str, store.SplitTemplate]
    identity: str

    def __call__(self, index: int) -> bool:
        """Write partition `index`; return whether there was anything to do."""
        partition = self.table[index]
        part = part_path(self.path, index)
        if self._is_done(partition, part):
            return False
        block = self.source.read(partition.split, partition.start, partition.stop)
        self._check(partition, block)
        store.write_images(self.path, partition.split, partition.start, block.images, block.labels)
        records = sample_records(block.images, block.labels)
        notes = {"identity": self.identity, "digest": _records_digest(records)}
        tables.write_part(part, self._rows(partition, block, records), notes)
        return True

    def _is_done(self, partition: Partition, part: Path) -> bool:
        notes = tables.read_notes(part)
        if notes.get("identity") != self.identity:
            return False
        try:
            rows = tables.read_part(part)
            written = read_records(self.path, partition)
        except DamagedError:
            return False
        return (
            _records_digest(written) == notes.get("digest")
            and np.array_equal(rows["sample"], np.arange(partition.start, partition.stop))
            and np.array_equal(rows["label"], written["label"])
            and rows["sha256"].tobytes() == written["sha256"].tobytes()
        )

    def _check(self, partition: Partition, block: Block) -> None:
        template = self.templates[partition.split]
        expected = (partition.count, *template.shape)
        if block.images.shape != expected or str(block.images.dtype) != template.dtype:
            raise ShapeError(
                f"split '{partition.split}', samples {partition.start} to {partition.stop}: "
                f"the source gave {block.images.shape} {block.images.dtype}, expected "
                f"{expected} {template.dtype}"
            )
        first, classes = partition.start, len(self.source.class_names)
        check_labels(block.labels, classes, first)
        largest = int(block.images.max(initial=0))
        if largest > self.source.full_scale:
            raise ShapeError(
                f"split '{partition.split}': a pixel has value {largest}, expected at most the "
                f"full scale, {self.source.full_scale}; give the right full_scale"
            )

    def _rows(
        self, partition: Partition, block: Block, records: npt.NDArray[Any]
    ) -> dict[str, Any]:
        count = partition.count
        height, width = block.images.shape[1:3]
        zeros = np.zeros(count, np.int32)
        splits = [name for name, _, _ in self.table.splits]
        return {
            "sample": np.arange(partition.start, partition.stop),
            "split": tables.dictionary(zeros + splits.index(partition.split), splits),
            "source": list(block.origins),
            "label": tables.nullable(block.labels, block.labels < 0),
            "label_name": tables.dictionary(block.labels, self.source.class_names),
            "width": zeros + np.int32(width),
            "height": zeros + np.int32(height),
            "status": tables.dictionary(zeros, STATUSES),
            "sha256": tables.fixed_bytes(records["sha256"]),
        }


def part_path(path: Path, index: int) -> Path:
    """Return where the table of a partition lies while its store is being made."""
    return path / manifest.WORK / "samples" / f"part-{index:06d}.parquet"


def read_records(path: Path, partition: Partition) -> npt.NDArray[Any]:
    """Read a partition from the store and return the label and hash of each sample."""
    images, labels = store.read_images(path, partition.split, partition.start, partition.stop)
    return sample_records(images, labels)


def _records_digest(records: npt.NDArray[Any]) -> str:
    return hashlib.sha256(records.tobytes()).hexdigest()


def _finish(
    path: Path,
    plan: Mapping[str, Any],
    table: PartitionTable,
    templates: Mapping[str, store.SplitTemplate],
) -> None:
    """Check that everything is there, put the tables together, write the manifest last."""
    classes = len(plan["class_names"])
    labels_of = {name: np.zeros(classes + 1, np.int64) for name in templates}
    done: list[dict[str, Any]] = []
    content = StoreDigest(plan)
    parts = [part_path(path, index) for index in range(len(table))]
    for partition, part in zip(table, parts, strict=True):
        columns = tables.read_part(part, ["label", "sha256"])
        records = np.empty(partition.count, SAMPLE_RECORD)
        records["label"], records["sha256"] = columns["label"], columns["sha256"]
        content.update(partition.split, records)
        codes = np.where(records["label"] < 0, classes, records["label"])
        labels_of[partition.split] += np.bincount(codes, minlength=classes + 1)
        done.append(
            {
                "split": partition.split,
                "start": partition.start,
                "stop": partition.stop,
                "digest": tables.read_notes(part)["digest"],
            }
        )
    tables.merge_parts(path / SAMPLES, parts)
    consolidate(path)
    splits = {
        name: {
            **plan["splits"][name],
            "labels": labels_of[name][:-1].tolist(),
            "unlabelled": int(labels_of[name][-1]),
        }
        for name in templates
    }
    manifest.write_manifest(
        path,
        manifest.IMAGES,
        {
            "digest": content.result(),
            "identity": manifest.identity(plan),
            "plan": dict(plan),
            "class_names": plan["class_names"],
            "full_scale": plan["full_scale"],
            "provenance": plan["source"],
            "splits": splits,
            "partitions": done,
        },
    )


class StoreDigest:
    """The digest of an image set, from the records of its samples in order."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._header = {
            "class_names": list(content["class_names"]),
            "full_scale": content["full_scale"],
            "splits": {
                name: [split["count"], list(split["shape"]), split["dtype"]]
                for name, split in content["splits"].items()
            },
        }
        self._hashes = {name: hashlib.sha256() for name in content["splits"]}

    def update(self, split: str, records: npt.NDArray[Any]) -> None:
        self._hashes[split].update(records.tobytes())

    def result(self) -> str:
        hashes = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        return json_digest({"header": self._header, "samples": hashes})


def partition_table(
    content: Mapping[str, Any], only: Iterable[str] | None = None
) -> PartitionTable:
    """Return the partitions of a finished store from its manifest."""
    names = content["splits"] if only is None else only
    splits = content["splits"]
    return PartitionTable(tuple((n, splits[n]["count"], splits[n]["shard"]) for n in names))


def digest_images(path: Path) -> str:
    """Read a whole image set and return the digest of what it holds now."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    found = StoreDigest(content)
    for partition in partition_table(content):
        found.update(partition.split, read_records(path, partition))
    return found.result()


def open_source(text: str) -> Source:
    """Open a source by a catalog name or a path.

    A path may be a folder of images (`SPLIT/CLASS/FILE`) or an `.npz` file.

    Raises
    ------
    ConfigError
        Where it is neither.
    """
    path = Path(text)
    catalog = load_catalog()
    if text in catalog:
        return open_dataset(text)
    if path.is_dir():
        return FolderSource(path.absolute())
    if path.suffix == ".npz" and path.is_file():
        return read_npz(path)
    raise ConfigError(
        f"images '{text}': neither a data set of the catalog, nor a store, a folder of images or "
        f"an .npz file; {nearest(text, catalog)}"
    )


def default_store(text: str) -> Path:
    """Return where the store of a source goes by default: `data/stores/NAME.zarr`."""
    return load_environment().data / "stores" / f"{Path(text).stem}.zarr"


def find_images(text: str) -> Path | None:
    """Return the store of what a job calls `images`, or None where it is not made yet.

    Raises
    ------
    IncompleteError
        Where it is a store that was never finished.
    """
    path = Path(text)
    if manifest.kind_of(path) == manifest.IMAGES:
        return path
    if path.is_dir() and ((path / "zarr.json").exists() or (path / manifest.WORK).exists()):
        manifest.read_manifest(path, manifest.IMAGES)  # says what is missing
    target = default_store(text)
    if text in load_catalog() and _holds_dataset(target, text):
        return target  # the catalog's checksums decide the content; the files may be gone
    return None


def prepare_images(text: str, executor: Executor, reporter: Reporter) -> Path:
    """Return the store of what a job calls `images`, making it where it is missing.

    A store is used as it is. For a catalog name or another source the store is
    `default_store`, made now where it does not exist or is incomplete.
    """
    found = find_images(text)
    if found is not None:
        return found
    target = default_store(text)
    if manifest.kind_of(target) != manifest.IMAGES:
        reporter.say(f"ingesting {text} into {target}")
    return ingest_on(executor, open_source(text), target, reporter=reporter)


def _holds_dataset(path: Path, name: str) -> bool:
    if manifest.kind_of(path) != manifest.IMAGES:
        return False
    content = manifest.read_manifest(path, manifest.IMAGES)
    entry = load_catalog()[name]
    return bool(content["provenance"] == entry.provenance)
