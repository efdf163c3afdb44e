"""Reading a finished image set as its manifest recorded it.

A chunk that does not pass its checksum is found by any reader. A file that is whole and belongs
elsewhere, such as two shards that changed places, is found here: each shard must have the
fingerprint that the manifest has for it, which costs a few bytes a chunk.

While samples are appended, the last shard of a split is written again with new samples behind those
that the manifest counts. Its fingerprint is another one then; what decides is the digest of the
samples that it should hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConflictError, OtherFileError
from pipeline.core.partitions import PartitionTable
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import partition_table, read_records, records_digest
from pipeline.storage.inventory import inventory


def list_files(
    path: Path,
    known: Mapping[str, Sequence[str]],
    tables: Iterable[str],
    axes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return what a manifest says of the files of a store.

    Parameters
    ----------
    path
        The store, its metadata consolidated.
    known
        Array -> the fingerprints of its files, in order, where they are known already.
    tables
        Other files below `path`.
    axes
        Array -> the axis that is cut into files, where it is not the first.
    """
    found = inventory(path, known, axes)
    files = manifest.file_hashes(path, [*found.documents, *tables])
    return {"files": files, "arrays": found.arrays}


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
    """Read images `start` to `stop` of a finished image set and their labels.

    Parameters
    ----------
    path, digest
        The folder of the image set, and the digest that it has.
    split, start, stop
        Which images.

    Raises
    ------
    DamagedError
        Where a shard is missing or damaged, or is not the one that the manifest knows.
    ConflictError
        Where the image set has another digest by now.
    """
    recorded = _recorded(path, digest)
    try:
        return image_store.read_images(path, split, start, stop, recorded.expected)
    except OtherFileError:
        if not _holds_its_samples(path, recorded, split, start, stop):
            raise
        return image_store.read_images(path, split, start, stop)


def _holds_its_samples(path: Path, recorded: _Recorded, split: str, start: int, stop: int) -> bool:
    """Tell whether the partitions with these samples hold what they should."""
    numbers = recorded.table.indices(split)
    size = recorded.table[numbers[0]].count
    for number in numbers[start // size : (stop - 1) // size + 1]:
        found = read_records(path, recorded.table[number])
        if records_digest(found) != recorded.digests[number]:
            return False
    return True
