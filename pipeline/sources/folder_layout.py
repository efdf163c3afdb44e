"""What the folders of a set of image files mean, by evidence: their names, and what they hold.

A level of folders is one of splits where more than half of the names have words for splits, or
where the same classes lie below each of them; a class is a folder, with all that lies below it at
any depth, as torchvision's `ImageFolder` has it. Images in no folder of a class have no label
where that goes for all of their split; else they are stray ones.

How many images each folder holds is a table in an SQLite database: memory holds the names of one
level.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from pipeline.sources.file_names import (
    NO_SPLITS,
    SPLIT_WORDS,
    SPLITS,
    as_text,
    is_container,
    is_plain,
    judge,
    splits_in,
)

SEPARATOR = b"\0"  # sorts before every character of a name
_MOST_SPLITS = 1000
_MOST_NAMES = 100_000
_MOST_COUNTS = 4096


@dataclass
class PathGroup:
    """Folders or archives of one layout, so many as `count`.

    `split` is that of their images where folders do not tell; where it is `given` the folders are
    classes. `strip`: a folder that holds all others is left out. `title` names them in messages;
    `layout` is decided once all names are known.
    """

    split: str
    given: bool
    strip: bool
    title: str
    count: int = 1
    layout: FolderLayout = field(init=False)

    @property
    def expected(self) -> str:
        return "CLASS/FILE" if self.given else "SPLIT/CLASS/FILE or CLASS/FILE"


class Below(NamedTuple):
    """What a folder holds: images of its own, deeper ones, and the folders of these, sorted."""

    direct: int
    deep: int
    names: tuple[bytes, ...]


class Folders:
    """How many images lie in each folder of each group, and what else does.

    A folder is spelled with a separator after each part, so that the root is empty and what is
    below a folder begins with its name.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._counts: Counter[tuple[str, int, bytes, str]] = Counter()
        for name in ("folders", "left"):
            database.execute(
                f"CREATE TABLE {name} (grp INTEGER, folder BLOB, suffix TEXT, depth INTEGER, "
                "files INTEGER, PRIMARY KEY (grp, folder, suffix)) WITHOUT ROWID"
            )

    def add(self, table: str, group: int, path: bytes, suffix: str = "") -> None:
        """Count a file: an image in the table `folders`, another in `left`."""
        self._counts[table, group, path[: path.rfind(SEPARATOR) + 1], suffix] += 1
        if len(self._counts) >= _MOST_COUNTS:
            self.flush()

    def flush(self) -> None:
        """Write what was counted last, so that the tables are complete."""
        for (table, group, folder, suffix), files in self._counts.items():
            self._database.execute(
                f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?) "  # noqa: S608
                "ON CONFLICT DO UPDATE SET files = files + excluded.files",
                (group, folder, suffix, folder.count(SEPARATOR), files),
            )
        self._counts.clear()

    def depths(self, group: int) -> dict[int, int]:
        """Return for each number of folders above an image how many have it."""
        rows = self._database.execute(
            "SELECT depth, sum(files) FROM folders WHERE grp = ? GROUP BY depth", (group,)
        )
        return dict(rows.fetchall())

    def lone(self, group: int, prefix: bytes) -> bytes | None:
        """Return the only folder in a folder that holds all images, if there is one."""
        first, last = self._database.execute(
            "SELECT min(folder), max(folder) FROM folders WHERE grp = ?", (group,)
        ).fetchone()
        top = (first or b"")[len(prefix) :].partition(SEPARATOR)[0]
        # in this order, what lies between two of one folder is in that folder
        return top if top and last.startswith(prefix + top + SEPARATOR) else None

    def below(self, group: int, prefix: bytes) -> Below:
        """Return what a folder holds; of very many folders the first in order."""
        where, values = _range(group, prefix)
        rows = self._database.execute(
            "SELECT substr(rest, 1, instr(rest, x'00') - 1) AS name, sum(files) FROM "  # noqa: S608
            f"(SELECT substr(folder, ?) AS rest, files FROM folders WHERE {where}) "
            "GROUP BY instr(rest, x'00') > 0, name ORDER BY name LIMIT ?",
            (len(prefix) + 1, *values, _MOST_NAMES),
        ).fetchall()
        sql = f"SELECT sum(files) FROM folders WHERE {where}"  # noqa: S608
        total = self._database.execute(sql, values).fetchone()[0]
        direct = sum(count for name, count in rows if not name)
        return Below(direct, (total or 0) - direct, tuple(name for name, _ in rows if name))

    def holds(self, group: int, prefix: bytes) -> bool:
        """Tell whether there is an image below a folder."""
        where, values = _range(group, prefix)
        sql = f"SELECT 1 FROM folders WHERE {where} LIMIT 1"  # noqa: S608
        return self._database.execute(sql, values).fetchone() is not None


