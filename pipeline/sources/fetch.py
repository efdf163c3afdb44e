"""Fetches the bytes of image files: a file, or a range of one; local, or behind a URL.

What is wrong with one file is a `Problem` of one sample. What is wrong with the place, such as a
network that fails or a full table of open files, is an error, so that a job stops and can be
resumed, instead of leaving samples out.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import PixsimError, RemoteError, SourceError
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.sources.notes import File
from pipeline.sources.open_cache import unchanged
from pipeline.storage.blobs import tried, version_in, version_of

FILES_AT_ONCE = 32
BYTES_AT_ONCE = 2**25
GAP_BYTES = 2**16
_READ_BYTES = 2**20
_MOST_TITLES = 3

_NO_FILE = (FileNotFoundError, IsADirectoryError)
# what is wrong with one file rather than with the machine
_OF_ONE_FILE = (
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EIO, errno.ENXIO, errno.EINVAL, errno.EILSEQ,
)  # fmt: skip


class Wanted(NamedTuple):
    """Bytes `start` to `stop` of a file of a remote place; -1: to the end, which is not known."""

    place: int
    path: str
    start: int
    stop: int


def too_large(size: int, most: int) -> Problem:
    return Problem(
        TOO_LARGE, f"holds {size:,} bytes, expected {most:,} at most; allow more with max_bytes"
    )


def not_regular(mode: int) -> Problem:
    """Say what a file is that is no regular one."""
    kinds = {
        stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a link",
    }  # fmt: skip
    return Problem(UNREADABLE, f"is {kinds.get(stat.S_IFMT(mode), 'no file')}, expected a file")


def unreadable(error: BaseException) -> Problem:
    """Say why a file cannot be read."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else None
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    return Problem(UNREADABLE, reason or " ".join(str(error).split()) or type(error).__name__)


def problem_of(error: OSError, root: Path) -> Problem:
    """Return what an error of a local file below `root` says of its sample.

    Raises
    ------
    SourceError
        Where the fault is not that of this file.
    """
    gone = error.errno == errno.ENOENT and not root.exists()
    if gone or error.errno not in _OF_ONE_FILE:
        reason = "is gone; put it back" if gone else f"cannot be read: {error.strerror or error}"
        raise SourceError(f"{root}: {reason}, and run the same command again") from error
    return unreadable(error)


def read_local(root: Path, path: bytes, most: int) -> bytes | Problem:
    """Read a local file whole; one of more than `most` bytes, or no regular one, is a problem."""
    try:
        # a pipe must not block the open
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return not_regular(status.st_mode)
            if status.st_size > most:
                return too_large(status.st_size, most)
            # a byte more than there is: a file that grows meanwhile is seen
            data = os.read(descriptor, status.st_size + 1)
            while len(data) != status.st_size and len(data) <= most:
                more = os.read(descriptor, _READ_BYTES)
                if not more:
                    break
                data += more
        finally:
            os.close(descriptor)
    except ValueError as error:  # the name holds a NUL
        return unreadable(error)
    except OSError as error:
        return problem_of(error, root)
    return too_large(len(data), most) if len(data) > most else data


def read_range(file: int, offset: int, size: int) -> bytes | Problem:
    """Read a range of a local file that is open, at any place of it at once."""
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            return _short(len(data), size)
        data += more
    return data


def _short(found: int, expected: int) -> Problem:
    return Problem(TRUNCATED, f"holds {found:,} bytes, expected {expected:,}; fetch it again")


