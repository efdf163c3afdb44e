"""Which columns of a list are what: paths, labels, splits; by their names, and by what is in them.

What is not plain is refused, with the line that settles it; what was decided by more than a name is
reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import ConfigError, LabelError, SourceError, listed
from pipeline.sources.file_names import is_image, split_word
from pipeline.sources.table_columns import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    Columns,
    candidates,
    choose,
    no_label,
    plain,
    texts_of,
)

PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "name", "image",
    "file_path", "image_path", "img_path", "image_name", "img_name", "image_file", "img_file",
    "image_filename", "img_filename", "fname", "img", "images", "files", "image_id", "img_id",
    "image_ids", "id", "ids",
)  # fmt: skip
# these are taken only where what they hold are words for splits
_SPLIT_COLUMNS = ("dataset", "usage", "partition", "phase", "data_split", "split_name", "purpose")
_FLAGS = {
    "isvalid": ("valid", "train"), "isval": ("valid", "train"), "isvalidation": ("valid", "train"),
    "istest": ("test", "train"), "istrain": ("train", "test"), "istraining": ("train", "test"),
    "istrainingimage": ("train", "test"),
}  # fmt: skip
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_INDEX = ("", "index", "unnamed:0")
_PIXELS = re.compile(r"(?:pixels?|px|p)?\d+(?:x\d+)?")
_LEAST_PIXELS = 16

Flag = tuple[str, str]


@dataclass(frozen=True)
class Roles:
    """Which columns of a list are what; None: there is none.

    Each of `classes` stands for a class, with a 1 where an image is of it; `others` are further
    columns of labels, which must agree with `label`. True and false in the column `split` stand for
    the splits of `flag`; `remarks` say what was decided by more than names.
    """

    path: str
    label: str | None = None
    split: str | None = None
    classes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    flag: Flag | None = None
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """All that are read, each once."""
        some = (self.path, self.label, self.split, *self.classes, *self.others)
        return list(dict.fromkeys(name for name in some if name is not None))


@dataclass(frozen=True)
class TableHead:
    """The columns of a table, and the texts of its first rows, [row][column].

    `title` is what to call the table, `cure` what else helps where no column is known.
    """

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[str]] = ()
    cure: str = ""

    def values(self, name: str) -> list[str]:
        """Return what stands in a column."""
        at = self.names.index(name)
        return [row[at].strip() for row in self.rows if len(row) > at]


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

    Raises `ConfigError` where it is not plain what they are.
    """
    rest = row[1:]
    splits = [n for n, text in enumerate(rest) if split_word(text.strip()) is not None]
    plainly = not any(map(_is_path, rest))
    if plainly and len(rest) <= 1:
        return ["path", "label"][: len(row)]
    if plainly and len(rest) == 2 and len(splits) == 1:
        return ["path", "label", "split"] if splits == [1] else ["path", "split", "label"]
    names = [
        *("path", "label", "split")[: len(row)],
        *(f"column{n}" for n in range(4, len(row) + 1)),
    ]
    raise ConfigError(
        f"{title}: has no names of columns, but begins with {listed(row)}; write a first line "
        f"that says what they are, such as {','.join(names)}"
    )


def _is_path(text: str) -> bool:
    return is_image(text.strip().encode("utf-8", "surrogateescape"))


def decide(
    sample: TableHead, wanted: Columns, split_given: bool, known: Callable[[], frozenset[str]]
) -> Roles:
    """Return which columns are what, or raise `ConfigError`.

    `wanted` are the columns that were named for a role; where the split is given no column says it.
    `known` gives the columns of those tables of the list that have labels, as `plain` makes them: a
    table that only has such, but for the labels, has none.
    """
    names, title = sample.names, sample.title
    if "image" in wanted:
        wanted = {"path": wanted["image"], **wanted}
    path = _path(sample, wanted)
    split, flag, remarks = (None, None, []) if split_given else split_column(sample, wanted)
    roles = Roles(path, None, split, flag=flag, remarks=tuple(remarks))
    if "label" in wanted:
        named = wanted["label"]
        if named is not None and plain(named) not in map(plain, names) and known():
            return roles
        return replace(roles, label=choose("label", names, LABEL_COLUMNS, wanted, title))
    splits = split_names(names) if split_given else [split]
    rest = [n for n in names if n not in (path, *splits) and plain(n) not in _INDEX]
    label = choose("label", rest, LABEL_COLUMNS, None, title)
    if label is not None:
        others = tuple(name for name in candidates(rest, LABEL_COLUMNS) if name != label)
        if others:
            remarks.append(
                f"{title}: labels are taken from column '{label}', with which {listed(others)} "
                f"must agree; columns: {{label: {others[0]}}} takes that one"
            )
        return replace(roles, label=label, others=others, remarks=tuple(remarks))
    if _is_one_hot(sample, rest):
        remarks.append(f"{title}: the columns {listed(rest)} are taken as one class each")
        return replace(roles, classes=tuple(rest), remarks=tuple(remarks))
    if rest and not known() >= {plain(name) for name in rest}:
        cells = {name: set(filter(None, sample.values(name))) for name in rest}
        wordless = {name: not any(map(str.isalpha, cells[name])) for name in rest}
        likeliest = min(rest, key=lambda name: (wordless[name], len(cells[name])))
        raise no_label(title, rest, likeliest)
    return roles


def has_labels(sample: TableHead, wanted: Columns) -> bool:
    """Tell whether a table has a column of labels, or one for each class."""
    if wanted.get("label"):
        return plain(str(wanted["label"])) in map(plain, sample.names)
    taken = {*map(plain, PATH_COLUMNS), *_INDEX, *map(plain, split_names(sample.names))}
    rest = [name for name in sample.names if plain(name) not in taken]
    return bool(candidates(sample.names, LABEL_COLUMNS)) or _is_one_hot(sample, rest)


