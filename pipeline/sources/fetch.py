"""Fetches the bytes of image files: a file, or a range of one; local, or behind a URL.

What is wrong with one file is a `Problem` of one sample. What is wrong with the folder or server,
such as a network that fails or a full table of open files, is an error, so that a job stops and can
be resumed, instead of leaving samples out.
"""

from __future__ import annotations

import errno
import functools
import importlib
import itertools
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import PixsimError, RemoteError, SourceError
from pipeline.core.paths import is_remote, is_url, remote_errors, shown
from pipeline.sources.notes import File
from pipeline.sources.open_cache import close_streams, reason_of, unchanged
from pipeline.sources.sample_index import Sample
from pipeline.storage.blobs import Version, file_system, tried, version_of

T = TypeVar("T")

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
_KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFLNK: "a link",
}  # fmt: skip


def too_large(size: int, limit: int) -> Problem:
    return Problem(
        TOO_LARGE, f"holds {size:,} bytes, expected {limit:,} at most; allow more with max_bytes"
    )


def too_short(size: int, expected: int) -> Problem:
    return Problem(TRUNCATED, f"holds {size:,} bytes, expected {expected:,}; fetch it again")


def not_regular(mode: int) -> Problem:
    return Problem(UNREADABLE, f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a file")


def unreadable(error: BaseException) -> Problem:
    """Return the problem of a file that one of the errors of file systems is about."""
    return Problem(UNREADABLE, reason_of(error))


def failed(path: Path, error: BaseException) -> SourceError:
    """Return the error of a file that cannot be read, whatever its file system raised."""
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{shown(path)}: is not there; correct the name or fetch it")
    cure = "check the network and the storage options" if is_remote(path) else "make it readable"
    return SourceError(
        f"{shown(path)}: cannot be read ({reason_of(error)}); {cure}, and run the same command "
        "again"
    )


@contextmanager
def reading(
    path: Path, error_of: Callable[[Path, Exception], SourceError] = failed
) -> Iterator[None]:
    """Raise as one error what goes wrong while a file is read: each file system has its own."""
    try:
        yield
    except PixsimError:
        raise
    except Exception as error:
        raise error_of(path, error) from None


def _problem_of(error: OSError, root: Path) -> Problem:
    """Return the problem of a sample whose local file below `root` cannot be read.

    Where the fault is not that of this file, raise `SourceError`.
    """
    gone = error.errno == errno.ENOENT and not root.exists()
    if gone or error.errno not in _OF_ONE_FILE:
        reason = "is gone; put it back" if gone else f"cannot be read: {error.strerror or error}"
        raise SourceError(f"{root}: {reason}, and run the same command again") from error
    return unreadable(error)


# local files -------------------------------------------------------------------------------------


def read_local(root: Path, path: bytes, limit: int) -> bytes | Problem:
    """Read a local file; one of more than `limit` bytes, or no regular one, is a problem."""
    try:
        # a pipe must not block the open
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return not_regular(status.st_mode)
            if status.st_size > limit:
                return too_large(status.st_size, limit)
            # a byte more than there is: a file that grows meanwhile is seen
            data = os.read(descriptor, status.st_size + 1)
            while len(data) != status.st_size and len(data) <= limit:
                more = os.read(descriptor, _READ_BYTES)
                if not more:
                    break
                data += more
        finally:
            os.close(descriptor)
    except ValueError as error:  # the name holds a NUL
        return unreadable(error)
    except OSError as error:
        return _problem_of(error, root)
    return too_large(len(data), limit) if len(data) > limit else data


def read_range(file: int, offset: int, size: int) -> bytes | Problem:
    """Read a range of a local file that is open, without moving its position."""
    data = os.pread(file, size, offset)
    while len(data) < size:
        more = os.pread(file, size - len(data), offset + len(data))
        if not more:
            return too_short(len(data), size)
        data += more
    return data


# remote files ------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Bytes `start` to `stop` of a remote file, for a row; -1: to the end, which is not known."""

    row: int
    path: str
    start: int
    stop: int


def _grouped(items: Iterable[T], fits: Callable[[list[T], T], bool]) -> Iterator[list[T]]:
    """Put together what follows each other, as long as it fits."""
    group: list[T] = []
    for item in items:
        if group and not fits(group, item):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _follows(stretch: list[Wanted], item: Wanted) -> bool:
    """Tell whether a range comes in one request with those before it in the same file."""
    first, last = stretch[0], stretch[-1]
    near = last.path == item.path and 0 <= item.start - last.stop <= GAP_BYTES
    ends = min(last.stop, item.stop) >= 0  # which are known
    return near and ends and item.stop - first.start <= BYTES_AT_ONCE


def _fits(load: list[list[Wanted]], stretch: list[Wanted]) -> bool:
    """Tell whether a request is sent at once with others: some files, and not too many bytes."""
    sizes = (max(0, ranges[-1].stop - ranges[0].start) for ranges in (*load, stretch))
    return len(load) < FILES_AT_ONCE and sum(sizes) <= BYTES_AT_ONCE


def read_remote(
    files: Any, wanted: Iterable[Wanted], limit: int, archives: bool = False
) -> Iterator[tuple[int, bytes | Problem]]:
    """Read ranges of remote files, several at once; those that follow each other in one request.

    Yields the `row` of each, and its bytes or what is wrong with it. A file whose end is not known
    is read up to one byte more than `limit`. `RemoteError` where requests fail for another reason
    than that there is no such file; `SourceError` where there is none, and the files are
    `archives`, of many samples each.
    """
    requests = [*wanted]
    # no range of a request can say that nothing is wanted
    yield from ((item.row, b"") for item in requests if item.start == item.stop)
    stretches = _grouped((item for item in requests if item.start != item.stop), _follows)
    for load in _grouped(stretches, _fits):
        answers = _requested(files, load, limit)
        for stretch, data in zip(load, answers, strict=True):
            if archives:
                _check_archive(_url(files, stretch[0].path), stretch, data)
            if isinstance(data, BaseException):
                problem = unreadable(data)
                yield from ((item.row, problem) for item in stretch)
            else:
                for item in stretch:
                    yield item.row, _part(data, item, stretch[0].start, limit)


def _check_archive(url: str, stretch: Sequence[Wanted], data: Any) -> None:
    if isinstance(data, BaseException):
        raise SourceError(f"{shown(url)}: is gone; put it back, and run the same command again")
    if len(data) > stretch[-1].stop - stretch[0].start:
        raise SourceError(
            f"{shown(url)}: this server sends whole files where a part is asked for; fetch the "
            "archive and read it from a disk"
        )


def _requested(files: Any, load: Sequence[list[Wanted]], limit: int) -> list[Any]:
    """Return the bytes of each stretch, or that there is no such file; with retries."""
    paths = [stretch[0].path for stretch in load]
    starts = [stretch[0].start for stretch in load]
    ends = [stretch[-1].stop if stretch[-1].stop >= 0 else limit + 1 for stretch in load]

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


def _part(data: bytes, item: Wanted, start: int, limit: int) -> bytes | Problem:
    if item.stop < 0:
        return too_large(len(data), limit) if len(data) > limit else data
    part = data[item.start - start : item.stop - start]
    expected = item.stop - item.start
    return too_short(len(part), expected) if len(part) < expected else part


# one file for each sample ------------------------------------------------------------------------


@dataclass(frozen=True)
class FileFetcher:
    """Reads image files: the key of a row is a path below one of the `roots`, or a URL."""

    roots: tuple[Path, ...]

    def fetch(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them.

        `SourceError` where not one file is at fault but the folder or the server.
        """
        remote: list[tuple[Any, Wanted]] = []
        folders = [b"" if is_remote(root) else os.fsencode(root) for root in self.roots]
        for row, (file, key, size) in enumerate((row.file, row.key, row.size) for row in rows):
            root = self.roots[files[file][0]]
            # only a list of this machine has absolute paths
            if b"://" in key or (is_remote(root) and not key.startswith(b"/")):
                system, name = _remote_file(root, key)
                remote.append((system, Wanted(row, name, 0, size)))
            else:
                folder = folders[files[file][0]]
                path = os.path.join(folder, key)  # noqa: PTH118 (names are bytes)
                yield row, read_local(root, path, limit)
        for _, group in itertools.groupby(remote, key=lambda item: id(item[0])):
            together = list(group)
            yield from read_remote(together[0][0], (item for _, item in together), limit)

    def close(self) -> None:
        """Close nothing: no file stays open."""


def _remote_file(root: Path, key: bytes) -> tuple[Any, str]:
    """Return the file system of a URL, or of a path below a remote root, and the path in it."""
    name = key.decode("utf-8", "surrogateescape")
    if not is_url(name):
        return file_system(root), f"{cast(Any, root).path.rstrip('/')}/{name}"
    # what opens the root must not be sent to another host
    mine = is_remote(root) and host_of(str(root)) == host_of(name)
    options = cast(Any, root).storage_options if mine else {}
    with remote_errors(name):
        system, path = importlib.import_module("fsspec").core.url_to_fs(name, **options)
    return system, path


def host_of(url: str) -> str:
    """Return protocol and host, or bucket, of a URL."""
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"


# files of many samples ---------------------------------------------------------------------------


def listed_version(path: Path) -> Version:
    """Return the version of a file that is listed now, or raise `SourceError`."""
    try:
        return version_of(path)
    except PixsimError:
        raise
    except OSError as error:
        raise failed(path, error) from None


def roots_of(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Return the folders of files, each once."""
    return tuple(dict.fromkeys(path.parent for path in paths))


def describe(path: Path, roots: Sequence[Path]) -> File:
    """Return what a listing records of a file in one of the folders, or raise `SourceError`."""
    return File(roots.index(path.parent), path.name, listed_version(path).stamp)


@contextmanager
def listed_files(
    roots: Sequence[Path], files: Sequence[Sequence[Any]]
) -> Iterator[Callable[[int], tuple[Path, Hashable]]]:
    """Make sure that the files of a listing which are read are those that were listed.

    Yields a function that returns the path of one of the `files` (root, name and stamp, as listed)
    and the version to cache it for. It raises `SourceError` where that is gone or another has
    taken its place, and so does the end.
    """
    with ExitStack() as stack:

        @functools.cache
        def listed_file(number: int) -> tuple[Path, Hashable]:
            root, name, *stamp = files[number]
            path = roots[root] / name
            return path, stack.enter_context(unchanged(path, *stamp))

        yield listed_file


@dataclass(frozen=True)
class StreamFetcher:
    """What fetches from files of many samples, whose folders are `roots`, by going forward."""

    roots: tuple[Path, ...]

    def close(self) -> None:
        """Close the files that are read forward."""
        close_streams({str(root) for root in self.roots})


def title_of(path: Path) -> str:
    """Return how a path is named where others may read it: a URL without secrets, or a name."""
    return shown(path) if is_remote(path) else path.absolute().name


def titles_of(paths: Mapping[str | None, Sequence[Path]]) -> str:
    """Return how several paths are named; of many only the first ones."""
    every = [path for some in paths.values() for path in some]
    more = f" and {len(every) - _MOST_TITLES} more" if len(every) > _MOST_TITLES else ""
    return ", ".join(title_of(path) for path in every[:_MOST_TITLES]) + more
