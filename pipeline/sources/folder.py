"""Image files in folders, `SPLIT/CLASS/FILE` or `CLASS/FILE`, on this machine or behind a URL.

Names are sorted as text, so the numbering does not depend on the file system. Hidden files are
left out; links are followed; what is no regular file is listed, and never opened.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import ShapeError, SourceError
from pipeline.places import is_remote, shown, tried
from pipeline.sources import UNREADABLE, Block, SplitInfo
from pipeline.sources.fetch import (
    FileFetcher,
    file_system,
    info_stamp,
    not_regular,
    title_of,
    titles_of,
    unreadable,
)
from pipeline.sources.layout import is_hidden, is_image, suffix_of
from pipeline.sources.listing import File, Notes
from pipeline.sources.tree import Member, Tree


@dataclass(frozen=True)
class FolderReader:
    """Lists the image files of folders.

    Attributes
    ----------
    places
        For each split its folders; those of None are searched for splits.
    split
        The name of the split where neither the job nor the folders tell one.
    """

    places: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    kind = "folder"

    @property
    def _folders(self) -> list[tuple[str | None, Path]]:
        return [(split, path) for split, paths in self.places.items() for path in paths]

    @property
    def title(self) -> str:
        return titles_of(self.places)

    def fetcher(self) -> FileFetcher:
        return FileFetcher(tuple(path for _, path in self._folders))

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of each split in order.

        Raises
        ------
        SourceError
            Where a folder cannot be listed, or holds no images.
        """
        notes.labels_are_text = True
        several = len(self._folders) > 1
        titles = [f"{title_of(path)}/" if several else "" for _, path in self._folders]
        with Tree() as tree:
            for number, (given, path) in enumerate(self._folders):
                notes.files.append(File(number, "", ""))
                group = tree.group(given or self.split, given is not None, False, shown(path))
                for member in _walked(path, notes):
                    tree.add(member._replace(group=group, file=number))
            for split, _ in tree.arrange():
                for rows in tree.batches(split, True, titles):
                    yield split, rows


def folder_reader(
    places: Mapping[str | None, Sequence[Path]], split: str = "train"
) -> FolderReader:
    """Return a reader of image files in folders.

    Parameters
    ----------
    places
        For each split its folders, classes inside; those of None hold splits, or classes.
    split
        The name of the split, where folders hold classes and no split is given.
    """
    return FolderReader(dict(places), split)


def _walked(root: Path, notes: Notes) -> Iterator[Member]:
    if is_remote(root):
        yield from _walked_remote(file_system(root), root.path, b"", notes)  # type: ignore[attr-defined]
        return
    if not root.is_dir():
        raise SourceError(f"{root}: is no folder; correct the name")
    yield from _walked_local(os.fsencode(root), b"", (), notes)


def _walked_local(
    root: bytes, folder: bytes, above: tuple[tuple[int, int], ...], notes: Notes
) -> Iterator[Member]:
    """Yield the image files below a folder; a link to a folder above is not followed."""
    path = os.path.join(root, folder)  # noqa: PTH118 (names are bytes)
    try:
        status = os.stat(path)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                name = folder + b"/" + entry.name if folder else entry.name
                if entry.is_dir():
                    yield from _walked_local(root, name, (*above, identity), notes)
                elif is_image(entry.name):
                    yield _member(entry, name)
                else:
                    notes.ignored[suffix_of(entry.name)] += 1
    except OSError as error:
        raise SourceError(
            f"{os.fsdecode(path)}: cannot be listed: {error.strerror}; make it readable"
        ) from error


def _member(entry: os.DirEntry[bytes], name: bytes) -> Member:
    try:
        found = entry.stat()
    except OSError as error:
        detail = "is a broken link" if entry.is_symlink() else unreadable(error).detail
        return Member(0, 0, name, status=UNREADABLE, detail=detail)
    member = Member(0, 0, name, 0, found.st_size, f"{found.st_size} {found.st_mtime_ns}")
    if stat.S_ISREG(found.st_mode):
        return member
    return member._replace(status=UNREADABLE, detail=not_regular(found.st_mode).detail)


