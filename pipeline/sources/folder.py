"""Image files of folders and archives in order: `SPLIT/CLASS/FILE` or `CLASS/FILE`.

Which of the two it is is known only when every name is (see `folder_layout`), and so is the order.
The names wait in an SQLite database without a file name, which is private and goes to the temporary
folder where it outgrows a few megabytes: ten million names need no memory. Names are sorted as
text, so the numbering does not depend on the file system. Hidden files are left out; links are
followed; what is no regular file is listed, and never opened.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.blocks import LABEL_UNKNOWN, OK, UNREADABLE
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import FileFetcher, not_regular, title_of, titles_of, unreadable
from pipeline.sources.file_names import as_text, is_hidden, is_image, suffix_of
from pipeline.sources.folder_checks import Doubts, refuse_no_images
from pipeline.sources.folder_layout import SEPARATOR, Folders, PathGroup, decide
from pipeline.sources.notes import File, Notes
from pipeline.sources.sample_index import ROWS_PER_GROUP, make_rows
from pipeline.storage.blobs import file_system, tried, version_in

_LOOKED_AT = 1000


class Member(NamedTuple):
    """An image file, on its way into the listing.

    `group` is the number of the group whose layout it shares, `file` that of the place or archive
    that it lies in; `path` is its path in there, empty where all that follows is lost. The rest is
    as in the listing.
    """

    group: int
    file: int
    path: bytes
    offset: int = 0
    size: int = -1
    stamp: str = ""
    status: int = OK
    detail: str | None = None


class Tree:
    """Image files on their way into a listing.

    `kind` is that of the source; `notes` take what is left out and what is decided; `doubts` says
    whether to refuse what is implausible.
    """

    def __init__(self, kind: str, notes: Notes, *, doubts: bool = True) -> None:
        self.groups: list[PathGroup] = []
        self._kind, self._notes, self._doubts = kind, notes, doubts
        self._database = sqlite3.connect("", isolation_level=None)
        for table in (
            "members (member INTEGER PRIMARY KEY, grp, file, path BLOB, offset, size, stamp, "
            "status, detail, split)",
            "classes (split, class, PRIMARY KEY (split, class)) WITHOUT ROWID",
        ):
            self._database.execute(f"CREATE TABLE {table}")
        self._folders = Folders(self._database)
        self._database.execute("BEGIN")

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def group(self, split: str, given: bool, strip: bool, title: str) -> int:
        """Return the number of the group of folders whose splits are decided in the same way."""
        for number, known in enumerate(self.groups):
            if (known.split, known.given) == (split, given):
                known.places += 1
                known.title += f", {title}" if len(known.title) < 100 else ""
                return number
        self.groups.append(PathGroup(split, given, strip, title))
        return len(self.groups) - 1

    def add(self, member: Member) -> None:
        path = member.path.replace(b"/", SEPARATOR)
        if path:
            self._folders.add("folders", member.group, path)
        self._database.execute(
            "INSERT INTO members (grp, file, path, offset, size, stamp, status, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            member._replace(path=path),
        )

    def leave_out(self, group: int, path: bytes) -> None:
        """Note a file that is no image."""
        self._notes.ignore(path)
        self._folders.add("left", group, path.replace(b"/", SEPARATOR), suffix_of(path))

    def keep_last(self) -> None:
        """Of members of one name in one archive keep the last, as unpacking does, and say so."""
        count = self._database.execute(
            "DELETE FROM members WHERE member IN (SELECT member FROM (SELECT member, "
            "lead(member) OVER (PARTITION BY file, path ORDER BY member) AS later FROM members "
            "WHERE path != x'') WHERE later IS NOT NULL)"
        ).rowcount
        if count:
            what = "member whose name comes" if count == 1 else "members whose names come"
            self._notes.left_out.append(f"{count:,} {what} again later in the archive")

    def _decide_layouts(self) -> None:
        """Decide what the folders of each group mean, and check whether that is plausible."""
        for number, group in enumerate(self.groups):
            if not self._folders.holds(number, b""):
                refuse_no_images(group, self._kind, self._notes)
            group.layout = decide(self._folders, number, group)
        loose, deeper = self._find_classes()
        without = sorted({split for group in self.groups for split in group.layout.unlabelled})
        if self._doubts:
            doubts = Doubts(self._database, self._folders, self._kind, self.groups)
            doubts.check(without, loose, self._notes)
        self._notes.labels_from = "folder names"
        self._notes.unlabelled = not self._database.execute("SELECT 1 FROM classes").fetchone()
        if deeper:
            self._notes.remarks.append(f"{deeper:,} images lie in folders below those of classes")
        if without and not self._notes.unlabelled:
            named = ", ".join(f"'{split}'" for split in without)
            self._notes.remarks.append(f"{named} without labels, in no folders of classes")

    def _find_classes(self) -> tuple[Counter[str], int]:
        """Note all classes; return how many images of each split are in none, or lie deeper."""
        loose, deeper, last = Counter[str](), 0, None
        rows = self._database.execute("SELECT grp, folder, depth, files FROM folders")
        for number, folder, depth, files in rows:
            layout = self.groups[number].layout
            pair = layout.read(folder + b"-")
            home = layout.class_folder(folder)
            if pair[1] is None:
                loose[pair[0]] += files
                continue
            deeper += files if home is not None and depth > home.count(SEPARATOR) else 0
            if pair != last:
                self._database.execute("INSERT OR IGNORE INTO classes VALUES (?, ?)", pair)
            last = pair
        return loose, deeper

    def arrange(self, streamed: Iterable[int] = ()) -> list[tuple[str, bool]]:
        """Find the layout; return the splits sorted, and whether each is in the order of names.

        `streamed` are the numbers of files that can only be read forward. A split with images of
        these that do not come in the order of names keeps the order in which they were listed.
        """
        self._folders.flush()
        self._decide_layouts()
        layouts = [group.layout for group in self.groups]
        self._database.create_function(
            "split_of", 2, lambda group, path: layouts[group].read(path)[0], deterministic=True
        )
        self._database.execute("UPDATE members SET split = split_of(grp, path)")
        rows = self._database.execute("SELECT DISTINCT split FROM members")
        splits = {split for (split,) in rows}
        order = dict.fromkeys(group.split for group in self.groups if group.given)
        names = [*(s for s in order if s in splits), *sorted(splits - set(order))]
        forward = self._unsorted(streamed)
        return [(name, name not in forward) for name in names]

    def _unsorted(self, streamed: Iterable[int]) -> set[str]:
        self._database.execute("CREATE TABLE streamed (file INTEGER PRIMARY KEY)")
        self._database.executemany("INSERT INTO streamed VALUES (?)", ((n,) for n in streamed))
        if not self._database.execute("SELECT count(*) FROM streamed").fetchone()[0]:
            return set()
        rows = self._database.execute(
            "SELECT DISTINCT split FROM (SELECT split, path < lag(path) OVER "
            "(PARTITION BY split ORDER BY member) AS falls FROM members WHERE path != x'' "
            "AND split IN (SELECT split FROM members JOIN streamed USING (file))) WHERE falls"
        )
        return {split for (split,) in rows}

    def batches(
        self, split: str, in_order: bool, titles: Sequence[str], keys: Sequence[bytes] | None = None
    ) -> Iterator[Any]:
        """Yield the rows of a split, as `make_rows` gives them.

        They come in the order of names where `in_order`, else as they were listed. For each file
        `titles` go before the path, and `keys` into the `key` column; default: the path.
        """
        # what stands for lost images comes last
        order = "path = x'', path, file, member" if in_order else "member"
        cursor = self._database.execute(
            "SELECT grp, file, path, offset, size, stamp, status, detail FROM members "  # noqa: S608
            f"WHERE split = ? ORDER BY {order}",
            (split,),
        )
        while rows := cursor.fetchmany(ROWS_PER_GROUP):
            yield self._as_rows(rows, titles, keys)

    def _as_rows(
        self, rows: Sequence[Any], titles: Sequence[str], keys: Sequence[bytes] | None
    ) -> Any:
        columns = map(list, zip(*rows, strict=True))
        groups, files, paths, offsets, sizes, stamps, status, details = columns
        labels: list[str | None] = []
        for row, (group, path) in enumerate(zip(groups, paths, strict=True)):
            layout = self.groups[group].layout
            split, label = layout.read(path)
            labels.append(label)
            if label is None and status[row] == OK and split not in layout.unlabelled:
                status[row] = LABEL_UNKNOWN
                details[row] = f"is in no folder of a class, expected {layout.expected}"
        names = [path.replace(SEPARATOR, b"/") for path in paths]
        return make_rows(
            len(rows),
            origin=[titles[file] + as_text(key) for file, key in zip(files, names, strict=True)],
            file=files,
            key=names if keys is None else [keys[file] for file in files],
            offset=offsets,
            size=sizes,
            label=labels,
            status=status,
            detail=details,
            stamp=stamps,
        )


@dataclass(frozen=True)
class FolderReader:
    """Lists the image files of folders.

    `paths` are for each split its folders, classes inside; those of None hold splits, or classes.
    `split` is the name where neither the job nor the folders tell one; `doubts` tells whether to
    refuse what is implausible, see `folder_checks`.
    """

    paths: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    doubts: bool = True
    kind = "folder"

    @property
    def _folders(self) -> list[tuple[str | None, Path]]:
        return [(split, path) for split, several in self.paths.items() for path in several]

    @property
    def title(self) -> str:
        return titles_of(self.paths)

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
