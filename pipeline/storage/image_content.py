"""What an image set holds, whatever its shards: its partitions, and the digest of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import json_digest, sample_records
from pipeline.core.partitions import Partition, PartitionTable
from pipeline.core.schema import UNLABELLED
from pipeline.storage import image_store, manifest


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
        `class_names`, `full_scale` and, of packed images, `encoding`.
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
    held: list[npt.NDArray[Any]] = []
    count = 0
    for piece in records:
        held.append(piece)
        count += len(piece)
        while count >= size:
            whole = np.concatenate(held)
            yield whole[:size]
            held, count = [whole[size:]], count - size
    if count:
        yield np.concatenate(held)


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
    found = StoreDigest(content)
    for partition in partition_table(content):
        found.update(partition.split, read_records(path, partition))
    return found.result()
