"""Which columns of a table are what: images, labels, splits; by their names, and by their values.

One rule for lists of image files and for Parquet files that hold images. What is ambiguous is
refused, with the line that settles it; what was decided by more than a name is reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from pipeline.core.errors import ConfigError, SourceError, listed, nearest
from pipeline.sources.file_names import as_text, is_image, split_word

# Usual names, the likeliest first; compared as `plain` makes them.
LABEL_COLUMNS = (
    "label", "class", "class_name", "target", "category",
    "labels", "classes", "label_name", "category_name", "target_name", "class_label",
    "class_id", "label_id", "category_id", "target_id", "class_idx", "label_idx", "class_index",
)  # fmt: skip
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "name", "image",
    "file_path", "image_path", "img_path", "image_name", "img_name", "image_file", "img_file",
    "image_filename", "img_filename", "fname", "img", "images", "files", "image_id", "img_id",
    "image_ids", "id", "ids",
)  # fmt: skip
IMAGE_COLUMNS = ("image", "img", "images", "img_bytes", "image_bytes", "image_data")
SPLIT_COLUMNS = ("split", "set", "subset")
# these are taken only where their values are words for splits
_SPLIT_COLUMNS = ("dataset", "usage", "partition", "phase", "data_split", "split_name", "purpose")
_FLAGS = {
    "isvalid": ("valid", "train"), "isval": ("valid", "train"), "isvalidation": ("valid", "train"),
    "istest": ("test", "train"), "istrain": ("train", "test"), "istraining": ("train", "test"),
    "istrainingimage": ("train", "test"),
}  # fmt: skip
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_INDEX = ("", "index", "unnamed:0")
SAMPLED_ROWS = 50
_MOST_SHOWN = 12

Columns = Mapping[str, str | None]
Flag = tuple[str, str]


@dataclass(frozen=True)
class TableHead:
    """The columns of a table, and the texts of its `first_rows`, [row][column], read when needed.

    `title` names the table in messages, `cure` is what else helps where no column is known. Of
    Parquet with images `encoded` are the columns of image files, `types` those of all columns, and
    `class_names` the names of the classes of columns that have such in the metadata. `lone_label`
    says that a column besides images and splits can only be that of the labels.
    """

    title: str
    names: Sequence[str]
    first_rows: Callable[[], Sequence[Sequence[str]]]
    cure: str = ""
    encoded: Sequence[str] = ()
    types: Mapping[str, Any] = field(default_factory=dict)
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lone_label: bool = False

    @cached_property
    def _rows(self) -> Sequence[Sequence[str]]:
        return self.first_rows()

    def values(self, name: str) -> list[str]:
        """Return the first values of a column."""
        at = self.names.index(name)
        return [row[at].strip() for row in self._rows if len(row) > at]


@dataclass(frozen=True)
class Roles:
    """Which columns of a table are what; None: there is none.

    `image` is that of the paths, or of the images themselves. Each of `classes` stands for a class,
    with a 1 where an image is of it; `others` are further columns of labels, which must agree with
    `label`. True and false in the column `split` stand for the splits of `flag`; `remarks` say what
    was decided by more than names.
    """

    image: str
    label: str | None = None
    split: str | None = None
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    flag: Flag | None = None
    remarks: tuple[str, ...] = ()

    @property
    def described(self) -> list[str]:
        """All columns that say something of the images, each once."""
        some = (self.label, self.split, *self.classes, *self.others)
        return list(dict.fromkeys(name for name in some if name is not None))

    @property
    def read(self) -> list[str]:
        """All columns of a list that are read, each once, the paths first."""
        return list(dict.fromkeys([self.image, *self.described]))


class Batch(NamedTuple):
    """Some rows of a table: the columns that have a role.

    `first` is the number of the first row in the table; of Parquet `start` is that in its row
    group `group`. `splits` is the split of each row, None where no column says it.
    """

    table: Any
    first: int
    group: int = 0
    start: int = 0
    splits: Any = None


class Table(NamedTuple):
    """A table of some kind, of which the beginning was read; `batches` yields its rows."""

    head: TableHead
    batches: Callable[[Roles], Iterator[Batch]]
    remarks: Sequence[str] = ()


def texts_of(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return the texts, [row][column], of rows that map columns to values."""
    return [[field_text(row.get(name)) for name in names] for row in rows]


def field_text(value: Any) -> str:
    """Return any value of a table as text."""
    return "" if value is None else as_text(value) if isinstance(value, bytes) else str(value)


# names -------------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """Return a column's name without case, blanks, `_`, `-` and `.`, as names are compared."""
    return re.sub(r"[\s_.-]+", "", name).casefold()