def _walked_remote(files: Any, root: str, folder: bytes, notes: Notes) -> Iterator[Member]:
    """Yield the image files below a remote folder; memory holds one folder's names."""
    path = "/".join([root.rstrip("/"), *([folder.decode()] if folder else [])])
    url = files.unstrip_protocol(path)
    try:
        entries = tried(url, files.ls, path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{shown(url)}: is no folder; correct the URL") from None
    files.invalidate_cache(path)  # else every folder's names stay
    for entry in entries:
        full = entry["name"].rstrip("/")
        name = full.rpartition("/")[2].encode("utf-8", "surrogateescape")
        if not name or is_hidden(name) or full == path.strip("/"):
            continue  # an object store may list the folder itself
        below = folder + b"/" + name if folder else name
        if entry["type"] == "directory":
            yield from _walked_remote(files, root, below, notes)
        elif is_image(name):
            size, stamp = info_stamp(entry)
            yield Member(0, 0, below, 0, size, stamp)
        else:
            notes.ignored[suffix_of(name)] += 1


# to be removed: what FolderReader replaces ------------------------------------------------------

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_MODES = {"L": "L", "1": "L", "RGB": "RGB", "I;16": "I;16"}


def read_image(path: Path) -> npt.NDArray[Any]:
    """Read one image file as [y, x] or [y, x, channel].

    Raises
    ------
    SourceError
        Where Pillow cannot read it, or its mode is none of the supported ones.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in _MODES:
                raise SourceError(
                    f"{path}: has mode {image.mode}, expected 8-bit grey (L), RGB or 16-bit "
                    "grey (I;16); convert it first"
                )
            return np.asarray(image.convert(_MODES[image.mode]))
    except SourceError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: cannot be read as an image: {error}") from None


@dataclass(frozen=True)
class FolderSource:
    """The image files below `path`, one folder per split, one per class inside."""

    path: Path

    @cached_property
    def _files(self) -> dict[str, list[tuple[str, Path]]]:
        """For each split its (class name, file) pairs in order."""
        found: dict[str, list[tuple[str, Path]]] = {}
        for split in _subfolders(self.path):
            pairs = [
                (folder.name, file)
                for folder in _subfolders(split)
                for file in sorted(folder.iterdir(), key=lambda item: item.name)
                if file.suffix.lower() in SUFFIXES
            ]
            if pairs:
                found[split.name] = pairs
        if not found:
            raise SourceError(
                f"{self.path}: no image found; expected SPLIT/CLASS/FILE, such as "
                f"{self.path}/train/cat/1.png, files ending in {', '.join(SUFFIXES)}"
            )
        return found

    @cached_property
    def _first(self) -> npt.NDArray[Any]:
        return read_image(next(iter(self._files.values()))[0][1])

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for pairs in self._files.values() for name, _ in pairs}))

    @property
    def full_scale(self) -> int:
        return int(np.iinfo(self._first.dtype).max)

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """Kind, folder, and a digest of names, sizes and times: a changed file is noticed."""
        listing = hashlib.sha256()
        for pairs in self._files.values():
            for _, file in pairs:
                status = file.stat()
                name = file.relative_to(self.path).as_posix()
                listing.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return {"kind": "folder", "folder": self.path.name, "listing": listing.hexdigest()}

    def splits(self) -> dict[str, SplitInfo]:
        shape, dtype = self._first.shape, str(self._first.dtype)
        return {name: SplitInfo(len(pairs), shape, dtype) for name, pairs in self._files.items()}

    def read(self, split: str, start: int, stop: int) -> Block:
        pairs = self._files[split][start:stop]
        codes = {name: code for code, name in enumerate(self.class_names)}
        first = self._first
        images = np.empty((len(pairs), *first.shape), first.dtype)
        for place, (_, file) in enumerate(pairs):
            image = read_image(file)
            if image.shape != first.shape or image.dtype != first.dtype:
                raise ShapeError(
                    f"{file}: has shape {image.shape} and {image.dtype}, expected "
                    f"{first.shape} and {first.dtype} as the first file; bring all to one size"
                )
            images[place] = image
        labels = np.array([codes[name] for name, _ in pairs], np.int32)
        return Block(images, labels, [f.relative_to(self.path).as_posix() for _, f in pairs])

    def close(self) -> None:
        """Nothing is left open."""


def _subfolders(path: Path) -> list[Path]:
    return sorted((item for item in path.iterdir() if item.is_dir()), key=lambda item: item.name)
