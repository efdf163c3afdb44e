"""Image files in folders, `SPLIT/CLASS/FILE` or `CLASS/FILE`, on this machine or behind a URL.

Names are sorted as text, so the numbering does not depend on the file system. Hidden files are
left out; links are followed; what is no regular file is listed, and never opened.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.blocks import UNREADABLE
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.sources.fetch import FileFetcher, not_regular, title_of, titles_of, unreadable
from pipeline.sources.file_names import is_hidden, is_image
from pipeline.sources.folder_tree import Member, Tree
from pipeline.sources.notes import File, Notes
from pipeline.sources.open_cache import version_in
from pipeline.storage.retries import file_system, tried

_LOOKED_AT = 1000


@dataclass(frozen=True)
class FolderReader:
    """Lists the image files of folders.

    `places` are for each split its folders, classes inside; those of None hold splits, or classes.
    `split` is the name where neither the job nor the folders tell one; `doubts` tells whether to
    refuse what is implausible, see `folder_checks`.
    """

    places: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    doubts: bool = True
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
        """Yield the rows of each split in order."""
        notes.labels_are_text = True
        several = len(self._folders) > 1
        titles = [f"{title_of(path)}/" if several else "" for _, path in self._folders]
        with Tree(self.kind, notes, doubts=self.doubts) as tree:
            for number, (given, path) in enumerate(self._folders):
                notes.files.append(File(number, "", ""))
                group = tree.group(given or self.split, given is not None, False, shown(path))
                for member in _walked(path):
                    if isinstance(member, Member):
                        tree.add(member._replace(group=group, file=number))
                    elif member.endswith(b"/"):
                        notes.ignore_empty(member[:-1])
                    else:
                        tree.leave_out(group, member)
            for split, _ in tree.arrange():
                for rows in tree.batches(split, True, titles):
                    yield split, rows


def folder_reader(
    places: Mapping[str | None, Sequence[Path]], split: str = "train", *, doubts: bool = True
) -> FolderReader:
    """Return a reader of image files in folders; parameters as of `FolderReader`."""
    return FolderReader(dict(places), split, doubts)


def has_images(path: Path) -> bool:
    """Tell whether there is an image among the first files below a folder."""
    return any(isinstance(item, Member) for item in itertools.islice(_walked(path), _LOOKED_AT))


def _walked(root: Path) -> Iterator[Member | bytes]:
    """Yield the image files below a folder, and the names of others; those of folders end in /."""
    if is_remote(root):
        yield from _walked_remote(file_system(root), root.path, b"")  # type: ignore[attr-defined]
        return
    if not root.is_dir():
        raise SourceError(f"{root}: is no folder; correct the name")
    yield from _walked_local(os.fsencode(root), b"", ())


def _walked_local(
    root: bytes, folder: bytes, above: tuple[tuple[int, int], ...]
) -> Iterator[Member | bytes]:
    """Yield the files below a folder, and empty folders; no links to folders above."""
    path = os.path.join(root, folder)  # noqa: PTH118 (names are bytes)
    try:
        status = os.stat(path)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        is_empty = bool(folder)
        with os.scandir(path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                is_empty = False
                name = folder + b"/" + entry.name if folder else entry.name
                if _is_folder(entry):
                    yield from _walked_local(root, name, (*above, identity))
                elif is_image(entry.name):
                    yield _member(entry, name)
                else:
                    yield name
        if is_empty:
            yield folder + b"/"
    except PixsimError:  # of a folder below
        raise
    except OSError as error:
        raise SourceError(
            f"{os.fsdecode(path)}: cannot be listed: {error.strerror}; make it readable"
        ) from error


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; what it is, is asked for once more
        return False


def _member(entry: os.DirEntry[bytes], name: bytes) -> Member:
    try:
        status = entry.stat()
    except OSError as error:
        detail = "is a broken link" if entry.is_symlink() else unreadable(error).detail
        return Member(0, 0, name, status=UNREADABLE, detail=detail)
    member = Member(0, 0, name, 0, status.st_size, version_in(status).stamp)
    if stat.S_ISREG(status.st_mode):
        return member
    return member._replace(status=UNREADABLE, detail=not_regular(status.st_mode).detail)


def _walked_remote(files: Any, root: str, folder: bytes) -> Iterator[Member | bytes]:
    """Yield the files below a remote folder; memory holds one folder's names."""
    path = "/".join([root.rstrip("/"), *([folder.decode()] if folder else [])])
    url = files.unstrip_protocol(path)
    files.invalidate_cache(path)  # what is remembered may be of before
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
            yield from _walked_remote(files, root, below)
        elif is_image(name):
            version = version_in(entry)
            yield Member(0, 0, below, 0, version.size, version.stamp)
        else:
            yield below
