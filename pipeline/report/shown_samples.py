"""The few samples that a report shows: images, distances, neighbours, sources, each read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DamagedError, PixsimError, RemoteError
from pipeline.core.exact import Float64Array
from pipeline.core.schema import DISTANCE, SAMPLE
from pipeline.storage import manifest, run_files, tables
from pipeline.storage.image_content import read_checked
from pipeline.storage.recorded_files import require_tables
from pipeline.storage.sample_tables import SAMPLES, sources_of

MAX_LISTED = 5 * 10**6  # samples of an image set up to which their sources are looked up
_WHOLE_BYTES = 2**26  # distances of a partition that are read at once
_OF_NEIGHBOURS = "sample", "split", "neighbour", "neighbour_split", "neighbour_label", "distance"

Key = tuple[str, int]
"""A split and the index of a sample in it."""


@dataclass(frozen=True)
class SampleReader:
    """The image set of a run, where it is there still.

    Attributes
    ----------
    path
        Its folder.
    content
        Its manifest.
    """

    path: Path
    content: Mapping[str, Any]

    def images(self, wanted: Iterable[Key]) -> dict[Key, npt.NDArray[Any]]:
        """Read some images, chunk by chunk.

        Raises
        ------
        DamagedError, ConflictError
            Where they are not there, or not those that the run saw.
        """
        splits = self.content["splits"]
        pictures: dict[Key, npt.NDArray[Any]] = {}
        keys = sorted({key for key in wanted if key[0] in splits})
        for (split, _), group in groupby(
            keys, lambda key: (key[0], key[1] // splits[key[0]]["chunk"])
        ):
            samples = [sample for _, sample in group]
            start, stop = samples[0], samples[-1] + 1
            digest = self.content["digest"]
            images, _ = read_checked(self.path, digest, split, start, stop)
            pictures |= {(split, sample): images[sample - start].copy() for sample in samples}
        return pictures

    def first(self, split: str, wanted: Sequence[int], each: int) -> dict[int, list[Any]]:
        """Return the first images of some classes, by code, as far as the first chunk has them."""
        info = self.content["splits"][split]
        digest = self.content["digest"]
        stop = min(info["chunk"], info["count"])
        images, labels = read_checked(self.path, digest, split, 0, stop)
        chosen = {code: np.flatnonzero(labels == code)[:each] for code in wanted}
        return {code: [images[at] for at in samples] for code, samples in chosen.items()}

    def sources(self, wanted: Iterable[Key]) -> dict[Key, str]:
        """Return where samples came from, where the image set is small enough to look it up."""
        count = sum(split["count"] for split in self.content["splits"].values())
        if count > MAX_LISTED or SAMPLES not in self.content["files"]:
            return {}
        require_tables(self.path, self.content, SAMPLES)
        return sources_of(self.path, set(wanted))


def open_image_set(path: Path, digest: str) -> tuple[SampleReader | None, str]:
    """Return the image set of a run; or None, and why it cannot be shown."""
    try:
        content = manifest.read_manifest(path, manifest.IMAGES)
    except RemoteError:
        raise
    except (PixsimError, OSError):
        return None, "the image set is not where it was"
    if content["digest"] != digest:
        return None, "the image set holds other images by now"
    return SampleReader(path, content), ""


def read_distances(
    path: Path, content: Mapping[str, Any], wanted: Iterable[tuple[int, Key]]
) -> dict[Key, Float64Array]:
    """Read the distances of some samples of a run, [metric, class] of each.

    Parameters
    ----------
    path, content
        The run, and its manifest.
    wanted
        The partition of each sample, and which it is.

    Returns
    -------
    Nothing where the run wrote no distances.
    """
    if content["digests"]["distances"] is None:
        return {}
    store = path / run_files.DISTANCES
    splits = content["settings"]["evaluate"]
    expected = run_files.fingerprints_of(content, run_files.DISTANCES)
    distance, split_code, sample_index = (
        run_files.stored_array(store, name, expected)
        for name in (DISTANCE.name, run_files.SPLIT, SAMPLE)
    )
    distances = {}
    for number, group in groupby(sorted(set(wanted)), lambda pair: pair[0]):
        part = content["partitions"][number]
        bounds = part["start"], part["stop"]
        codes, samples = split_code.samples(*bounds), sample_index.samples(*bounds)
        keys = [key for _, key in group]
        row = 8 * distance.shape[0] * distance.shape[2]
        block = distance.samples(*bounds) if (bounds[1] - bounds[0]) * row < _WHOLE_BYTES else None
        for split, sample in keys:
            at = np.flatnonzero((codes == splits.index(split)) & (samples == sample))
            if len(at) != 1:
                raise DamagedError(f"{store}: has no sample {sample} of '{split}'")
            row_in_part = int(at[0])
            if block is not None:
                distances[split, sample] = block[:, row_in_part].copy()
            else:
                start = bounds[0] + row_in_part
                distances[split, sample] = distance.samples(start, start + 1)[:, 0]
    return distances


@dataclass(frozen=True)
class NearImage:
    """One of the nearest images of a sample, as the tables of a run have it.

    Attributes
    ----------
    key
        Which it is.
    label
        The code of its class in the image set.
    distance
        In units of full scale.
    """

    key: Key
    label: int
    distance: float


def read_neighbours(
    path: Path,
    content: Mapping[str, Any],
    wanted: Iterable[tuple[int, Key]],
    metric: str,
    most: int,
) -> dict[Key, list[NearImage]]:
    """Read the nearest images of some samples of a run, the nearest first.

    Parameters
    ----------
    path, content
        The run, and its manifest.
    wanted
        The partition of each sample, and which it is.
    metric
        One of those that neighbours were found by.
    most
        How many of each.

    Returns
    -------
    Nothing where the run has no neighbours; of a sample only those there are.
    """
    if run_files.NEIGHBOURS not in content:
        return {}
    partition_of = {key: partition for partition, key in wanted}
    by_part = defaultdict[int, list[Key]](list)
    for key, partition in partition_of.items():
        for number in _tables_of(content, partition, key):
            by_part[number].append(key)
    found: dict[Key, list[NearImage]] = {}
    for number, keys in sorted(by_part.items()):
        part = run_files.part_path(path, number, run_files.NEIGHBOURS)
        found |= _read_nearest(part, content, keys, metric, most)
    for split, sample in partition_of.keys() - found.keys():
        raise DamagedError(f"{path}: has no neighbours of sample {sample} of '{split}'")
    return found


def _tables_of(content: Mapping[str, Any], partition: int, key: Key) -> list[int]:
    """Return the tables of neighbours that may have a sample.

    Where other splits were measured before its own, that is those of its whole partition: how many
    samples they have is known to the image set alone, which may have gone.
    """
    start, stop = (content["partitions"][partition][edge] for edge in ("start", "stop"))
    if key[0] == content["settings"]["evaluate"][0]:
        start, stop = key[1], key[1] + 1
    parts = content[run_files.NEIGHBOURS]["partitions"]
    return [
        number for number, part in enumerate(parts)
        if part["start"] < stop and start < part["stop"]
    ]  # fmt: skip


def _read_nearest(
    part: Path, content: Mapping[str, Any], keys: Iterable[Key], metric: str, most: int
) -> dict[Key, list[NearImage]]:
    """Read those samples of a table of neighbours that it has."""
    search, splits = content["plan"]["neighbours"], content["settings"]["evaluate"]
    shape = -1, len(search["metrics"]), search["k"]
    at = search["metrics"].index(metric)
    rows = {
        name: column.reshape(shape)[:, at, :most]
        for name, column in tables.read_part(part, _OF_NEIGHBOURS).items()
    }
    found = {}
    for split, sample in keys:
        mine = (rows["split"][:, 0] == splits.index(split)) & (rows[SAMPLE][:, 0] == sample)
        for row in np.flatnonzero(mine).tolist():
            columns = (rows[name][row].tolist() for name in _OF_NEIGHBOURS[2:])
            found[split, sample] = [
                NearImage((search["among"][code], neighbour), label, distance)
                for neighbour, code, label, distance in zip(*columns, strict=True)
                if neighbour >= 0
            ]
    return found
