"""What an image set holds, whatever its shards: its partitions, and the digest of its samples.

A chunk that does not pass its checksum is noticed by any reader. A complete file that belongs
elsewhere, such as two shards that changed places, is noticed by `read_checked`: each shard must
have the fingerprint that the manifest has for it, which costs a few bytes a chunk.

While samples are appended, the last shard of a split is written again with new samples behind those
that the manifest counts. Its fingerprint is another one then; what decides is the digest of the
samples that it should hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import json_digest, sample_records
from pipeline.core.errors import ConflictError, OtherFileError
from pipeline.core.partitions import Partition, PartitionTable
from pipeline.core.schema import UNLABELLED
from pipeline.storage import image_store, manifest
from pipeline.storage.store_array import StoreArray


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
        if content.get("encoding"):
            self._header["encoding"] = dict(content["encoding"])
        self._hashes = {name: hashlib.sha256() for name in content["splits"]}

    def update(self, split: str, records: npt.NDArray[Any]) -> None:
        """Add the records of the next samples of a split, of dtype `SAMPLE_RECORD`."""
        self._hashes[split].update(np.ascontiguousarray(records).tobytes())

    def result(self) -> str:
        hashes = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        return json_digest({"header": self._header, "samples": hashes})


def records_digest(records: npt.NDArray[Any]) -> str:
    """Return the digest of the records of one partition."""
    return hashlib.sha256(np.ascontiguousarray(records).tobytes()).hexdigest()


def summarise(
    header: Mapping[str, Any],
    templates: Mapping[str, image_store.SplitTemplate],
    records: Mapping[str, Iterable[npt.NDArray[Any]]],
) -> dict[str, Any]:
    """Work out what a manifest says of an image set from the records of its samples.

    Parameters
    ----------
    header
        `class_names`, `full_scale` and, of quantized images, `encoding`.
    templates
        Split -> what it holds.
    records
        Split -> label and hash of each of its samples, in order, in pieces of any size.

    Returns
    -------
    The header, and `digest`, `splits` (count, shape, dtype, chunk, shard, images of each class,
    unlabelled ones) and `partitions` (split, start, stop, digest).
    """
    splits = {name: template.describe() for name, template in templates.items()}
    digest = StoreDigest(dict(header) | {"splits": splits})
    classes = len(header["class_names"])
    done: list[dict[str, Any]] = []
    for name, template in templates.items():
        labels, start = np.zeros(classes + 1, np.int64), 0
        for piece in cut(records[name], template.layout.shard):
            digest.update(name, piece)
            codes = np.where(piece["label"] == UNLABELLED, classes, piece["label"])
            labels += np.bincount(codes, minlength=classes + 1)
            part = {"split": name, "start": start, "stop": start + len(piece)}
            done.append(part | {"digest": records_digest(piece)})
            start += len(piece)
        splits[name] |= {"labels": labels[:-1].tolist(), "unlabelled": int(labels[-1])}
    return dict(header) | {"digest": digest.result(), "splits": splits, "partitions": done}


def cut(records: Iterable[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """Cut a stream of records into pieces of `size`; the last may be shorter."""
    kept: list[npt.NDArray[Any]] = []
    count = 0
    for piece in records:
        kept.append(piece)
        count += len(piece)
        while count >= size:
            joined = np.concatenate(kept)
            yield joined[:size]
            kept, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(kept)


def read_records(path: Path, partition: Partition) -> npt.NDArray[Any]:
    """Read a partition from the store and return the label and hash of each sample."""
    images, labels = image_store.read_images(path, partition.split, partition.start, partition.stop)
    return sample_records(images, labels)


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
    digest = StoreDigest(content)
    for partition in partition_table(content):
        digest.update(partition.split, read_records(path, partition))
    return digest.result()


@dataclass(frozen=True)
class _Recorded:
    """What a manifest says: of each partition, and of the files of each array."""

    table: PartitionTable
    digests: tuple[str, ...]
    expected: Mapping[str, tuple[str, ...]]


@lru_cache(maxsize=4)
def _recorded(path: Path, digest: str) -> _Recorded:
    """Read the manifest, once for all tasks of a process."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    if content["digest"] != digest:
        raise ConflictError(
            f"{path}: holds other images (digest {content['digest']}) than when the job began "
            f"({digest}); run the job on what it holds now, to another place"
        )
    return _Recorded(
        partition_table(content),
        tuple(part["digest"] for part in content["partitions"]),
        {name: tuple(marks) for name, marks in content["arrays"].items()},
    )


def read_checked(
    path: Path, digest: str, split: str, start: int, stop: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Read images `start` to `stop` of a finished image set with this digest, and their labels.

    Raises
    ------
    DamagedError
        Where a shard is missing or damaged, or is not the one that the manifest knows.
    ConflictError
        Where the image set has another digest by now.
    """
    images, labels = image_store.array_names(split)
    return (
        _read_array(path, digest, images, split, start, stop),
        _read_array(path, digest, labels, split, start, stop),
    )


def read_labels(
    path: Path, digest: str, split: str, start: int, stop: int
) -> npt.NDArray[np.int32]:
    """Read the labels alone; see `read_checked`."""
    _, name = image_store.array_names(split)
    return _read_array(path, digest, name, split, start, stop)


def _read_array(
    path: Path, digest: str, name: str, split: str, start: int, stop: int
) -> npt.NDArray[Any]:
    recorded = _recorded(path, digest)
    array = StoreArray(path, name, expected=recorded.expected.get(name, ()))
    try:
        return array.samples(start, stop)
    except OtherFileError:
        if not _holds_its_samples(path, recorded, split, start, stop):
            raise
        return replace(array, expected=()).samples(start, stop)


def _holds_its_samples(path: Path, recorded: _Recorded, split: str, start: int, stop: int) -> bool:
    """Tell whether the partitions with these samples hold what they should."""
    numbers = recorded.table.indices(split)
    size = recorded.table[numbers[0]].count
    for number in numbers[start // size : (stop - 1) // size + 1]:
        records = read_records(path, recorded.table[number])
        if records_digest(records) != recorded.digests[number]:
            return False
    return True
