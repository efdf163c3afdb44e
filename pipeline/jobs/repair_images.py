"""Repairing an image set: its ingest, resumed for what is damaged.

Metadata follows from the manifest. Of the shards, those of damaged partitions are written again by
the tasks of an ingest; all others count as done. What they read is the store's own `Record`: the
table of samples says which sample of which source went where, and the SHA-256 that its pixels had.
Labels are in that table, so a shard of labels needs no source. Where the table itself is damaged,
everything is ingested once more, beside the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.image_settings import ImageSettings
from pipeline.core.blocks import Block, Source, SplitInfo
from pipeline.core.digests import sample_hashes
from pipeline.core.errors import ConfigError, SourceError
from pipeline.core.paths import shown
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.images.decoders import difference, installed
from pipeline.ingestion.duplicates import DUPLICATES, stored_records, write_duplicates
from pipeline.ingestion.ingest import make_store
from pipeline.ingestion.plan import IngestPlan, ingest_token, stored_templates
from pipeline.ingestion.request import reopened_settings
from pipeline.ingestion.steps import listing_path, with_listing_in
from pipeline.ingestion.write_partition import write_partitions
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import open_source, packed, release
from pipeline.storage import image_store, manifest, tables
from pipeline.storage.atomic import copy_file
from pipeline.storage.folders import remove_tree
from pipeline.storage.image_content import partition_table
from pipeline.storage.sample_tables import SAMPLES, part_path
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import consolidate

# where a sample came from, and what it must be; of no source where its image is intact
_ORIGIN = np.dtype([("source", "<i4"), ("number", "<i8"), ("label", "<i4"), ("sha256", "V32")])
_INTACT = -1


@dataclass(frozen=True)
class ImageRepair:
    """Makes damaged files of an image set again; `options` are fsspec's, for its source."""

    path: Path
    content: Mapping[str, Any]
    executor: Executor
    reporter: Reporter
    options: Mapping[str, Any]

    def run(self, damaged: Mapping[str, int]) -> dict[str, Any]:
        """Make files again, where the source is what it was; return the manifest.

        `damaged` has for each file the partition whose content it holds, or -1.
        """
        files = damaged.keys() - {manifest.MANIFEST, manifest.COPY}
        partitions = sorted({number for number in damaged.values() if number >= 0})
        shards = {file for file, number in damaged.items() if number >= 0}
        metadata = sorted(files - shards - {SAMPLES, DUPLICATES})
        if metadata:
            self._write_metadata(metadata)
        if SAMPLES in files:
            self._write_samples()
        if partitions:
            self._write_partitions(partitions, shards)
        if DUPLICATES in files:
            counts = {name: split["count"] for name, split in self.content["splits"].items()}
            pieces = (piece for name in counts for piece in stored_records(self.path, name))
            write_duplicates(self.path, counts, (piece["sha256"] for piece in pieces))
        updated = self._updated(files)
        manifest.put_manifest(self.path, updated)
        remove_tree(self.path / manifest.WORK)
        return updated

    def _updated(self, files: set[str]) -> dict[str, Any]:
        """Return the manifest of what files are now: a newer library may write them otherwise."""
        documents = dict(self.content["files"])
        documents |= manifest.file_hashes(self.path, files & documents.keys())
        arrays = {name: list(marks) for name, marks in self.content["arrays"].items()}
        for name, marks in arrays.items():
            if any(file.startswith(f"{name}/c/") for file in files):
                array = StoreArray(self.path, name)
                for number in range(len(marks)):
                    if array.file(number) in files:
                        marks[number] = array.fingerprint(number)
        return dict(self.content) | {"arrays": arrays, "files": documents}

    def _write_metadata(self, files: Sequence[str]) -> None:
        """Copy files from an empty store of the same splits."""
        empty = self.path / manifest.WORK / "empty"
        remove_tree(empty)
        names = ("class_names", "full_scale", "provenance")
        attributes = {name: self.content[name] for name in names}
        image_store.create_images(
            empty, attributes, stored_templates(self.content), self.content.get("encoding")
        )
        consolidate(empty, self.content["splits"])
        for file in files:
            remove_tree(self.path / file)
            copy_file(empty / file, self.path / file)

    def _write_samples(self) -> None:
        """Make the table of samples again: an ingest of everything, beside the store."""
        aside = self.path / manifest.WORK / "again"
        remove_tree(aside)
        self.reporter.say(
            f"{shown(self.path / SAMPLES)} is damaged: everything is read from the source again"
        )
        for number, segment in enumerate(self._segments):
            images = self._settings(segment)
            with self._named_source():
                make_store(images, aside, self.executor, self.reporter, append=number > 0)
        made = manifest.read_manifest(aside, manifest.IMAGES)
        if made["digest"] != self.content["digest"]:
            remark = difference(self.content["provenance"], made["provenance"])
            raise SourceError(
                f"{shown(self.path)}: its source holds other images now (digest {made['digest']}) "
                f"than when it was ingested ({self.content['digest']}){remark}, so {SAMPLES} "
                "cannot be made again; bring it back, or ingest what it holds now to another place"
            )
        copy_file(aside / SAMPLES, self.path / SAMPLES)

    def _write_partitions(self, partitions: Sequence[int], shards: set[str]) -> None:
        """Write the shards of partitions again, as an ingest does that was cut short."""
        origins = self._origins(partitions, shards)
        templates = stored_templates(self.content)
        with ExitStack() as stack:
            numbers = {int(n) for rows in origins.values() for n in np.unique(rows["source"])}
            sources = {n: self._open(n, stack) for n in sorted(numbers - {_INTACT})}
            record = Record(
                path=self.path.absolute(),
                class_names=tuple(self.content["class_names"]),
                full_scale=self.content["full_scale"],
                provenance=self.content["provenance"],
                infos={n: SplitInfo(t.count, t.shape, t.dtype) for n, t in templates.items()},
                sources=sources,
                origins=origins,
                remark=next(filter(None, map(self._difference, sources, sources.values())), ""),
            )
            plan = IngestPlan(record, templates)
            remove_tree(part_path(self.path, 0).parent)  # of a repair that was cut short
            with ingest_token(record.path, plan.identity).issued():
                write_partitions(plan, record.path, self.executor, self.reporter, partitions)

    @property
    def _segments(self) -> list[Mapping[str, Any]]:
        """What was ingested: at first, then appended, in the order of the table of samples."""
        appended = self.content.get("appended", [])
        first = self.content["samples"]["listed"] - sum(entry["listed"] for entry in appended)
        base = {key: self.content[key] for key in ("provenance", "settings")}
        return [base | {"listed": first}, *appended]

    def _settings(self, segment: Mapping[str, Any]) -> ImageSettings:
        if segment["settings"] is None:
            raise SourceError(
                f"{shown(self.path)}: was made from arrays in memory, which cannot be opened "
                "again; make it anew from these arrays"
            )
        return reopened_settings(segment["settings"] | {"storage_options": dict(self.options)})

    @contextmanager
    def _named_source(self) -> Iterator[None]:
        """Say of what cannot be opened that an image set was once made from it."""
        try:
            yield
        except ConfigError as error:
            raise SourceError(
                f"{shown(self.path)}: what it was made from is not there any more: {error}; bring "
                "it back, then repair it"
            ) from None

    def _open(self, number: int, stack: ExitStack) -> Source:
        """Open a source of the image set as it was opened when it was ingested."""
        segment = self._segments[number]
        images, work = self._settings(segment), self.path / manifest.WORK
        with self._named_source():
            opened = open_source(images, scratch=work)
        stack.callback(release, opened)
        source = packed(opened, images, self.executor.map, segment["provenance"])
        if isinstance(source, EncodedSource):
            source = source.decoded_by(installed())
            source = with_listing_in(source, listing_path(self.path) / str(number))
        return source

    def _difference(self, number: int, source: Source) -> str:
        return difference(self._segments[number]["provenance"], source.provenance)

    def _origins(
        self, partitions: Sequence[int], shards: set[str]
    ) -> dict[tuple[str, int], npt.NDArray[Any]]:
        """Return where the samples of partitions came from, by split and first sample."""
        parts = {index: self.content["partitions"][index] for index in partitions}
        origins = {i: np.empty(part["stop"] - part["start"], _ORIGIN) for i, part in parts.items()}
        ends = np.cumsum([segment["listed"] for segment in self._segments])
        table, row, before = partition_table(self.content), 0, Counter[tuple[str, int]]()
        for rows in tables.read_groups(self.path / SAMPLES, ["split", "sample", "label", "sha256"]):
            samples, splits = rows.integers("sample"), rows.texts("split")
            of_row = np.searchsorted(ends, row + np.arange(len(samples)), "right")
            row += len(samples)
            for split in {part["split"] for part in parts.values()}:
                first, shard = table.indices(split)[0], self.content["splits"][split]["shard"]
                for number in np.unique(of_row[splits == split]).tolist():
                    mine = np.flatnonzero((splits == split) & (of_row == number))
                    listed = before[split, number] + np.arange(len(mine))
                    before[split, number] += len(mine)
                    home = np.where(samples[mine] < 0, -1, first + samples[mine] // shard)
                    for index in parts.keys() & set(np.unique(home).tolist()):
                        at = mine[home == index]
                        into = samples[at] - parts[index]["start"]
                        origins[index]["source"][into] = number
                        origins[index]["number"][into] = listed[home == index]
                        origins[index]["label"][into] = rows.integers("label")[at]
                        origins[index]["sha256"][into] = rows.fixed("sha256")[at]
        for index, part in parts.items():
            array = StoreArray(self.path, image_store.array_names(part["split"])[0])
            if array.file(part["start"] // array.shard) not in shards:
                origins[index]["source"] = _INTACT
        return {(part["split"], part["start"]): origins[index] for index, part in parts.items()}


@dataclass(frozen=True)
class Record:
    """The samples of damaged partitions as a source, which compares each with its recorded hash.

    Attributes
    ----------
    sources
        What the image set was made from, by number.
    origins
        Split and first sample of a partition -> [sample]; where each came from, see `_ORIGIN`.
    remark
        Where other libraries decode the sources than did then, which.
    """

    path: Path
    class_names: tuple[str, ...]
    full_scale: int
    provenance: Mapping[str, Any]
    infos: Mapping[str, SplitInfo]
    sources: Mapping[int, Source]
    origins: Mapping[tuple[str, int], npt.NDArray[Any]]
    remark: str = ""

    def splits(self) -> Mapping[str, SplitInfo]:
        return self.infos

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read a damaged partition; `SourceError` where a source has other samples than it had."""
        rows = self.origins[split, start]
        images = np.empty((stop - start, *self.infos[split].shape), self.infos[split].dtype)
        for number in np.unique(rows["source"]).tolist():
            mine = rows["source"] == number
            images[mine] = self._images(number, split, start, rows["number"][mine])
        hashes = sample_hashes(images)
        wrong = np.flatnonzero(hashes != rows["sha256"])
        if len(wrong):
            raise SourceError(
                f"{shown(self.path)}: '{split}' sample {start + int(wrong[0]):,} is another image "
                f"in its source now than the one that was ingested{self.remark}; bring back the "
                "files that it had, or ingest what it holds now to another place"
            )
        labels = np.ascontiguousarray(rows["label"])
        return Block(images, labels, [""] * len(images), hashes=hashes)

    def _images(
        self, number: int, split: str, start: int, listed: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """Read samples of a source by their numbers there, or from the store."""
        if number == _INTACT:
            array = StoreArray(self.path, image_store.array_names(split)[0])
            return array.samples(start, start + len(listed))
        source = self.sources[number]
        first, last = int(listed[0]), int(listed[-1]) + 1
        count = source.splits()[split].count
        if last > count:
            raise SourceError(
                f"{shown(self.path)}: its source has {count:,} samples of '{split}' now, sample "
                f"{last - 1:,} went there; bring back the files that it had"
            )
        images: npt.NDArray[Any] = source.read(split, first, last).images
        return images[listed - first]

    def close(self) -> None:
        for source in self.sources.values():
            source.close()