def _stretches(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """Put together what follows each other in one file, so that it comes in one request."""
    stretch: list[Wanted] = []
    for item in wanted:
        if stretch:
            last = stretch[-1]
            near = last.path == item.path and 0 <= item.start - last.stop <= GAP_BYTES
            whole = min(last.stop, item.stop) < 0
            if whole or not near or item.stop - stretch[0].start > BYTES_AT_ONCE:
                yield stretch
                stretch = []
        stretch.append(item)
    if stretch:
        yield stretch


def _loads(stretches: Iterable[list[Wanted]]) -> Iterator[list[list[Wanted]]]:
    """Put together what is requested at once: some files, and not too many bytes."""
    load: list[list[Wanted]] = []
    size = 0
    for stretch in stretches:
        more = max(0, stretch[-1].stop - stretch[0].start)
        if load and (len(load) >= FILES_AT_ONCE or size + more > BYTES_AT_ONCE):
            yield load
            load, size = [], 0
        load.append(stretch)
        size += more
    if load:
        yield load


def read_remote(
    files: Any, wanted: Iterable[Wanted], most: int, archives: bool = False
) -> Iterator[tuple[int, bytes | Problem]]:
    """Read ranges of remote files, several at once; those that follow each other in one request.

    Yields the `place` of each, and its bytes or what is wrong with it. A file whose end is not
    known is read up to one byte more than `most`.

    Raises
    ------
    RemoteError
        Where requests fail for another reason than that there is no such file.
    SourceError
        Where there is no such file, and the files are `archives`, of many samples each.
    """
    asked = []
    for item in wanted:
        if item.start == item.stop:  # no range of a request can say so
            yield item.place, b""
        else:
            asked.append(item)
    for load in _loads(_stretches(asked)):
        found = _requested(files, load, most)
        for stretch, data in zip(load, found, strict=True):
            if isinstance(data, BaseException):
                if archives:
                    raise SourceError(
                        f"{shown(_url(files, stretch[0].path))}: is gone; put it back, and run "
                        "the same command again"
                    )
                problem = unreadable(data)
                yield from ((item.place, problem) for item in stretch)
                continue
            if archives and len(data) > stretch[-1].stop - stretch[0].start:
                raise SourceError(
                    f"{shown(_url(files, stretch[0].path))}: this server sends whole "
                    "files where a part is asked for; fetch the archive and read it from a disk"
                )
            for item in stretch:
                yield item.place, _part(data, item, stretch[0].start, most)


def _requested(files: Any, load: Sequence[list[Wanted]], most: int) -> list[Any]:
    """Return the bytes of each stretch, or that there is no such file; retry what failed."""
    paths = [stretch[0].path for stretch in load]
    starts = [stretch[0].start for stretch in load]
    ends = [stretch[-1].stop if stretch[-1].stop >= 0 else most + 1 for stretch in load]

    answers: dict[int, Any] = {}

    def request() -> list[Any]:
        left = [number for number in range(len(paths)) if number not in answers]
        parts = ([values[number] for number in left] for values in (paths, starts, ends))
        failure = None
        for number, data in zip(left, files.cat_ranges(*parts, on_error="return"), strict=True):
            if isinstance(data, BaseException) and not isinstance(data, _NO_FILE):
                failure = data
            else:
                answers[number] = data
        if failure is not None:
            raise failure
        return [answers[number] for number in range(len(paths))]

    try:
        return tried(_url(files, paths[0]), request)
    except RemoteError as error:
        # what signs a URL of a list stands in its query
        signed = {path.partition("?")[2] for path in paths} - {""}
        text = functools.reduce(lambda text, query: text.replace(query, "***"), signed, str(error))
        raise RemoteError(text) from None


def _url(files: Any, path: str) -> str:
    return cast(str, files.unstrip_protocol(path))


def failed(path: Path, error: BaseException) -> SourceError:
    """Return the error of a file that cannot be read, whatever its file system raised."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{shown(path)}: is not there; correct the name or fetch it")
    cure = "check the network and the storage options" if is_remote(path) else "make it readable"
    reason = unreadable(error).detail
    return SourceError(
        f"{shown(path)}: cannot be read ({reason}); {cure}, and run the same command again"
    )


def _part(data: bytes, item: Wanted, start: int, most: int) -> bytes | Problem:
    if item.stop < 0:
        return too_large(len(data), most) if len(data) > most else data
    part = data[item.start - start : item.stop - start]
    if len(part) < item.stop - item.start:
        return _short(len(part), item.stop - item.start)
    return part


def stamp_of(path: Path) -> tuple[int, str]:
    """Return the size of a file, -1 where it is not known, and what changes when it does.

    Raises
    ------
    SourceError
        Where it cannot be found.
    """
    try:
        found = version_of(path)
    except OSError as error:
        if isinstance(error, PixsimError):
            raise
        raise failed(path, error) from None
    return found.size, found.stamp


def info_stamp(info: Any) -> tuple[int, str]:
    """Return size and stamp of a remote file as fsspec describes it."""
    found = version_in(info)
    return found.size, found.stamp


def roots_of(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the folders that files lie in, each once."""
    return tuple(dict.fromkeys(path.parent for path in paths))


def describe(path: Path, roots: Sequence[Path]) -> File:
    """Return what a listing records of a file that lies in one of the folders.

    Raises
    ------
    SourceError
        Where it is not there.
    """
    return File(roots.index(path.parent), path.name, stamp_of(path)[1])


class Recorded:
    """The files of a listing while some of them are read: each must be the one that was listed.

    Parameters
    ----------
    roots
        The folders of the files.
    files
        Root, name and stamp of each file, as the listing has them.
    stack
        At its end the files are looked at once more.
    """

    def __init__(
        self, roots: Sequence[Path], files: Sequence[Sequence[Any]], stack: ExitStack
    ) -> None:
        self._roots, self._files, self._stack = roots, files, stack
        self._known: dict[int, tuple[Path, Hashable]] = {}

    def open(self, file: int) -> tuple[Path, Hashable]:
        """Return the path of a file, and the version to keep it open for.

        Raises
        ------
        SourceError
            Where it is gone, or another file has taken its place.
        """
        if file not in self._known:
            root, name, *stamp = self._files[file]
            path = self._roots[root] / name
            self._known[file] = path, self._stack.enter_context(_listed(path, *stamp))
        return self._known[file]


@contextmanager
def _listed(path: Path, stamp: str = "") -> Iterator[Hashable]:
    try:
        with unchanged(path, stamp) as version:
            yield version
    except OSError as error:
        if isinstance(error, PixsimError):
            raise
        # without the cause: its own text may hold keys
        raise SourceError(
            f"{shown(path)}: cannot be read: {unreadable(error).detail}; put it back, and run the "
            "same command again"
        ) from None


def title_of(path: Path) -> str:
    """Return how a place is named where others may read it: a URL without secrets, or a name."""
    return shown(path) if is_remote(path) else path.absolute().name


def titles_of(places: Mapping[str | None, Sequence[Path]]) -> str:
    """Return how several places are named; of many only the first ones."""
    paths = [path for some in places.values() for path in some]
    more = f" and {len(paths) - _MOST_TITLES} more" if len(paths) > _MOST_TITLES else ""
    return ", ".join(title_of(path) for path in paths[:_MOST_TITLES]) + more