def _range(group: int, prefix: bytes) -> tuple[str, tuple[object, ...]]:
    """Return the condition that selects what lies in and below a folder, and its values."""
    if not prefix:
        return "grp = ?", (group,)
    return "grp = ? AND folder >= ? AND folder < ?", (group, prefix, prefix[:-1] + b"\x01")


@dataclass(frozen=True)
class FolderLayout:
    """How the paths of a group are read.

    `prefix` are the folders that hold all images, which say nothing. `homes` are the folders of
    splits, with how many folders in each, one in the other, stand before the classes; None where
    folders are classes. The images of `unlabelled` splits lie in no folders of classes; `stray` is
    the split of what is in none.
    """

    prefix: bytes
    homes: Mapping[bytes, int] | None
    unlabelled: frozenset[str]
    stray: str

    @cached_property
    def _skipped(self) -> int:
        return self.prefix.count(SEPARATOR)

    def read(self, path: bytes) -> tuple[str, str | None]:
        """Return split and class that a path tells; None where it tells no class."""
        parts = path.split(SEPARATOR)[self._skipped :]
        split = self.stray
        if self.homes is not None:
            inner = self.homes.get(parts[0]) if len(parts) > 1 else None
            if inner is None:
                return split, None
            split, parts = as_text(parts[0]), parts[1 + inner :]
        return split, as_text(parts[0]) if len(parts) > 1 else None

    def class_folder(self, folder: bytes) -> bytes | None:
        """Return the folder of the class, or of the split without, that a folder lies in."""
        parts = folder.split(SEPARATOR)[self._skipped : -1]
        count = 1 if self.homes is None else 2 + self.homes.get(b"".join(parts[:1]), 0)
        if not parts or not folder.startswith(self.prefix):
            return None
        return self.prefix + b"".join(part + SEPARATOR for part in parts[:count])

    @property
    def expected(self) -> str:
        return "CLASS/FILE" if self.homes is None else "SPLIT/CLASS/FILE"


def decide(folders: Folders, number: int, group: PathGroup) -> FolderLayout:
    """Decide what the folders of a group mean."""
    prefix = _leading(folders, number, group)
    top = folders.below(number, prefix)
    if group.given or not _are_splits(folders, number, prefix, top.names):
        unlabelled = frozenset() if top.names else frozenset([group.split])
        return FolderLayout(prefix, None, unlabelled, group.split)
    homes: dict[bytes, int] = {}
    bare, holding = set(), []
    for name in top.names:
        below = folders.below(number, prefix + name + SEPARATOR)
        holding += [name] * bool(below.names)
        if below.names or splits_in(name):
            homes[name], labelled = _classes_below(folders, number, prefix, name)
            bare |= set() if labelled else {as_text(name)}
    return FolderLayout(prefix, homes, frozenset(bare), as_text(min(holding or homes)))


def _leading(folders: Folders, number: int, group: PathGroup) -> bytes:
    """Return the folders that hold all images and say nothing of them."""
    prefix, depths = b"", folders.depths(number)
    usual = max(depths, key=lambda depth: depths[depth]) if depths else 0
    while True:
        top = folders.lone(number, prefix)
        if top is None or (not group.given and as_text(top).lower() in SPLIT_WORDS):
            return prefix
        # archives have the folder that was packed; a folder on top may be a split of any name
        needed = 1 if group.strip or group.given else 2
        if usual - prefix.count(SEPARATOR) <= needed:
            names = folders.below(number, prefix + top + SEPARATOR).names
            if group.given or judge(names) != SPLITS or splits_in(top):
                return prefix
        prefix += top + SEPARATOR


def _are_splits(folders: Folders, number: int, prefix: bytes, names: tuple[bytes, ...]) -> bool:
    """Tell whether the folders of a level are splits."""
    if not 0 < len(names) <= _MOST_SPLITS:
        return False
    if judge(names) == SPLITS:
        return True
    below = [folders.below(number, prefix + name + SEPARATOR) for name in names]
    if sum(each.deep for each in below) <= sum(each.direct for each in below):
        return False
    classes = Counter(name for each in below for name in each.names)
    if all(is_plain(name) for name in classes):
        return False
    shared = sum(count > 1 for count in classes.values())
    return len(names) == 1 or 2 * shared >= len(classes)


def _classes_below(folders: Folders, number: int, prefix: bytes, split: bytes) -> tuple[int, bool]:
    """Return how many folders of a split stand before its classes, and whether there are any."""
    inner, folder = 0, prefix + split + SEPARATOR
    while True:
        below = folders.below(number, folder)
        lone = below.names[0] if len(below.names) == 1 and not below.direct else None
        if lone is None or not (is_container(lone) or lone == split):
            return inner, bool(below.names)
        inner, folder = inner + 1, folder + lone + SEPARATOR


def names_no_classes(names: list[bytes]) -> bool:
    """Tell whether names are implausible as those of classes."""
    if not names or len(names) > _MOST_SPLITS:
        return False
    return judge(names) != NO_SPLITS or 2 * sum(map(is_container, names)) > len(names)
