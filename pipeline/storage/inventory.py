"""Which files and fingerprints the arrays of a store have, as its manifest records them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from pipeline.storage.atomic import read_json, storage_errors
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_access import zarr_store


def gathered_metadata(path: Path, name: str, broken: Container[str]) -> dict[str, Any] | None:
    """Return what the groups above an array have gathered of its metadata; see `consolidate`.

    Parameters
    ----------
    path, name
        The folder of a store, and the array in it.
    broken
        Documents of the store that are damaged, and not read.
    """
    parts = name.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        document = "/".join([*parts[:depth], "zarr.json"])
        if document in broken:
            continue
        try:
            gathered = read_json(path / document)["consolidated_metadata"]["metadata"]
            return dict(gathered["/".join(parts[depth:])])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a group that has gathered nothing
    return None


@dataclass(frozen=True)
class Inventory:
    """The files of a store.

    Attributes
    ----------
    documents
        The paths of the files that hold metadata.
    arrays
        Array -> the fingerprints of its files, in order.
    """

    documents: list[str]
    arrays: dict[str, list[str]]


def inventory(
    path: Path, known: Mapping[str, Sequence[str]], axes: Mapping[str, int] | None = None
) -> Inventory:
    """List the files of a store whose metadata is consolidated.

    Parameters
    ----------
    path
        The folder of the store.
    known
        Array -> fingerprints that are known already.
    axes
        Array -> the axis that is cut into files, where it is not the first.

    Raises
    ------
    DamagedError
        Where a file is missing or cannot be read.
    """
    with storage_errors(path):
        root = zarr.open_group(zarr_store(path), mode="r", zarr_format=3)
        members = sorted(root.members(max_depth=None))
    documents, arrays = ["zarr.json"], {}
    for name, node in members:
        documents.append(f"{name}/zarr.json")
        if isinstance(node, zarr.Array):
            array = StoreArray(path, name, (axes or {}).get(name, 0))
            found = known.get(name)
            arrays[name] = (
                [array.fingerprint(number) for number in range(array.files)]
                if found is None
                else list(found)
            )
    return Inventory(documents, arrays)


def group_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the group at the root of a store."""
    return dict(zarr.open_group(zarr_store(path), mode="r").attrs)