def candidates(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Return the columns with usual names: first those spelled so, in the order of the usual."""
    alike = [name for text in usual for name in names if plain(name) == plain(text)]
    return list(dict.fromkeys([*(text for text in usual if text in names), *alike]))


def choose(
    role: str, names: Sequence[str], usual: Sequence[str], wanted: Columns | None, title: str
) -> str | None:
    """Return the column of a role: the one wanted, else the first of the usual names, else None.

    Raises `ConfigError` where the column wanted is not there, or there are two of its name.
    """
    if wanted is not None and role in wanted:
        name = wanted[role]
        if name is None:
            return None
        same = [column for column in names if column == name]
        same = same or [column for column in names if plain(column) == plain(name)]
        if not same:
            known = nearest(name, names[:_MOST_SHOWN])
            raise ConfigError(f"{title}: has no column '{name}' for the {role}; {known}")
    else:
        first = next(iter(candidates(names, usual)), None)
        if first is None:
            return None
        compared = (lambda text: text) if first in usual else plain
        same = [column for column in names if compared(column) == compared(first)]
    if len(same) > len(set(same)) == 1:
        raise ConfigError(f"{title}: has {len(same)} columns '{same[0]}'; rename them")
    if len(same) > 1:
        raise ConfigError(
            f"{title}: has {len(same)} columns for the {role}, {listed(same)}; say which one, such "
            f"as columns: {{{role}: {same[0]}}}"
        )
    return same[0]


def is_header(names: Iterable[str], wanted: Columns) -> bool:
    """Tell whether the first row of a table are names of its columns."""
    known = {plain(n) for n in (*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS)}
    known |= {plain(name) for name in wanted.values() if name}
    return any(plain(name) in known for name in names) or not any(map(_is_path, names))


def names_images(names: Iterable[str], wanted: Columns) -> bool:
    """Tell whether names of columns say which one names the images."""
    known = {*map(plain, PATH_COLUMNS), plain(wanted.get("path") or wanted.get("image") or "path")}
    return any(plain(name) in known for name in names)


def names_without_header(row: Sequence[str], title: str) -> list[str]:
    """Return names for the columns of a table that begins with an image and what describes it.

    Raises `ConfigError` where it is ambiguous what they are.
    """
    rest = row[1:]
    splits = [n for n, text in enumerate(rest) if split_word(text.strip()) is not None]
    plainly = not any(map(_is_path, rest))
    if plainly and len(rest) <= 1:
        return ["path", "label"][: len(row)]
    if plainly and len(rest) == 2 and len(splits) == 1:
        return ["path", "label", "split"] if splits == [1] else ["path", "split", "label"]
    names = [*("path", "label", "split")[: len(row)]]
    names += [f"column{n}" for n in range(4, len(row) + 1)]
    raise ConfigError(
        f"{title}: has no names of columns, but begins with {listed(row)}; write a first line "
        f"that says what they are, such as {','.join(names)}"
    )


def _is_path(text: str) -> bool:
    return is_image(text.strip().encode("utf-8", "surrogateescape"))


# labels ------------------------------------------------------------------------------------------


def decide(
    head: TableHead,
    image: str,
    wanted: Columns,
    split_given: bool,
    labelled: Callable[[], frozenset[str]],
) -> Roles:
    """Return which columns are what, or raise `ConfigError`.

    `image` is the column of the images, `wanted` are the columns that were named for a role; where
    the split is given no column says it. `labelled` gives the columns of those tables that have
    labels, as `plain` makes them: a table that only has such, but for the labels, has none.
    """
    names, title = head.names, head.title
    split, flag, remarks = (None, None, []) if split_given else _split_column(head, wanted)
    roles = Roles(image, None, split, flag=flag, remarks=tuple(remarks))
    if "label" in wanted:
        named = wanted["label"]
        if named is not None and plain(named) not in map(plain, names) and labelled():
            return _without_labels(roles, head)
        return replace(roles, label=choose("label", names, LABEL_COLUMNS, wanted, title))
    splits = _split_names(names) if split_given else [split]
    rest = [n for n in names if n not in (image, *splits) and plain(n) not in _INDEX]
    # which of both is taken decides the names of the classes
    usual = ("labels", *LABEL_COLUMNS) if head.encoded else LABEL_COLUMNS
    label = choose("label", rest, usual, None, title) or _with_class_names(head)
    label = rest[0] if label is None and head.lone_label and len(rest) == 1 else label
    if label is not None:
        others = tuple(name for name in candidates(rest, usual) if name != label)
        if others:
            remarks.append(
                f"{title}: labels are taken from column '{label}', with which {listed(others)} "
                f"must agree; columns: {{label: {others[0]}}} takes that one"
            )
        return replace(roles, label=label, others=others, remarks=tuple(remarks))
    rest = [name for name in rest if name not in head.encoded]
    if _is_one_hot(head, rest):
        remarks.append(f"{title}: the columns {listed(rest)} are taken as one class each")
        return replace(roles, classes=tuple(rest), remarks=tuple(remarks))
    if rest and not labelled() >= {plain(name) for name in rest}:
        raise _no_label(head, rest)
    return _without_labels(roles, head) if labelled() else roles


def _without_labels(roles: Roles, head: TableHead) -> Roles:
    """Say that a table has no labels where others have some."""
    remark = f"{head.title}: has no column of labels as others have, so its images are without"
    return replace(roles, remarks=(*roles.remarks, remark))


def _no_label(head: TableHead, rest: Sequence[str]) -> ConfigError:
    cells = {name: set(filter(None, head.values(name))) for name in rest}
    wordless = {name: not any(map(str.isalpha, cells[name])) for name in rest}
    likeliest = min(rest, key=lambda name: (wordless[name], len(cells[name])))
    return ConfigError(
        f"{head.title}: has no column {listed(LABEL_COLUMNS)}, but {listed(rest)}; say which one "
        f"holds the labels, such as columns: {{label: {likeliest}}}, or that none does with "
        "columns: {label: null}"
    )


def _with_class_names(head: TableHead) -> str | None:
    """Return the column that has names of classes in the metadata, if there is one."""
    named = list(head.class_names)
    if len(named) > 1:
        raise ConfigError(
            f"{head.title}: has {len(named)} columns of classes, {listed(named)}; say which holds "
            f"the labels, such as columns: {{label: {named[0]}}}"
        )
    return named[0] if named else None


def has_labels(head: TableHead, wanted: Columns) -> bool:
    """Tell whether a table has a column of labels, or one for each class."""
    if wanted.get("label"):
        return plain(str(wanted["label"])) in map(plain, head.names)
    taken = {*map(plain, (*PATH_COLUMNS, *head.encoded, *_split_names(head.names))), *_INDEX}
    rest = [name for name in head.names if plain(name) not in taken]
    usual = bool(candidates(head.names, LABEL_COLUMNS) or head.class_names)
    return usual or _is_one_hot(head, rest)


def _is_one_hot(head: TableHead, names: Sequence[str]) -> bool:
    values = [value.lower() for name in names for value in head.values(name)]
    return len(names) > 1 and bool(values) and all(v in (*YES, *NO) for v in values)


# splits ------------------------------------------------------------------------------------------


def _split_names(names: Sequence[str]) -> list[str]:
    """Return the columns that may hold splits, by their names."""
    return candidates(names, SPLIT_COLUMNS) + _split_candidates(names)


def _split_candidates(names: Sequence[str]) -> list[str]:
    """Return the columns that hold splits where their values are words for such."""
    return [n for n in names if plain(n) in _FLAGS] + candidates(names, _SPLIT_COLUMNS)


def _split_column(head: TableHead, wanted: Columns) -> tuple[str | None, Flag | None, list[str]]:
    """Return the column of splits, what true and false are in it, and what to report."""
    column = choose("split", head.names, SPLIT_COLUMNS, wanted, head.title)
    if column is not None or "split" in wanted:
        return column, None, []
    for name in _split_candidates(head.names):
        flag = _FLAGS.get(plain(name))
        values = {value.lower() for value in head.values(name) if value}
        if flag is not None and values and values <= {*YES, *NO}:
            remark = f"{head.title}: '{name}' is split '{flag[0]}' where true, else '{flag[1]}'"
            return name, flag, [remark]
        if flag is None and values and all(map(split_word, head.values(name))):
            return name, None, [f"{head.title}: splits are taken from column '{name}'"]
    return None, None, []


# images ------------------------------------------------------------------------------------------


def image_column(head: TableHead, wanted: Columns) -> str:
    """Return the column of encoded images, or raise `ConfigError` or `SourceError`."""
    title, names = head.title, head.names
    name = choose("image", names, IMAGE_COLUMNS, wanted, title)
    if name is not None and name in head.encoded:
        return name
    if name is None and not head.encoded:
        raise ConfigError(
            f"{title}: holds no images: none of the columns {listed(names)} holds bytes of image "
            "files; leave this file out, or name only those that do"
        )
    cure = f"columns: {{image: {head.encoded[0] if head.encoded else 'NAME'}}}"
    if name is None:
        raise ConfigError(
            f"{title}: has no column {listed(IMAGE_COLUMNS)}, but {listed(names)}; say which one "
            f"holds the images, such as {cure}"
        )
    other = f"; say which column does with {cure}" if head.encoded else ""
    raise SourceError(
        f"{title}: column '{name}' holds {head.types[name]}, expected bytes of image files{other}"
    )


def path_column(head: TableHead, wanted: Columns) -> str:
    """Return the column of the paths of images, or raise `ConfigError`."""
    path = choose("path", head.names, PATH_COLUMNS, wanted, head.title)
    if path is None:
        raise _no_path(head)
    if "path" in wanted:
        return path
    for name in candidates(head.names, PATH_COLUMNS):
        values = head.values(name)
        if values and all(map(_is_path, values)):  # such as `image` beside a `name` of a person
            return path if any(map(_is_path, head.values(path))) else name
    return path


def _no_path(head: TableHead) -> ConfigError:
    names, title = head.names, head.title
    if len(names) == 1 and head.cure:
        return ConfigError(
            f"{title}: has a single value on each line, such as '{names[0]}', and none names an "
            "image; labels alone do not say which image each is of: write the path before each, "
            "such as 'val/0001.jpg,7', or, where they are in the order of the names of the images "
            "of a folder, say root=FOLDER"
        )
    named = next((name for name in names if any(map(_is_path, head.values(name)))), names[0])
    return ConfigError(
        f"{title}: has no column {listed(PATH_COLUMNS)}, but {listed(names)}; say which one names "
        f"the images, such as columns: {{path: {named}}}{head.cure}"
    )
