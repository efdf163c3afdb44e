"""Puts image files of folders and archives in order: `SPLIT/CLASS/FILE` or `CLASS/FILE`.

Which of the two it is can only be told when every name is known, and so can the order. The names
wait in an SQLite database without a file name, which is private and goes to the temporary folder
where it outgrows a few megabytes: ten million names need no memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from pipeline.errors import SourceError
from pipeline.sources import LABEL_UNKNOWN, OK
from pipeline.sources.layout import IMAGE_SUFFIXES, as_text, is_split_word
from pipeline.sources.listing import ROWS_PER_GROUP, make_rows

_SEPARATOR = b"\0"  # sorts before every character of a name
_MANY = 4096


class Member(NamedTuple):
    """An image file found.

    Attributes
    ----------
    group
        The number of the group whose layout it shares.
    file
        The number of the place or archive that it lies in.
    path
        In there, parts separated by `/`; empty where all that follows is lost.
    offset, size, stamp, status, detail
        As in the listing.
    """

    group: int
    file: int
    path: bytes
    offset: int = 0
    size: int = -1
    stamp: str = ""
    status: int = OK
    detail: str | None = None


@dataclass
class Group:
    """Places of one layout.

    Attributes
    ----------
    split
        The split of its images where folders do not tell.
    given
        The split is given, so the folders are classes.
    strip
        Whether a folder that holds all others is left out.
    title
        The places, for a message.
    """

    split: str
    given: bool
    strip: bool
    title: str


@dataclass(frozen=True)
class _Layout:
    """How the paths of a group are read."""

    skipped: int
    in_splits: bool
    homes: frozenset[bytes]
    stray: str

    def read(self, path: bytes) -> tuple[str, str | None]:
        """Return split and class that a path tells; None where it tells no class."""
        parts = path.split(_SEPARATOR)[self.skipped :]
        if not self.in_splits:
            return self.stray, as_text(parts[0]) if len(parts) == 2 else None
        at_home = len(parts) > 1 and (parts[0] in self.homes or is_split_word(parts[0]))
        split = as_text(parts[0]) if at_home else self.stray
        return split, as_text(parts[1]) if len(parts) == 3 else None

    @property
    def expected(self) -> str:
        return "SPLIT/CLASS/FILE" if self.in_splits else "CLASS/FILE"


class Tree:
    """Image files on their way into a listing."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._layouts: list[_Layout] = []
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute(
            "CREATE TABLE found (member INTEGER PRIMARY KEY, grp, file, path BLOB, offset, size, "
            "stamp, status, detail, split)"
        )
        self._database.create_function(
            "parts", 1, lambda path: path.count(_SEPARATOR) + 1, deterministic=True
        )
        self._database.execute("BEGIN")
        self._waiting: list[tuple[Any, ...]] = []

    def __enter__(self) -> Tree:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._database.close()

    def group(self, split: str, given: bool, strip: bool, title: str) -> int:
        """Return the number of the group of places whose splits are found in the same way."""
        for number, known in enumerate(self.groups):
            if (known.split, known.given) == (split, given):
                known.title += f", {title}" if len(known.title) < 100 else ""
                return number
        self.groups.append(Group(split, given, strip, title))
        return len(self.groups) - 1

    def add(self, member: Member) -> None:
        self._waiting.append(member._replace(path=member.path.replace(b"/", _SEPARATOR)))
        if len(self._waiting) >= _MANY:
            self._flush()

    def _flush(self) -> None:
        self._database.executemany(
            "INSERT INTO found (grp, file, path, offset, size, stamp, status, detail) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            self._waiting,
        )
        self._waiting = []

    def _layout(self, number: int) -> _Layout:
        """Find what the folders of a group mean, from the depth of most images.

        Raises
        ------
        SourceError
            Where there is no image, or none in folders.
        """
        group = self.groups[number]
        skipped, prefix = self._skipped(number)
        depths = self._depths(number)
        in_classes, in_splits = depths.get(skipped + 2, 0), depths.get(skipped + 3, 0)
        if not (in_classes or (in_splits and not group.given)):
            self._refuse(group, sum(depths.values()))
        tops = self._tops(number, skipped, prefix)
        named = all(is_split_word(top) for top in tops)
        split = not group.given and (in_splits > in_classes or (in_splits == in_classes and named))
        stray = min((as_text(top) for top in tops), default=group.split) if split else group.split
        return _Layout(skipped, split, frozenset(tops), stray)

    def _refuse(self, group: Group, count: int) -> None:
        expected = "CLASS/FILE" if group.given else "SPLIT/CLASS/FILE or CLASS/FILE"
        example = "cat/1.png" if group.given else "train/cat/1.png"
        found = f"{count:,} images found, but none at" if count else "no image found; expected"
        raise SourceError(
            f"{group.title}: {found} {expected}, such as {example}, files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )

    def _depths(self, number: int) -> dict[int, int]:
        """Return for each number of parts how many images have it."""
        rows = self._database.execute(
            "SELECT parts(path), count(*) FROM found WHERE grp = ? AND path != x'' GROUP BY 1",
            (number,),
        )
        return dict(rows.fetchall())

    def _skipped(self, number: int) -> tuple[int, bytes]:
        """Return how many leading folders hold all images, and their names."""
        group, skipped, prefix = self.groups[number], 0, b""
        first, last = self._database.execute(
            "SELECT min(path), max(path) FROM found WHERE grp = ? AND path != x''", (number,)
        ).fetchone()
        depths = self._depths(number)
        while group.strip and first and max(depths, key=lambda depth: depths[depth]) > skipped + 2:
            top = first[len(prefix) :].partition(_SEPARATOR)[0]
            # in this order, what lies between two of one folder is in that folder
            if not last.startswith(prefix + top + _SEPARATOR):
                break
            if is_split_word(top) and not group.given:
                break
            prefix, skipped = prefix + top + _SEPARATOR, skipped + 1
        return skipped, prefix

    def _tops(self, number: int, skipped: int, prefix: bytes) -> list[bytes]:
        """Return the folders that hold folders of images."""
        rows = self._database.execute(
            "SELECT DISTINCT substr(rest, 1, instr(rest, x'00') - 1) FROM "
            "(SELECT substr(path, ?) AS rest, path FROM found WHERE grp = ?) "
            "WHERE parts(path) = ?",
            (len(prefix) + 1, number, skipped + 3),
        )
        return [top for (top,) in rows]

    def arrange(self, streamed: Iterable[int] = ()) -> list[tuple[str, bool]]:
        """Find the layout; return the splits sorted, and whether each is in the order of names.

        Parameters
        ----------
        streamed
            The numbers of files that can only be read forward. A split with images of these that
            do not come in the order of names keeps the order in which they were found.
        """
        self._flush()
        self._layouts = [self._layout(number) for number in range(len(self.groups))]
        layouts = self._layouts
        self._database.create_function(
            "split_of", 2, lambda group, path: layouts[group].read(path)[0], deterministic=True
        )
        self._database.execute("UPDATE found SET split = split_of(grp, path)")
        found = {split for (split,) in self._database.execute("SELECT DISTINCT split FROM found")}
        order = dict.fromkeys(group.split for group in self.groups if group.given)
        names = [*(s for s in order if s in found), *sorted(found - set(order))]
        forward = self._unsorted(streamed)
        return [(name, name not in forward) for name in names]

    def _unsorted(self, streamed: Iterable[int]) -> set[str]:
        self._database.execute("CREATE TABLE streamed (file INTEGER PRIMARY KEY)")
        self._database.executemany("INSERT INTO streamed VALUES (?)", ((n,) for n in streamed))
        if not self._database.execute("SELECT count(*) FROM streamed").fetchone()[0]:
            return set()
        rows = self._database.execute(
            "SELECT DISTINCT split FROM (SELECT split, path < lag(path) OVER "
            "(PARTITION BY split ORDER BY member) AS falls FROM found WHERE path != x'' "
            "AND split IN (SELECT split FROM found JOIN streamed USING (file))) WHERE falls"
        )
        return {split for (split,) in rows}

    def batches(
        self, split: str, in_order: bool, titles: Sequence[str], keys: Sequence[bytes] | None = None
    ) -> Iterator[Any]:
        """Yield the rows of a split, as `make_rows` gives them.

        Parameters
        ----------
        split
            One that `arrange` returned.
        in_order
            Whether in the order of names, else in that in which they were found.
        titles
            What to put before the path for each file.
        keys
            What goes into the `key` column for each file; default: the path.
        """
        # what stands for lost images comes last
        order = "path = x'', path, file, member" if in_order else "member"
        cursor = self._database.execute(
            "SELECT grp, file, path, offset, size, stamp, status, detail FROM found "  # noqa: S608
            f"WHERE split = ? ORDER BY {order}",
            (split,),
        )
        while rows := cursor.fetchmany(ROWS_PER_GROUP):
            yield self._as_rows(rows, titles, keys)

    def _as_rows(
        self, rows: Sequence[Any], titles: Sequence[str], keys: Sequence[bytes] | None
    ) -> Any:
        groups, files, paths, offsets, sizes, stamps, status, details = map(
            list, zip(*rows, strict=True)
        )
        labels: list[str | None] = []
        for place, (group, path) in enumerate(zip(groups, paths, strict=True)):
            layout = self._layouts[group]
            labels.append(layout.read(path)[1])
            if labels[-1] is None and status[place] == OK:
                status[place] = LABEL_UNKNOWN
                details[place] = f"is in no folder of a class, expected {layout.expected}"
        names = [path.replace(_SEPARATOR, b"/") for path in paths]
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
