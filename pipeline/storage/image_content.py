"""What an image set holds, whatever its shards: its partitions, and the digest of its samples.

A chunk that does not pass its checksum is noticed by any reader. A complete file that belongs
elsewhere, such as two shards that changed places, is noticed by `open_images` and `read_checked`:
each shard must have the fingerprint that the manifest has for it, which costs a few bytes a chunk.

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

from pipeline.core.arguments import checked
from pipeline.core.classes import class_flags
from pipeline.core.deferred import da, xr
from pipeline.core.digests import json_digest, sample_records
from pipeline.core.errors import ConflictError, OtherFileError
from pipeline.core.partitions import Partition, PartitionTable
from pipeline.core.paths import locate
from pipeline.core.schema import IMAGE, LABEL, SAMPLE, UNLABELLED
from pipeline.storage import image_store, manifest
from pipeline.storage.sample_lists import read_list
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
class _SplitArray(StoreArray):
    """The images or the labels of a split, each file of which is the one that was written.

    Of a file with another fingerprint the digest of its partition decides: see above.
    """

    count: int = 0  # samples of the split
    digests: tuple[str, ...] = ()  # of each of its partitions, in order

    def _require(self, number: int, mark: str) -> None:
        try:
            super()._require(number, mark)
        except OtherFileError:
            # the second look: what was read is what was checked, and not replaced in between
            if not self._holds_its_samples(number) or self.fingerprint(number) != mark:
                raise

    def _holds_its_samples(self, number: int) -> bool:
        split, _, _ = self.name.rpartition("/")
        start = number * self.shard
        partition = Partition(number, split, start, min(start + self.shard, self.count))
        return records_digest(read_records(self.path, partition)) == self.digests[number]


def _arrays(path: Path, content: Mapping[str, Any]) -> dict[str, _SplitArray]:
    """Return the arrays of images and of labels of all splits, by name, from a manifest."""
    arrays = {}
    for split, info in content["splits"].items():
        digests = tuple(x["digest"] for x in content["partitions"] if x["split"] == split)
        for name in image_store.array_names(split):
            expected = tuple(content["arrays"][name])
            arrays[name] = _SplitArray(
                path, name, expected=expected, count=info["count"], digests=digests
            )
    return arrays


@checked
def open_images(
    store: Path | str,
    split: str = "train",
    storage_options: Mapping[str, Any] | None = None,
    exclude: Any = None,
) -> xr.Dataset:
    """Open one split of an image set as lazy labelled arrays, a dask chunk per shard.

    Parameters
    ----------
    store
        The folder of the image set, or its URL.
    split
        The name of the split.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.
    exclude
        Samples to leave out: a folder with a table `keep.parquet`, a Parquet or CSV file, or a
        data frame, an Arrow table or a mapping of columns; its columns are `split`, `sample` and
        perhaps `keep` (rows with true are not meant). The others keep their index in `sample`.

    Returns
    -------
    A dataset with `image` (sample, y, x[, channel]) and the coordinates `label` (sample), the
    code into the attribute `class_names` and with CF's flags, see `class_flags`, `sample`, `y`, `x`
    and `channel`. Nothing but metadata is read, and the table.

    Raises
    ------
    StoreError
        Where the folder is no image set, is incomplete, or has no such split; a `DamagedError`
        where a shard is read that is missing, damaged or not the one that was written.
    SourceError, SchemaError, InputError, ConflictError
        Where the table of what to leave out is not as it should be, or about other images.

    Examples
    --------
    >>> import pipeline
    >>> test = pipeline.open_images(pipeline.ingest("digits"), "test")
    >>> dict(test["image"].sizes), str(test["image"].dtype), test.attrs["full_scale"]
    ({'sample': 899, 'y': 8, 'x': 8}, 'uint8', 16)
    """
    path = locate(store, storage_options).absolute()
    content = manifest.read_manifest(path, manifest.IMAGES)
    count = image_store.require_split(content, split, path)["count"]
    # metadata of another array may fit the files as well, and give them another meaning
    names = image_store.array_names(split)
    manifest.require_files(path, content, [f"{name}/zarr.json" for name in names])
    arrays = _arrays(path, content)
    image, label = (  # samples beyond the manifest's are being added, and not there yet
        arrays[name].lazy(content["digest"])[:count] for name in names
    )
    label.attrs |= class_flags(dict(enumerate(content["class_names"])))  # no array of old has them
    samples = np.arange(count)
    if exclude is not None:
        kept = np.ones(count, bool)
        kept[read_list(exclude, content, storage_options).samples_of(split)] = False
        image, label = (_kept_of(variable, kept) for variable in (image, label))
        samples = np.flatnonzero(kept)
    coordinates: dict[str, Any] = {
        LABEL.name: label,
        SAMPLE: (SAMPLE, samples, {"long_name": "sample index"}),
    }
    for dim in image.dims[1:]:
        coordinates[str(dim)] = (dim, np.arange(image.sizes[dim], dtype=np.int32))
    attributes = {name: content[name] for name in ("class_names", "full_scale", "provenance")}
    return xr.Dataset({IMAGE.name: image}, coordinates, attributes)


def _kept_of(variable: xr.Variable, kept: npt.NDArray[np.bool_]) -> xr.Variable:
    """Return those samples of a lazy array that are kept, still a chunk per shard.

    An index array would be cut anew, into chunks that read two shards each.
    """
    lazy = variable.data
    mask = da.from_array(kept, chunks=(lazy.chunks[0],))
    before = np.concatenate([[0], np.cumsum(kept)])[np.cumsum([0, *lazy.chunks[0]])]
    axes = tuple(range(lazy.ndim))
    chosen = da.blockwise(
        _where, axes, lazy, axes, mask, (0,), adjust_chunks={0: tuple(np.diff(before).tolist())},
        dtype=lazy.dtype, meta=np.empty((0,) * lazy.ndim, lazy.dtype),
    )  # fmt: skip
    return xr.Variable(variable.dims, chosen, variable.attrs, variable.encoding)


def _where(block: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return block[mask]


@lru_cache(maxsize=4)
def _recorded(path: Path, digest: str) -> dict[str, _SplitArray]:
    """Read the manifest, once for all tasks of a process."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    if content["digest"] != digest:
        raise ConflictError(
            f"{path}: holds other images (digest {content['digest']}) than when the job began "
            f"({digest}); run the job on what it holds now, to another place"
        )
    return _arrays(path, content)


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
    images, labels = (
        _read_array(path, digest, name, start, stop) for name in image_store.array_names(split)
    )
    return images, labels


def read_labels(
    path: Path, digest: str, split: str, start: int, stop: int
) -> npt.NDArray[np.int32]:
    """Read the labels alone; see `read_checked`."""
    _, name = image_store.array_names(split)
    return _read_array(path, digest, name, start, stop)


def _read_array(path: Path, digest: str, name: str, start: int, stop: int) -> npt.NDArray[Any]:
    # a new one, which opens what is there now
    return replace(_recorded(path, digest)[name]).samples(start, stop)
