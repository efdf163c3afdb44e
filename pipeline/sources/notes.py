"""What was noticed while a source was listed, for the user: what was left out, what was guessed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import listed
from pipeline.sources.file_names import as_text, is_hidden, may_be_labels, may_be_sidecar, suffix_of
from pipeline.sources.own_outputs import NOTHING_YET, holds_only_own, own_kind
from pipeline.storage.folders import is_folder, list_folder

MOST_TABLES = 100
_SHOWN_EMPTY = 3
_SHOWN_ORIGINS = 60  # characters


class File(NamedTuple):
    """An archive or file that samples lie in.

    `root` says which of the reader's folders it lies in, `name` where below that; `stamp` is its
    size and time or tag: what changes when the file does.
    """

    root: int
    name: str
    stamp: str


@dataclass
class Notes:
    """What a reader says of the whole, besides the rows; it is filled while the rows come.

    `files` are what the `file` column counts. `ignored` counts the files that are no images by
    suffix, `examples` has the first of each; some of them, the `tables`, may hold labels, and
    `sidecars` counts those that may each be of one image. `left_out` says in words what else was
    left out; `labels_from` where the labels come from, for a line with the numbers of splits and
    classes; `remarks` what else was decided. `unlabelled`: there are no labels at all, and none
    are missing. `labels_are_text`: labels are names also where all of them look like numbers.
    """

    files: list[File] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    tables: list[bytes] = field(default_factory=list)
    sidecars: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    first_folders: dict[str, list[str]] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    labels_from: str = ""
    unlabelled: bool = False
    labels_are_text: bool = False
    class_names: tuple[str, ...] | None = None
    remarks: list[str] = field(default_factory=list)

    def ignore(self, path: bytes) -> None:
        """Count a file that is no image."""
        suffix = suffix_of(path)
        self.ignored[suffix] += 1
        self.examples.setdefault(suffix, as_text(path))
        if len(self.tables) < MOST_TABLES and may_be_labels(path):
            self.tables.append(path)
        if may_be_sidecar(path):
            self.sidecars[suffix] += 1

    def take_labels_from(self, columns: Sequence[str]) -> None:
        """Say which columns of a table hold the labels: one, or one for each class."""
        one = f"column '{columns[0]}'" if len(columns) == 1 else "columns, one for each class"
        self.add_origin(one)

    def add_origin(self, name: str) -> None:
        """Say what else labels come from, such as `column 'label'`."""
        if name not in self.labels_from and len(self.labels_from) < _SHOWN_ORIGINS:
            self.labels_from += f"{', ' if self.labels_from else ''}{name}"

    def ignore_folder(self, folder: bytes, named: bool = False) -> None:
        """Count a folder that holds nothing; or was `named` by a pattern, beside image files."""
        kind = "folder{} that the pattern matches" if named else "empty folder{}"
        self.folders[kind] += 1
        if len(first := self.first_folders.setdefault(kind, [])) < _SHOWN_EMPTY:
            first.append(as_text(folder))

    def ignore_own(self, folder: bytes, what: str) -> None:
        """Note a folder that pixsim itself wrote: an image set, a run, an audit, downloads."""
        if what != NOTHING_YET:
            self.own[as_text(folder)] = what


def counted(notes: Notes) -> str:
    """Return what was left out, in words: how many files of each suffix; a single one by name."""
    parts = [
        f"{count:,} {suffix or 'without suffix'}" if count > 1 else notes.examples[suffix]
        for suffix, count in notes.ignored.most_common()
    ]
    for kind, count in notes.folders.items():
        first, more = sorted(notes.first_folders[kind]), ", ..." * (count > _SHOWN_EMPTY)
        what = kind.format("" if count == 1 else "s")
        parts.append(f"{count:,} {what} ({', '.join(first)}{more})")
    if notes.own:
        own = (f"{folder} ({what})" for folder, what in sorted(notes.own.items()))
        parts.append(f"what pixsim wrote: {listed(own, _SHOWN_EMPTY)}")
    return ", ".join([*parts, *notes.left_out])


def lines_of(known: Mapping[str, Any], splits: int, classes: int) -> tuple[str, ...]:
    """Return what a reader decided by what it saw, and what it left out; a line each.

    `known` holds `labels_from`, `remarks`, `unlabelled` and `left_out`, as a listing keeps them.
    """
    origin, remarks = known.get("labels_from"), list(known.get("remarks", ()))
    if origin:
        summary = f"{splits} split{'' if splits == 1 else 's'}, "
        if known["unlabelled"]:
            summary += "no labels: the images lie in no folders of classes"
        else:
            summary += f"{classes:,} class{'' if classes == 1 else 'es'} from {origin}"
        if origin.startswith(("column", "array", "variable")):  # remarks name their table or file
            remarks.append(summary)
        else:
            remarks = ["; ".join([summary, *remarks])]
    if known.get("left_out"):
        remarks.append(f"left out: {known['left_out']}")
    return tuple(remarks)


def left_beside(paths: Mapping[Any, Sequence[Path]], suffixes: Sequence[str]) -> str:
    """Return what lies in folders beside the files of some suffixes, in words."""
    notes, ending = Notes(), tuple(suffixes)
    for path in (path for several in paths.values() for path in several):
        # what has the suffix is not asked for: there may be very many
        if not path.name.lower().endswith(ending) and is_folder(path):
            for text in list_folder(path):
                name = os.fsencode(text)
                if text.lower().endswith(ending) or is_hidden(name):
                    continue
                if is_folder(path / text) and holds_only_own(path / text):
                    notes.ignore_own(name, own_kind(path / text) or "outputs")
                else:
                    notes.ignore(name)
    return counted(notes)
