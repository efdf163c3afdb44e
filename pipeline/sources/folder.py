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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.blocks import LABEL_UNKNOWN, OK, UNREADABLE
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.paths import is_remote, locate, shown
from pipeline.sources.fetch import FileFetcher, not_regular, title_of, titles_of, unreadable
from pipeline.sources.file_names import are_classes, as_text, is_hidden, is_image, suffix_of
from pipeline.sources.folder_checks import Doubts, refuse_no_images
from pipeline.sources.folder_layout import SEPARATOR, Folders, PathGroup, decide
from pipeline.sources.notes import File, Notes
from pipeline.sources.own_outputs import may_be_own, own_kind
from pipeline.sources.sample_index import ROWS_PER_GROUP, Sample, columns_of, make_rows
from pipeline.storage.blobs import file_system, tried, version_in

_LOOKED_AT = 1000
# a name, and what it is: None where it is no image, a text where pixsim wrote that folder
_Walked = tuple[bytes, Sample | str | None]


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
            "members (member INTEGER PRIMARY KEY, grp, file, path BLOB, key BLOB, offset, size, "
            "stamp, status, detail, split)",
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
                known.count += 1
                known.title += f", {title}" if len(known.title) < 100 else ""
                return number
        self.groups.append(PathGroup(split, given, strip, title))
        return len(self.groups) - 1

    def forget(self, group: int) -> None:
        """Take one of the folders or archives out of a group, since it holds no images itself."""
        self.groups[group].count -= 1
        if not self.groups[group].count:
            del self.groups[group]  # the last one

    def add(self, group: int, path: bytes, sample: Sample) -> None:
        """Add an image file; without a path it stands for all that is lost after it."""
        path = path.replace(b"/", SEPARATOR)
        if path:
            self._folders.add("folders", group, path)
        s = sample
        values = s.file, s.key, s.offset, s.size, s.stamp, s.status, s.detail
        self._database.execute(
            "INSERT INTO members (grp, path, file, key, offset, size, stamp, status, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (group, path, *values),
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

    def batches(self, titles: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Any]]:
        """Decide the layout, and yield the rows of each split, as `make_rows` gives them.

        For each file `titles` say what goes before the path, and how much of that is left out. A
        split with members that can only be read forward, and do not come in the order of names,
        keeps the order in which they were listed.
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
        given = dict.fromkeys(group.split for group in self.groups if group.given)
        forward = self._unsorted()
        for split in [*(s for s in given if s in splits), *sorted(splits - set(given))]:
            # what stands for lost images comes last
            order = "member" if split in forward else "path = x'', path, file, member"
            cursor = self._database.execute(
                "SELECT grp, path, file, key, offset, size, status, detail, stamp FROM members "  # noqa: S608
                f"WHERE split = ? ORDER BY {order}",
                (split,),
            )
            while batch := cursor.fetchmany(ROWS_PER_GROUP):
                samples = [self._sample(row, *titles[row[2]]) for row in batch]
                yield split, make_rows(len(batch), **columns_of(samples))

    def _unsorted(self) -> set[str]:
        if self._kind == "folder":
            return set()
        rows = self._database.execute(
            "SELECT DISTINCT split FROM (SELECT split, path < lag(path) OVER "
            "(PARTITION BY split ORDER BY member) AS falls FROM members WHERE path != x'' "
            "AND split IN (SELECT DISTINCT split FROM members WHERE instr(key, x'3d') != 1 "
            "AND key != x'')) WHERE falls"
        )
        return {split for (split,) in rows}

    def _sample(self, row: Sequence[Any], title: str, skipped: int) -> Sample:
        group, path, file, key, offset, size, status, detail, stamp = row
        layout = self.groups[group].layout
        split, label = layout.read(path)
        if label is None and status == OK and split not in layout.unlabelled:
            status = LABEL_UNKNOWN
            detail = f"is in no folder of a class, expected {layout.expected}"
        name = path.replace(SEPARATOR, b"/")
        key = name[skipped:] if self._kind == "folder" else key
        return Sample(
            title + as_text(name[skipped:]), file, key, offset, size, label, status, detail, stamp
        )


@dataclass(frozen=True)
class FolderReader:
    """Lists the image files of folders.

    `paths` are for each split its folders, classes inside; those of None hold splits, or classes.
    Several of one split, without folders inside, are a class each where their names may be that.
    `chosen` says of which folders of which split only some files count, such as those that match a
    pattern. `split` is the name where neither the job nor the folders tell one; `doubts` tells
    whether to refuse what is implausible, see `folder_checks`.
    """

    paths: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    doubts: bool = True
    chosen: Mapping[tuple[str | None, Path], Sequence[bytes]] = field(default_factory=dict)
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
        prefixes = {split: self._are_classes(split) for split in self.paths}
        titles = []
        with Tree(self.kind, notes, doubts=self.doubts) as tree:
            for number, (given, path) in enumerate(self._folders):
                notes.files.append(File(number, "", ""))
                prefix = os.fsencode(path.name) + b"/" if prefixes[given] else b""
                titles.append((f"{title_of(path)}/" if several else "", len(prefix)))
                group = tree.group(given or self.split, given is not None, False, shown(path))
                for name, sample in self._files(given, path):
                    if isinstance(sample, Sample):
                        tree.add(group, prefix + name, sample._replace(file=number))
                    elif sample is not None:
                        notes.ignore_own(name, sample)
                    elif name.endswith(b"/"):
                        notes.ignore_folder(name[:-1], (given, path) in self.chosen)
                    else:
                        tree.leave_out(group, prefix + name)
            yield from tree.batches(titles)

    def _files(self, split: str | None, path: Path) -> Iterator[_Walked]:
        chosen = self.chosen.get((split, path))
        return _walked(path) if chosen is None else _picked(path, chosen)

    def _are_classes(self, split: str | None) -> bool:
        """Tell whether the folders of a split are a class each."""
        paths = self.paths[split]
        names = [os.fsencode(path.name) for path in paths]
        return (
            self.doubts
            and not any((split, path) in self.chosen for path in paths)
            and are_classes(names, numbers=True)
            and all(b"/" not in (_first_image(path) or b"/") for path in paths)
        )


def has_images(path: Path) -> bool:
    """Tell whether there is an image among the first files below a folder."""
    return _first_image(path) is not None


def _first_image(path: Path) -> bytes | None:
    some = itertools.islice(_walked(path), _LOOKED_AT)
    return next((name for name, sample in some if isinstance(sample, Sample)), None)


def count_images(path: Path) -> int:
    """Return how many image files lie below a folder."""
    return sum(isinstance(sample, Sample) for _, sample in _walked(path))


def _walked(root: Path) -> Iterator[_Walked]:
    """Yield the image files below a folder, and the names of others; those of folders end in /."""
    if is_remote(root):
        yield from _walked_remote(file_system(root), root.path, b"")  # type: ignore[attr-defined]
        return
    if not root.is_dir():
        raise SourceError(f"{root}: is no folder; correct the name")
    yield from _walked_local(os.fsencode(root), b"", ())


def _picked(root: Path, names: Sequence[bytes]) -> Iterator[_Walked]:
    """Yield some of the files below a folder, and of the names those of folders without any."""
    above = {name[:n] for name in names for n, letter in enumerate(name) if letter == ord("/")}
    rest = set(names)
    if is_remote(root):  # one listing is fewer requests
        found = _walked(root)
    else:
        paths = ((name, root / os.fsdecode(name)) for name in names)
        found = ((n, _sample(p) if is_image(n) else None) for n, p in paths if not p.is_dir())
    for name, sample in found:
        if name in rest:
            rest.discard(name)
            yield name, sample
    yield from ((name + b"/", None) for name in sorted(rest - above) if name)


def _walked_local(
    root: bytes, folder: bytes, above: tuple[tuple[int, int], ...]
) -> Iterator[_Walked]:
    """Yield the files below a folder, and empty folders; no links to folders above."""
    path = os.path.join(root, folder)  # noqa: PTH118 (names are bytes)
    try:
        status = os.stat(path)  # noqa: PTH116
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        own = own_kind(Path(os.fsdecode(path))) if folder else None
        if own is not None:
            yield folder, own
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
                    yield name, _sample(entry)
                else:
                    yield name, None
        if is_empty:
            yield folder + b"/", None
    except PixsimError:  # of a folder below
        raise
    except OSError as error:
        raise SourceError(
            f"{os.fsdecode(path)}: cannot be listed: {error.strerror}; make it readable"
        ) from error


def _own_remote(files: Any, path: str, entries: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what of pixsim's a remote folder is; only what has a name of its records is read."""
    names = {entry["name"].rstrip("/").rpartition("/")[2] for entry in entries}
    if not may_be_own(names):
        return None
    return own_kind(locate(files.unstrip_protocol(path), files.storage_options))


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link to itself; what it is, is asked for once more
        return False


def _sample(entry: os.DirEntry[bytes] | Path) -> Sample:
    try:
        status = entry.stat()
    except OSError as error:
        detail = "is a broken link" if entry.is_symlink() else unreadable(error).detail
        return Sample(status=UNREADABLE, detail=detail)
    sample = Sample(size=status.st_size, stamp=version_in(status).stamp)
    if stat.S_ISREG(status.st_mode):
        return sample
    return sample._replace(status=UNREADABLE, detail=not_regular(status.st_mode).detail)


def _walked_remote(files: Any, root: str, folder: bytes) -> Iterator[_Walked]:
    """Yield the files below a remote folder; memory holds one folder's names."""
    path = "/".join([root.rstrip("/"), *([folder.decode()] if folder else [])])
    url = files.unstrip_protocol(path)
    files.invalidate_cache(path)  # what is remembered may be of before
    try:
        entries = tried(url, files.ls, path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        raise SourceError(f"{shown(url)}: is no folder; correct the URL") from None
    files.invalidate_cache(path)  # else every folder's names stay
    own = _own_remote(files, path, entries) if folder else None
    if own is not None:
        yield folder, own
        return
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
            yield below, Sample(size=version.size, stamp=version.stamp)
        else:
            yield below, None
