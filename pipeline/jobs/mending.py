"""Making damaged files of an image set again, each from what it came from.

Metadata and positions of pixels follow from the manifest. A shard is read from the source again:
the table of samples says which of its samples, in the order of its listing, went there, and what
their pixels hashed to. Labels are in that table, so a shard of labels needs no source. Where the
table itself is damaged, all is read from the source once more, beside the store.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.image_settings import ImageSettings
from pipeline.core.digests import SAMPLE_RECORD, sample_hashes
from pipeline.core.errors import ConfigError, DamagedError, SourceError
from pipeline.core.partitions import Layout
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.images.decoder_choice import difference
from pipeline.ingestion.append import stored_hashes
from pipeline.ingestion.duplicates import DUPLICATES, write_duplicates
from pipeline.ingestion.ingest import make_store
from pipeline.ingestion.origins import reopened_settings
from pipeline.ingestion.steps import listing_place, with_listing_in
from pipeline.jobs.verification import Damage
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.protocol import Source
from pipeline.sources.registry import open_source, packed, release
from pipeline.storage import claims, image_store, manifest, tables
from pipeline.storage.atomic import copy_file
from pipeline.storage.claims import Token
from pipeline.storage.folders import remove_tree
from pipeline.storage.image_content import partition_table, records_digest
from pipeline.storage.sample_tables import SAMPLES
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import consolidate


def mend_images(
    path: Path,
    content: Mapping[str, Any],
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Make the damaged files of an image set again; return its manifest.

    Parameters
    ----------
    path, content
        Its folder, and its manifest.
    damages
        What is to be made again.
    executor, reporter
        Where tasks run, and who is told.
    options
        fsspec's options for the source, where it is at a URL.

    Raises
    ------
    SourceError
        Where the source is not there, or not what it was.
    DamagedError
        Where what is made again is not what was recorded.
    """
    files = {damage.file for damage in damages}
    tables_broken = files & {SAMPLES, DUPLICATES}
    whole = {damage.file for damage in damages if damage.partition < 0}
    skeleton = sorted(whole - tables_broken - {manifest.MANIFEST, manifest.COPY})
    if skeleton:
        _mend_metadata(path, content, skeleton)
    if SAMPLES in tables_broken:
        _mend_samples(path, content, executor, reporter, options)
    partitions = sorted({damage.partition for damage in damages if damage.partition >= 0})
    if partitions:
        unread = {damage.file for damage in damages if damage.partition >= 0}
        _mend_partitions(path, content, partitions, unread, executor, reporter, options)
    if DUPLICATES in tables_broken:
        counts = {name: split["count"] for name, split in content["splits"].items()}
        write_duplicates(path, counts, stored_hashes(path, counts))
    updated = _updated(path, content, files - {manifest.MANIFEST, manifest.COPY})
    manifest.put_manifest(path, updated)
    remove_tree(path / manifest.WORK)
    return updated


def _updated(path: Path, content: Mapping[str, Any], files: set[str]) -> dict[str, Any]:
    """Return a manifest with what files are now: a newer library may write the same otherwise."""
    arrays = {name: list(marks) for name, marks in content["arrays"].items()}
    documents = dict(content["files"])
    for file in files:
        if file in documents:
            documents[file] = manifest.file_hash(path / file)
    for name, marks in arrays.items():
        if any(file.startswith(f"{name}/c/") for file in files):
            array = StoreArray(path, name)
            for number in range(len(marks)):
                if array.file(number) in files:
                    marks[number] = array.fingerprint(number)
    return dict(content) | {"arrays": arrays, "files": documents}


def _mend_metadata(path: Path, content: Mapping[str, Any], files: Sequence[str]) -> None:
    """Copy files from an empty store of the same splits."""
    empty = path / manifest.WORK / "empty"
    remove_tree(empty)
    attributes = {name: content[name] for name in ("class_names", "full_scale", "provenance")}
    templates = {
        name: image_store.SplitTemplate(
            split["count"], tuple(split["shape"]), split["dtype"],
            Layout(split["chunk"], split["shard"]),
        )
        for name, split in content["splits"].items()
    }  # fmt: skip
    image_store.create_images(empty, attributes, templates, content.get("encoding"))
    consolidate(empty)
    for file in files:
        remove_tree(path / file)
        copy_file(empty / file, path / file)


