"""What a manifest names is on the disk before the manifest is.

Files are written without waiting for the disk, and all of them are flushed at once before a record
vouches for them: so writing, reading and computing overlap, and the disk puts writes in its own
order. A file lasts once its bytes are flushed, and every folder that leads to it. Of 10 GB of
shards most is on the disk by then; what is left to do is about a millisecond a file on one thread,
a fraction of that on several. A worker on another machine that shares the folder by network has
sent what it wrote when it closed the file. Object stores keep whole what they have taken.

What takes the place of a file that a manifest vouches for already is flushed before it does, see
`atomic.settle`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import DamagedError
from pipeline.core.paths import is_remote
from pipeline.core.threads import in_ranges
from pipeline.core.urls import shown
from pipeline.storage.atomic import flush, read_json, storage_errors

_THREADS, _BATCH = 8, 2**10


def flush_named(
    path: Path, content: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Flush the files that a manifest names, and the folders that lead to them.

    Parameters
    ----------
    path
        The folder of the manifest.
    content
        What it will say; its `files` and `arrays` are looked at.
    before
        The manifest that is there: what it vouches for as well lasts already.

    Raises
    ------
    DamagedError
        Where one of them is missing.
    """
    known = before or {}
    files = _changed(content.get("files", {}), known.get("files", {}))
    _flush(path, (path / name for name in files))
    for name, marks in content.get("arrays", {}).items():
        _flush(path, _files_of(path / name, marks, known.get("arrays", {}).get(name, ())))
    if not is_remote(path):
        # the folder itself, and those that were made to hold it; not all of them are ours
        for folder in path.absolute().parents:
            with suppress(OSError):
                flush(folder)


def flush_tree(path: Path) -> None:
    """Flush all files below a folder."""
    if not is_remote(path):
        names = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        _flush(path, names)


def _changed(content: Mapping[str, str], before: Mapping[str, str]) -> Iterator[str]:
    return (name for name, mark in content.items() if before.get(name) != mark)


def _files_of(array: Path, marks: Sequence[str], before: Sequence[str]) -> Iterator[Path]:
    """Yield the files of an array that are not those of before; `marks` are their fingerprints."""
    if is_remote(array) or list(marks) == list(before):
        return
    metadata = read_json(array / "zarr.json")
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    grid = [-(-size // step) for size, step in zip(metadata["shape"], outer, strict=True)]
    # only one axis is cut, so these are in order along it
    for number, (place, mark) in enumerate(zip(np.ndindex(*grid), marks, strict=False)):
        if number >= len(before) or before[number] != mark:
            yield array.joinpath("c", *map(str, place))


def _flush(path: Path, files: Iterable[Path]) -> None:
    """Flush files, and the folders between them and a folder, which is flushed too."""
    if is_remote(path):
        return
    with storage_errors(path):
        left = iter(files)
        while batch := list(islice(left, _BATCH)):
            folders = {folder for file in batch for folder in file.parents}
            batch += (folder for folder in folders if folder.is_relative_to(path))
            in_ranges(_THREADS, len(batch), partial(_flush_range, batch))


def _flush_range(files: Sequence[Path], start: int, stop: int) -> None:
    for file in files[start:stop]:
        try:
            flush(file)
        except FileNotFoundError:
            raise DamagedError(
                f"{shown(file)}: is missing, and was there before; run the same command again"
            ) from None
