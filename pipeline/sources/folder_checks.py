"""What is implausible about the layout of a set of image files, and is refused with a cure.

Classes that are words for splits, splits that share no class, tables of labels beside images that
lie in no folders of classes, and classes whose files are all left out. Where the job names the
kind of the source itself, its folders are taken as they are, and nothing of this is asked.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.core.errors import SourceError, listed
from pipeline.sources.file_names import (
    READ_TABLES,
    SPLIT_OF_WORD,
    as_text,
    by_likelihood,
    image_files,
    is_plain,
    splits_in,
    table_suffix,
    words_of,
)
from pipeline.sources.folder_layout import (
    SEPARATOR,
    FolderLayout,
    Folders,
    PathGroup,
    names_no_classes,
)
from pipeline.sources.notes import Notes, counted

# folders that hold nothing else are no classes
_DATA = (
    ".txt .csv .tsv .json .jsonl .ndjson .xml .yml .yaml .toml .ini .cfg .md .rst .html .htm .css "
    ".js .py .pyc .ipynb .m .sh .bat .r .c .cpp .h .pdf .doc .docx .xls .xlsx .ppt .pptx .tex .bib "
    ".log .db .sqlite .pkl .pickle .joblib .mat .npy .npz .h5 .hdf5 .nc .zarr .parquet .feather "
    ".arrow .tfrecord .record .pt .pth .onnx .ckpt .lst .dat .bin .idx .cls .svg .zip .tar .gz "
    ".tgz .bz2 .xz .7z .rar .lock .cache .md5 .sha256 .url .lnk .mp3 .wav .geojson .kml"
)
_NO_IMAGES = frozenset(_DATA.split())
# data that may be all of a split
_PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".npy", ".npz", ".parquet", ".tfrecord")
_MOVE = "put them as SPLIT/CLASS/FILE or CLASS/FILE, such as train/cat/1.png"
_TABLE = "make a CSV table with the columns path, label and split, and ingest that"
_UNPACK = "unpack it, and give the folder"
_CURES = {
    **dict.fromkeys((".zip", ".7z", ".rar"), _UNPACK),
    **dict.fromkeys((".tar", ".tgz", ".parquet", ".npz"), "give the file, or its folder"),
    ".gz": "unpack these files, and give the folder",
    ".npy": "give the file, or make PNG files of it",
    ".csv": "give the file, where it is a list of images",
}
_AS_THEY_ARE = "which takes folders as they are"
_BARE = "which takes the images without labels"
_SHOWN = 3


def refuse_no_images(group: PathGroup, kind: str, notes: Notes) -> None:
    """Raise `SourceError` for folders without images, with what is there."""
    rest = f"; left out: {counted(notes)}" if counted(notes) else ""
    cures = (cure for suffix, cure in _CURES.items() if suffix in notes.ignored)
    cure = next(cures, "correct the path")
    if kind != "folder":
        cure = "make PNG files of its arrays" if ".npy" in notes.ignored else _UNPACK
    raise SourceError(
        f"{group.title}: no image found; expected {group.expected}, such as "
        f"{'cat/1.png' if group.given else 'train/cat/1.png'}, {image_files()}{rest}; {cure}"
    )


class Doubts:
    """Asks whether layouts are plausible; the database has a table `classes` beside the folders."""

    def __init__(
        self, database: sqlite3.Connection, folders: Folders, kind: str, groups: Sequence[PathGroup]
    ) -> None:
        self._database, self._folders, self._kind = database, folders, kind
        self._groups = groups
        self._title = groups[0].title

    def check(self, without: Sequence[str], loose: Mapping[str, int], notes: Notes) -> None:
        """Raise `SourceError` where something is implausible; says what settles it.

        `without` are the splits without labels; `loose` says of each split how many images lie in
        no folder of a class.
        """
        self._check_classes(notes)
        if self._kind != "folder" and ".cls" in notes.ignored:
            self._refuse(
                f"has {notes.ignored['.cls']:,} .cls members, but not next to the images of their "
                "names",
                "pack it again with its members sorted by name ('tar --sort=name')",
                _BARE,
            )
        if without:
            self._check_labels(without, sum(loose[split] for split in without), notes)
            self._check_archives()
        if not all(group.given for group in self._groups):
            self._check_common()
        for number, group in enumerate(self._groups):
            self._check_lost(number, group)

    def _check_classes(self, notes: Notes) -> None:
        """Refuse names that are none of classes."""
        rows = self._query("SELECT DISTINCT class FROM classes LIMIT 2000")
        names = [str(name).encode() for (name,) in rows]
        what, cure = "", _MOVE
        inner = self._container()
        if not names and inner:
            what = f"all images lie in folders such as '{inner}', which is no class"
            cure = "give these folders themselves as splits"
        elif len(names) == 1 and (plain := self._plain_below()):
            what = f"the only class would be '{as_text(names[0])}'"
            within = plain.rpartition("/")[0]
            what += f", all of whose images lie in '{plain}'" if within else ""
            cure = f"give the folder '{plain}' itself where there are no labels"
        elif names_no_classes(names):
            some = listed(map(as_text, names), _SHOWN)
            what = f"the classes would be {some}, words for splits or images"
        if what:
            tables = by_likelihood(notes.tables)
            names_of = listed(map(as_text, tables), _SHOWN)
            beside = f", and {names_of} would be ignored" if tables else ""
            table = self._read_tables(tables, ()) if tables else _TABLE
            self._refuse(what + beside, f"{cure}, or {table}")

    def _plain_below(self) -> str:
        """Return a folder that says only that there are images, where all of a class lie in such.

        It may be that of the class; its path is from that on.
        """
        first = ""
        for number, folder in self._database.execute("SELECT grp, folder FROM folders"):
            layout = self._groups[number].layout
            home = layout.class_folder(folder)
            if home is None or layout.read(folder + b"-")[1] is None:
                continue  # images in no folder of a class
            parts = [home[:-1].rpartition(SEPARATOR)[2], *folder[len(home) : -1].split(SEPARATOR)]
            plain = next((n for n, part in enumerate(parts) if is_plain(part)), None)
            if plain is None:
                return ""
            first = first or as_text(b"/".join(parts[: plain + 1]))
        return first

    def _container(self) -> str:
        """Return a folder in that of a split that is no class, if there is one."""
        for number, group in enumerate(self._groups):
            for home, inner in (group.layout.homes or {}).items():
                if inner:
                    below = self._folders.below(number, group.layout.prefix + home + SEPARATOR)
                    return as_text(home + b"/" + below.names[0])
        return ""

    def _check_labels(self, without: Sequence[str], count: int, notes: Notes) -> None:
        """Refuse tables of labels, or a file for each image, beside `count` images without."""
        tables = by_likelihood(notes.tables)
        if self._query("SELECT 1 FROM classes LIMIT 1"):
            tables = [path for path in tables if _concerns(path, without)]
        quoted = listed((f"'{split}'" for split in without), _SHOWN)
        images = f"the images of {quoted} lie in no folders of classes"
        if tables:
            named = listed(map(as_text, tables), _SHOWN)
            cure = self._read_tables(tables, without)
            self._refuse(f"{images}, and {named} would be ignored", cure, _BARE)
        for suffix, number in notes.sidecars.items():
            if count <= 2 * number:
                cure = _TABLE
                if self._kind != "folder":
                    cure = "name the label with columns.label=txt, or columns.label=json.KEY"
                beside = f"{number:,} {suffix} files beside them would be ignored"
                self._refuse(f"{images}, and {beside}", cure, _BARE)

    def _read_tables(self, tables: Sequence[bytes], without: Sequence[str]) -> str:
        """Return how tables of labels are read."""
        title = self._title
        readable = [as_text(path) for path in tables if table_suffix(path) in READ_TABLES]
        if not readable or self._kind != "folder" or ", " in title:
            return _TABLE
        paths = {part: path for path in readable for part in path.split("/") if part in without}
        if paths:
            named = ", ".join(f"{split}: {title}/{path}" for split, path in paths.items())
            return f"read them in a job with 'images: {{splits: {{{named}}}}}', or {_TABLE}"
        return (
            f"read the table, 'pixsim ingest {title}/{readable[0]}' ('--set root=FOLDER' where its "
            "paths are relative to another folder, 'columns.path=NAME columns.label=NAME' where "
            f"its columns have other names), or {_TABLE}"
        )

    def _check_archives(self) -> None:
        """Refuse archives of a class each."""
        for group in self._groups:
            layout = group.layout
            if group.count > 1 and group.strip and layout.homes is None and layout.unlabelled:
                self._refuse(
                    f"{group.count:,} archives hold images in no folders and without labels",
                    "where each is a class, unpack each into a folder of its name, and give the "
                    "folder above",
                    title=group.title,
                )

    def _check_common(self) -> None:
        """Refuse splits that share no class with any other."""
        if len(self._query("SELECT DISTINCT split FROM classes")) < 2:
            return
        apart = self._query(
            "SELECT split, min(class), count(*) FROM classes GROUP BY split HAVING sum(class IN "
            "(SELECT class FROM classes GROUP BY class HAVING count(*) > 1)) = 0 ORDER BY split"
        )
        if apart:
            split, name, count = apart[0]
            what = f"its only class is '{name}'" if count == 1 else f"such as '{name}'"
            self._refuse(
                f"split '{split}' has no class in common with the other splits ({what})",
                f"give classes the same names in all splits, or {_TABLE}",
            )

    def _check_lost(self, number: int, group: PathGroup) -> None:
        """Refuse classes and splits all of whose files are left out."""
        for folder, suffixes in self._lost(number, group.layout):
            name = as_text(folder.strip(SEPARATOR).replace(SEPARATOR, b"/"))
            named = ", ".join(f"{n:,} {s or 'without suffix'}" for s, n in suffixes.items())
            self._refuse(
                f"none of the files of '{name}' can be read ({named}), expected {image_files()}",
                "convert them, or move them away",
                title=group.title,
            )

    def _lost(self, number: int, layout: FolderLayout) -> Iterator[tuple[bytes, Counter[str]]]:
        """Yield folders of classes without images, and of which suffixes their files are."""
        rows = self._database.execute(
            "SELECT folder, suffix, files FROM left WHERE grp = ? ORDER BY folder", (number,)
        )
        wanted = (row for row in rows if not self._is_data(layout, *row[:2]))
        for home, group in itertools.groupby(wanted, lambda row: layout.class_folder(row[0])):
            if home is not None and not self._folders.holds(number, home):
                suffixes = Counter[str]()
                for _, suffix, files in group:
                    suffixes[suffix] += files
                yield home, suffixes

    def _is_data(self, layout: FolderLayout, folder: bytes, suffix: str) -> bool:
        """Tell whether a file is none that a class may consist of."""
        if layout.homes is not None and suffix in _PACKED:
            return not splits_in(folder[len(layout.prefix) : -1])
        return suffix in _NO_IMAGES or b".zarr" + SEPARATOR in folder

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._database.execute(sql).fetchall()

    def _refuse(
        self, what: str, cure: str, anyway: str = _AS_THEY_ARE, title: str | None = None
    ) -> None:
        title = title or self._title
        raise SourceError(f"{title}: {what}; {cure}; or say kind={self._kind}, {anyway}")


def _concerns(path: bytes, without: Sequence[str]) -> bool:
    """Tell whether a table may be of splits without labels, where others have some."""
    folder, _, base = path.rpartition(b"/")
    if as_text(folder.partition(b"/")[0]) in without:
        return True
    words = splits_in(base)
    if words:
        return any(words & splits_in(split.encode()) for split in without)
    says = set(words_of(base)) - set(SPLIT_OF_WORD)
    return bool(
        says & {"label", "labels", "annotation", "annotations", "truth", "groundtruth", "gt"}
    )
