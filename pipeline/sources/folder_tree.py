"""Puts image files of folders and archives in order: `SPLIT/CLASS/FILE` or `CLASS/FILE`.

Which of the two it is is known only when every name is known (see `folder_layout`), and so can
the order. The names wait in an SQLite database without a file name, which is private and goes to
the temporary folder where it outgrows a few megabytes: ten million names need no memory.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline.core.blocks import LABEL_UNKNOWN, OK
from pipeline.sources.file_names import as_text, suffix_of
from pipeline.sources.folder_checks import Doubts, refuse_no_images
from pipeline.sources.folder_layout import SEPARATOR, Folders, Group, decide
from pipeline.sources.notes import Notes
from pipeline.sources.sample_index import ROWS_PER_GROUP, make_rows

_MANY = 4096


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
    """Image files on their way into a listing."""

    def __init__(self, kind: str, notes: Notes, *, doubts: bool = True) -> None:
        """Begin without files.

        `kind` is that of the source; `notes` take what is left out and what is decided; `doubts`
        says whether to refuse what is implausible.
        """
        self.groups: list[Group] = []
        self._kind = kind
        self._notes = notes
        self._doubts = doubts
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(
            "CREATE TABLE members (member INTEGER PRIMARY KEY, grp, file, path BLOB, offset, size, "
            "stamp, status, detail, split)"
        )
        self._database.execute(
            "CREATE TABLE classes (split, class, PRIMARY KEY (split, class)) WITHOUT ROWID"
        )
        self._folders = Folders(self._database)
        self._database.execute("BEGIN")
        self._waiting: list[tuple[Any, ...]] = []
        self._left: Counter[tuple[int, bytes, str]] = Counter()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def group(self, split: str, given: bool, strip: bool, title: str) -> int:
        """Return the number of the group of places whose splits are found in the same way."""
        for number, known in enumerate(self.groups):
            if (known.split, known.given) == (split, given):
                known.places += 1
                known.title += f", {title}" if len(known.title) < 100 else ""
                return number
        self.groups.append(Group(split, given, strip, title))
        return len(self.groups) - 1

    def add(self, member: Member) -> None:
        self._waiting.append(member._replace(path=member.path.replace(b"/", SEPARATOR)))
        if len(self._waiting) >= _MANY:
            self._flush()

    def leave_out(self, group: int, path: bytes) -> None:
        """Take note of a file that is no image."""
        self._notes.ignore(path)
        self._left[group, _folder_of(path.replace(b"/", SEPARATOR)), suffix_of(path)] += 1
        if len(self._left) >= _MANY:
            self._flush()

    def _flush(self) -> None:
        self._database.executemany(
            "INSERT INTO members (grp, file, path, offset, size, stamp, status, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self._waiting,
        )
        images = Counter((m[0], _folder_of(m[2]), "") for m in self._waiting if m[2])
        self._folders.add("folders", images)
        self._folders.add("left", self._left)
        self._waiting, self._left = [], Counter()

    def keep_last(self) -> None:
        """Of members of one name in one archive keep the last, as unpacking does, and say so."""
        self._flush()
        count = self._database.execute(
            "DELETE FROM members WHERE member IN (SELECT member FROM (SELECT member, "
            "lead(member) OVER (PARTITION BY file, path ORDER BY member) AS later FROM members "
            "WHERE path != x'') WHERE later IS NOT NULL)"
        ).rowcount
        if count:
            what = "member whose name comes" if count == 1 else "members whose names come"
            self._notes.left_out.append(f"{count:,} {what} again later in the archive")

    def _find_layouts(self) -> None:
        """Find what the folders of each group mean, and ask whether that is plausible."""
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
        self._flush()
        self._find_layouts()
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


def _folder_of(path: bytes) -> bytes:
    """Return the folder of a path, ending in a separator; empty for the root."""
    return path[: path.rfind(SEPARATOR) + 1]