def _mend_samples(
    path: Path,
    content: Mapping[str, Any],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> None:
    """Make the table of samples again: an ingest of everything, beside the store."""
    aside = path / manifest.WORK / "again"
    remove_tree(aside)
    reporter.say(f"{shown(path / SAMPLES)} is damaged: everything is read from the source again")
    for number, segment in enumerate(_segments(content)):
        images = _settings(path, segment, options)
        with _its_source(path):
            make_store(images, aside, executor, reporter, append=number > 0)
    made = manifest.read_manifest(aside, manifest.IMAGES)
    if made["digest"] != content["digest"]:
        remark = difference(content["provenance"], made["provenance"])
        raise SourceError(
            f"{shown(path)}: its source holds other images now (digest {made['digest']}) than when "
            f"it was ingested ({content['digest']}){remark}, so {SAMPLES} cannot be made again; "
            "bring it back, or ingest what it holds now to another place"
        )
    copy_file(aside / SAMPLES, path / SAMPLES)


def _segments(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what was ingested: at first, then appended, in the order of the table of samples."""
    appended = content.get("appended", [])
    first = content["samples"]["listed"] - sum(entry["listed"] for entry in appended)
    base = {key: content[key] for key in ("provenance", "settings")}
    return [base | {"listed": first}, *appended]


def _settings(path: Path, segment: Mapping[str, Any], options: Mapping[str, Any]) -> ImageSettings:
    if segment["settings"] is None:
        raise SourceError(
            f"{shown(path)}: was made from arrays in memory, which cannot be opened again; make it "
            "anew from these arrays"
        )
    return reopened_settings(segment["settings"] | {"storage_options": dict(options)})


@contextmanager
def _its_source(path: Path) -> Iterator[None]:
    """Say of what cannot be opened that an image set was once made from it."""
    try:
        yield
    except ConfigError as error:
        raise SourceError(
            f"{shown(path)}: what it was made from is not there any more: {error}; bring it back, "
            "then repair it"
        ) from None


@dataclass(frozen=True)
class _Piece:
    """Samples of a partition that came from one source, in order.

    Attributes
    ----------
    segment
        Which source.
    numbers
        [sample]; their numbers in the listing of the split.
    """

    segment: int
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """A partition that is to be made again.

    Attributes
    ----------
    split, start
        Its first sample.
    digest
        What its samples must have.
    records
        [sample]; label and hash of each.
    pieces
        Where its images come from; none where they are whole in the store.
    """

    split: str
    start: int
    digest: str
    records: npt.NDArray[Any]
    pieces: tuple[_Piece, ...]


def _mend_partitions(
    path: Path,
    content: Mapping[str, Any],
    partitions: Sequence[int],
    files: set[str],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> None:
    """Write the shards of partitions again."""
    orders = _orders(path, content, partitions, files)
    wanted = {piece.segment for order in orders for piece in order.pieces}
    segments = _segments(content)
    with ExitStack() as stack:
        sources: dict[int, Source] = {}
        for number in sorted(wanted):
            images = _settings(path, segments[number], options)
            with _its_source(path):
                opened = open_source(images, scratch=path / manifest.WORK)
            stack.callback(release, opened)
            ready = packed(opened, images, executor.map, segments[number]["provenance"])
            if isinstance(ready, EncodedSource):
                ready = ready.decoded_by(ready.chosen_decoders(segments[number]["provenance"]))
                ready = with_listing_in(ready, listing_place(path) / str(number))
            sources[number] = ready
        token = Token(path.absolute() / manifest.WORK, claims.identity(content), "repair")
        remarks = (difference(segments[n]["provenance"], s.provenance) for n, s in sources.items())
        remark = next(filter(None, remarks), "")
        task = MendPartition(path.absolute(), sources, tuple(orders), token, remark)
        with reporter.phase("repair", len(orders)) as phase, token.issued():
            executor.map(task, len(orders), phase)


def _orders(
    path: Path, content: Mapping[str, Any], partitions: Sequence[int], files: set[str]
) -> list[_Order]:
    """Work out from the table of samples what partitions hold, and where it came from."""
    parts = {index: content["partitions"][index] for index in partitions}
    records = {
        i: np.empty(part["stop"] - part["start"], SAMPLE_RECORD) for i, part in parts.items()
    }
    numbers: dict[int, dict[int, list[npt.NDArray[np.int64]]]]
    numbers = {index: defaultdict(list) for index in partitions}
    table = partition_table(content)
    for split in {part["split"] for part in parts.values()}:
        first, shard = table.indices(split)[0], content["splits"][split]["shard"]
        for segment, listed, sample, label, sha256 in _rows(path, content, split):
            home = np.where(sample < 0, -1, first + sample // shard)
            for index in parts.keys() & set(np.unique(home).tolist()):
                mine = home == index
                places = sample[mine] - parts[index]["start"]
                records[index]["label"][places] = label[mine]
                records[index]["sha256"][places] = sha256[mine]
                numbers[index][segment].append(listed[mine])
    orders = []
    for index, part in parts.items():
        array = StoreArray(path, image_store.array_names(part["split"])[0])
        found = {segment: np.concatenate(listed) for segment, listed in numbers[index].items()}
        pieces = [_Piece(segment, listed) for segment, listed in sorted(found.items())]
        if array.file(part["start"] // array.shard) not in files:
            pieces = []
        orders.append(
            _Order(part["split"], part["start"], part["digest"], records[index], tuple(pieces))
        )
    return orders


def _rows(
    path: Path, content: Mapping[str, Any], split: str
) -> Iterator[tuple[int, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Yield for the rows of a split, some at a time: source, number there, sample, label, hash."""
    ends = np.cumsum([segment["listed"] for segment in _segments(content)])
    row, before = 0, Counter[int]()
    for rows in tables.read_groups(path / SAMPLES, ["split", "sample", "label", "sha256"]):
        mine = np.flatnonzero(rows.texts("split") == split)
        sample, label, sha256 = (
            rows.integers("sample"), rows.integers("label"), rows.fixed("sha256"),
        )  # fmt: skip
        of_row = np.searchsorted(ends, row + mine, "right")
        for segment in np.unique(of_row).tolist():
            chosen = mine[of_row == segment]
            listed = before[segment] + np.arange(len(chosen))
            before[segment] += len(chosen)
            yield segment, listed, sample[chosen], label[chosen], sha256[chosen]
        row += len(sample)


@dataclass(frozen=True)
class MendPartition:
    """The task of one damaged partition; running it twice changes nothing.

    Attributes
    ----------
    path
        The image set.
    sources
        What it was made from, by number.
    orders
        What is to be made.
    token
        Lets it write.
    remark
        Where other libraries decode them than did then, which.
    """

    path: Path
    sources: Mapping[int, Source]
    orders: tuple[_Order, ...]
    token: Token
    remark: str = ""

    def __call__(self, number: int) -> None:
        """Write the shards of order `number`."""
        self.token.require()
        order = self.orders[number]
        count = len(order.records)
        labels = np.ascontiguousarray(order.records["label"])
        if order.pieces:
            images = np.concatenate([self._read(order, piece) for piece in order.pieces])
        else:
            name = image_store.array_names(order.split)[0]
            images = StoreArray(self.path, name).samples(order.start, order.start + count)
        found = np.empty(count, SAMPLE_RECORD)
        found["label"], found["sha256"] = labels, sample_hashes(images)
        self._require(order, found)
        self.token.require()
        image_store.write_images(self.path, order.split, order.start, images, labels)

    def _read(self, order: _Order, piece: _Piece) -> npt.NDArray[Any]:
        """Read the samples of a piece from its source."""
        first, last = int(piece.numbers[0]), int(piece.numbers[-1]) + 1
        source = self.sources[piece.segment]
        listed = source.splits()[order.split].count
        if last > listed:
            raise SourceError(
                f"{shown(self.path)}: its source has {listed:,} samples of '{order.split}' now, "
                f"sample {last - 1:,} went there; bring back the files that it had"
            )
        images: npt.NDArray[Any] = source.read(order.split, first, last).images
        return images[piece.numbers - first]

    def _require(self, order: _Order, found: npt.NDArray[Any]) -> None:
        """Raise unless the samples are those that were ingested."""
        wrong = np.flatnonzero(found["sha256"] != order.records["sha256"])
        if len(wrong):
            raise SourceError(
                f"{shown(self.path)}: '{order.split}' sample {order.start + int(wrong[0]):,} is "
                f"another image in its source now than the one that was ingested{self.remark}; "
                "bring back the files that it had, or ingest what it holds now to another place"
            )
        if records_digest(found) != order.digest:
            raise DamagedError(
                f"{shown(self.path)}: samples {order.start:,} to {order.start + len(found):,} of "
                f"'{order.split}' are not those of the manifest; make it anew"
            )
