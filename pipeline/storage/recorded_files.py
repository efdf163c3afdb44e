"""The files of a finished folder as its manifest records them: listed, and looked for when opened.

Whoever opens an image set or a run checks first that the files are there, without reading them: a
table that is gone would otherwise be rows that are not missed. Listings tell what is missing, empty
or too much, and the ends of tables how many rows they have. What is damaged inside,
`jobs.examination` finds, which reads everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from pipeline.core.errors import DamagedError
from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage import tables
from pipeline.storage.atomic import read_json, storage_errors
from pipeline.storage.folders import exists, sizes_below
from pipeline.storage.manifest import APPEND, file_hashes, repair_cure
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_stores import zarr_store

FOREIGN = "is none of those that were written"
MISSING = "is missing"
_CHUNKS = "c"

Sizes = Mapping[str, int]


def list_files(
    path: Path,
    known: Mapping[str, Sequence[str]],
    others: Iterable[str],
    axes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return what a manifest says of the files of a store: its `files` and `arrays`.

    Parameters
    ----------
    path
        The store, its metadata consolidated.
    known
        Array -> the fingerprints of its files, in order, where they are known already.
    others
        Other files below `path`.
    axes
        Array -> the axis that is cut into files, where it is not the first.
    """
    members = _members(path)
    documents = ["zarr.json", *(f"{name}/zarr.json" for name in members)]
    arrays = {}
    for name in (name for name, is_array in members.items() if is_array):
        array = StoreArray(path, name, (axes or {}).get(name, 0))
        marks = known.get(name)
        arrays[name] = list(map(array.fingerprint, range(array.files)) if marks is None else marks)
    return {"files": file_hashes(path, [*documents, *others]), "arrays": arrays}


def _members(path: Path) -> dict[str, bool]:
    """Return the groups and arrays of a store by name, and whether each is an array."""
    try:
        gathered = read_json(path / "zarr.json")["consolidated_metadata"]["metadata"]
        return {name: gathered[name]["node_type"] == "array" for name in sorted(gathered)}
    except (*ABSENT, ValueError, KeyError, TypeError):
        pass  # it has gathered nothing
    with storage_errors(path):
        root = zarr.open_group(zarr_store(path), mode="r", zarr_format=3)
        return {name: isinstance(node, zarr.Array) for name, node in sorted(root.members(None))}


def require_files_of(
    path: Path, content: Mapping[str, Any], folder: str = "", optional: Sequence[str] = ()
) -> None:
    """Raise `DamagedError` where files are missing, empty, or of another size than recorded.

    Parameters
    ----------
    path, content
        A finished folder, and its manifest.
    folder
        A folder in it; default: all of it.
    optional
        Files that may be missing.
    """
    sizes = {
        f"{folder}/{name}".lstrip("/"): size
        for name, size in sizes_below(path / folder if folder else path).items()
    }
    documents = _wrong_documents(content, sizes, folder, optional)
    _require(path, [*documents, *_wrong_arrays(content, sizes, folder)])


def require_parts(
    path: Path,
    content: Mapping[str, Any],
    folder: str,
    names: Sequence[str],
    parts: Sequence[Mapping[str, Any]],
) -> None:
    """Raise `DamagedError` unless the parts of a table of a run are those that were written.

    One is wrong that is missing, too much, or of another size or number of rows. Their ends are
    read on a disk; at a URL, where each costs requests, only where the manifest has no sizes.

    Parameters
    ----------
    path, content
        The folder of the run, and its manifest.
    folder, names, parts
        Where they are; the file of each part, and what the manifest says of it.
    """
    sizes = {f"{folder}/{name}": size for name, size in sizes_below(path / folder).items()}
    wrong = dict(_wrong_documents(content, sizes, folder, ()))
    wrong |= dict.fromkeys(foreign_parts(sizes, names), FOREIGN)
    if not is_remote(path) or "sizes" not in content:
        for name, part in zip(names, parts, strict=True):
            if name not in wrong:
                wrong |= dict(_wrong_rows(path, name, part))
    _require(path, list(wrong.items()))


def foreign_parts(files: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the tables among files that are none of these; what is hidden does not count."""
    known = set(names)
    return [
        name
        for name in files
        if name not in known
        and name.endswith(".parquet")
        and not name.rpartition("/")[2].startswith((".", "_"))
    ]


def require_tables(path: Path, content: Mapping[str, Any], samples: str) -> None:
    """Raise `DamagedError` where tables of an image set are gone, or rows of its samples."""
    names = [name for name in content["files"] if name.endswith(".parquet")]
    wrong = [(name, MISSING) for name in names if not exists(path / name)]
    if samples in names and not wrong:
        wrong = list(_wrong_rows(path, samples, {"rows": content["samples"]["listed"]}))
    if wrong and not exists(path / APPEND):  # they may be those of the grown one already
        _require(path, wrong)


def _require(path: Path, wrong: Sequence[tuple[str, str]]) -> None:
    if wrong:
        (name, reason), more = wrong[0], len(wrong) - 1
        others = f", and {more:,} files more are not as they were written" if more else ""
        raise DamagedError(f"{shown(path / name)}: {reason}{others}; {repair_cure(path)}")


def _wrong_documents(
    content: Mapping[str, Any], sizes: Sizes, folder: str, optional: Sequence[str]
) -> Iterator[tuple[str, str]]:
    recorded = content.get("sizes", {})
    for name in content["files"]:
        if name in optional or not name.startswith(f"{folder}/".lstrip("/")):
            continue
        if name not in sizes:
            yield name, MISSING
        elif sizes[name] != recorded.get(name, sizes[name]):
            yield name, f"has {sizes[name]:,} bytes, {recorded[name]:,} bytes were written"


def _wrong_arrays(
    content: Mapping[str, Any], sizes: Sizes, folder: str
) -> Iterator[tuple[str, str]]:
    """Yield the shards that are missing or empty; only one axis of an array is cut into shards."""
    there: dict[str, set[int]] = defaultdict(set)
    for name, size in sizes.items():
        array, _, key = f"{name}/".rpartition(f"/{_CHUNKS}/")
        numbers = key.rstrip("/").split("/") if key else ["0"]
        if size and array and all(number.isdigit() for number in numbers):
            there[array].add(max(map(int, numbers)))
    for array, marks in content["arrays"].items():
        if not array.startswith(f"{folder}/".lstrip("/")):
            continue
        for number in range(len(marks)):
            if number not in there[array]:
                yield array, f"shard {number} of {len(marks)} is missing"


def _wrong_rows(path: Path, name: str, part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    try:
        rows, notes = tables.read_end(path / name)
    except DamagedError:
        yield name, "cannot be read: it was cut short or changed"
        return
    if rows != part["rows"]:
        yield name, f"has {rows:,} rows, {part['rows']:,} were written"
    elif notes.get("digest", part.get("digest")) != part.get("digest"):
        yield name, "is not the table that was written there"