def _path(sample: TableHead, wanted: Columns) -> str:
    path = choose("path", sample.names, PATH_COLUMNS, wanted, sample.title)
    if path is None:
        raise _no_path(sample)
    if "path" in wanted:
        return path
    for name in candidates(sample.names, PATH_COLUMNS):
        values = sample.values(name)
        if values and all(map(_is_path, values)):  # such as `image` beside a `name` of a person
            return path if any(map(_is_path, sample.values(path))) else name
    return path


def _no_path(sample: TableHead) -> ConfigError:
    names, title = sample.names, sample.title
    pixels = [name for name in names if _PIXELS.fullmatch(plain(name))]
    if len(pixels) >= _LEAST_PIXELS or "pixels" in map(plain, names):
        return ConfigError(
            f"{title}: holds pixels, not names of image files, in {listed(pixels or ['pixels'])}; "
            "write them with numpy.savez as arrays x_train [sample, y, x] and y_train [sample], "
            "and ingest that .npz file"
        )
    if len(names) == 1 and sample.cure:
        return ConfigError(
            f"{title}: has a single value on each line, such as '{names[0]}', and none names an "
            "image; labels alone do not say which image each is of: write the path before each, "
            "such as 'val/0001.jpg,7'"
        )
    named = next((name for name in names if any(map(_is_path, sample.values(name)))), names[0])
    return ConfigError(
        f"{title}: has no column {listed(PATH_COLUMNS)}, but {listed(names)}; say which one names "
        f"the images, such as columns: {{path: {named}}}{sample.cure}"
    )


def split_names(names: Sequence[str]) -> list[str]:
    """Return the columns that may hold splits, by their names."""
    return candidates(names, SPLIT_COLUMNS) + split_candidates(names)


def split_candidates(names: Sequence[str]) -> list[str]:
    """Return the columns that hold splits where their values say so."""
    return [n for n in names if plain(n) in _FLAGS] + candidates(names, _SPLIT_COLUMNS)


def split_column(sample: TableHead, wanted: Columns) -> tuple[str | None, Flag | None, list[str]]:
    """Return the column of splits, what true and false are in it, and what to say of it."""
    column = choose("split", sample.names, SPLIT_COLUMNS, wanted, sample.title)
    if column is not None or "split" in wanted:
        return column, None, []
    for name in split_candidates(sample.names):
        flag = _FLAGS.get(plain(name))
        values = {value.lower() for value in sample.values(name) if value}
        if flag is not None and values and values <= {*_YES, *_NO}:
            remark = f"{sample.title}: '{name}' is split '{flag[0]}' where true, else '{flag[1]}'"
            return name, flag, [remark]
        if flag is None and values and all(map(split_word, sample.values(name))):
            return name, None, [f"{sample.title}: splits are taken from column '{name}'"]
    return None, None, []


def _is_one_hot(sample: TableHead, names: Sequence[str]) -> bool:
    values = [value.lower() for name in names for value in sample.values(name)]
    return len(names) > 1 and bool(values) and all(v in (*_YES, *_NO) for v in values)


# values ------------------------------------------------------------------------------------------


def splits_of(column: Any, name: str, flag: Flag | None, title: str) -> Any:
    """Return the split of each row of column `name` as text; null where there is none.

    `flag` says which splits true and false stand for; None: it holds names of splits.
    """
    texts = texts_of(_spelled(column), title)
    if flag is None:
        return texts
    true, false, odd = _truths(texts)
    if odd is not None:
        raise SourceError(
            f"{title}: column '{name}' holds '{odd}', expected true or false; name "
            "another column of splits with columns"
        )
    return pc.case_when(pc.make_struct(true, false), *map(pa.scalar, flag))


def _truths(texts: Any) -> tuple[Any, Any, str | None]:
    """Return where texts are true, where false, and the first that is neither; null is nothing."""
    lower = pc.utf8_lower(texts)
    true, false = (pc.is_in(lower, pa.array(words)) for words in (_YES, _NO))
    odd = texts.filter(pc.and_(pc.is_valid(texts), pc.invert(pc.or_(true, false))))
    return true, false, odd[0].as_py() if len(odd) else None


def _spelled(column: Any) -> Any:
    kind = column.type
    other = pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return column.cast(pa.string()) if other else column


def classes_of(table: Any, roles: Roles, title: str, first: int) -> Any:
    """Return the label of each row, numbered from `first`, of a table with a column for each class.

    Raises `LabelError` where a row has not a single 1; says which.
    """
    ones = np.zeros((table.num_rows, len(roles.classes)), bool)
    for column, name in enumerate(roles.classes):
        texts = pc.fill_null(texts_of(_spelled(table[name]), title), "None")
        true, _, odd = _truths(texts)
        if odd is not None:
            raise LabelError(
                f"{title}: column '{name}' holds '{odd}', expected 0 or 1, as the columns "
                f"{listed(roles.classes)} stand for a class each; name the column of the labels, "
                f"such as columns: {{label: {name}}}"
            )
        ones[:, column] = true.to_numpy(zero_copy_only=False)
    counts = ones.sum(axis=1)
    if (counts != 1).any():
        at = int(np.argmax(counts != 1))
        raise LabelError(
            f"{title}: row {first + at + 1} is of {counts[at]} of the classes "
            f"{listed(roles.classes)}: labels of several classes for an image (multi-label) cannot "
            "be used; leave a single 1 in each row, or take one column as the label, such as "
            f"columns: {{label: {roles.classes[0]}}}"
        )
    return pa.array(roles.classes).take(pa.array(ones.argmax(axis=1)))
