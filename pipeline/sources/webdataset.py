"""Samples of archives as webdataset packs them: members of one name up to the first dot, the key.

Such as `000017.jpg` and `000017.cls`; what follows the key is the field. The image is the one field
that is a suffix of images alone (`jpg`, not `mask.png`), else the only image there is. The label is
that of a `.cls` member, as text; else that of a `.json` member, under the first of a few keys. What
does not decide it is an error: two images of a key, or labels that contradict each other, are
never merged.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, groupby
from typing import Any

from pipeline.core.blocks import LABEL_UNKNOWN, OK
from pipeline.core.errors import ConfigError, PixsimError, SourceError
from pipeline.sources.archive_streams import LABEL_SUFFIXES, Entry, Member
from pipeline.sources.file_names import as_text
from pipeline.sources.labels import label_text
from pipeline.sources.notes import Notes
from pipeline.sources.sample_index import Sample

_JSON_LABELS = ("label", "cls", "class")
_MOST_MEMBERS = 1000
_SHOWN = 3
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SORT = "pack the shard again with its members sorted by name ('tar --sort=name')"
_NO_LABEL = "has no label, expected a {} member of its name"


@dataclass
class KeyedSample:
    """The members of one key: its images, and the contents of the others, by field."""

    key: bytes
    images: dict[str, Entry] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Fields:
    """Which fields of samples matter; None: by rule.

    `image` is that of the image, such as `input.png`; `label` that of the label: `cls`, `txt` or
    another, or `json.KEY`, a key of the `.json` member.
    """

    image: str | None = None
    label: str | None = None

    @classmethod
    def named(cls, columns: Mapping[str, str]) -> Fields:
        """Return the fields that a job names; `ConfigError` where it names others."""
        for role in columns:
            if role not in ("image", "label"):
                raise ConfigError(
                    f"columns.{role}: members of archives have no {role}, expected image (such "
                    "as input.png) or label (such as cls, txt or json.KEY)"
                )
        names = {role: name.lstrip(".") for role, name in columns.items()}
        return cls(names.get("image", "").lower() or None, names.get("label") or None)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of members that are read as labels."""
        if self.label is None or self.label.partition(".")[0] == "json":
            return LABEL_SUFFIXES
        return (*LABEL_SUFFIXES, f".{self.label.rpartition('.')[2]}".lower())


def _split(name: bytes) -> tuple[bytes, str]:
    """Return key and field of a member: the name up to the first dot of its last part, the rest."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, rest = base.partition(b".")
    return folder + slash + stem, as_text(rest).lower()


def samples_of(entries: Iterator[Entry], title: str | None = None) -> Iterator[KeyedSample]:
    """Put together the neighbouring entries of one key; without `title` nothing is refused."""
    split = ((*_split(entry.name), entry) for entry in entries)
    for key, members in groupby(split, lambda member: member[0] or member[2]):
        sample = KeyedSample(b"" if isinstance(key, Entry) else key)
        for _, name, entry in members:
            if title and (name in sample.images or name in sample.labels):
                raise SourceError(
                    f"{title}: has two members '{as_text(sample.key)}.{name}', expected one; "
                    f"unpack it, where the last one wins, and {_SORT}"
                )
            if entry.content is None:
                sample.images[name] = entry
            else:
                sample.labels[name] = entry.content
            count = len(sample.images) + len(sample.labels)
            if title and count > _MOST_MEMBERS:
                names = list(sample.images) or list(sample.labels)
                raise _collision(sample, names, "member", title)
        yield sample


def _collision(sample: KeyedSample, names: Sequence[str], what: str, title: str) -> SourceError:
    """Return the error of a key with several images or labels: of one sample, or of several."""
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    suffixes = Counter(name.rpartition(".")[2] for name in sample.labels)
    several = what == "member" or max(suffixes.values(), default=0) > 1
    rename = "rename the members so that no dot but that of the suffix is in their names"
    choose = f"say which one counts with columns.{what}, such as columns.{what}={names[0]}"
    return SourceError(
        f"{title}: the key '{as_text(sample.key)}' has {len(names):,} {what}s ({shown}), expected "
        "one: a key is the name of a member up to its first dot; "
        f"{rename if several else choose}"
    )


def _only(names: list[str], sample: KeyedSample, what: str, title: str) -> str | None:
    """Return the one field without a dot, else the only one; None where there is none."""
    plain = [name for name in names if "." not in name]
    candidates = plain or names
    if len(candidates) > 1:
        raise _collision(sample, candidates, what, title)
    return candidates[0] if candidates else None


def label_of(sample: KeyedSample, fields: Fields, title: str) -> tuple[str | None, str | None]:
    """Return the label of a sample, or what is wrong with it.

    Raises `SourceError` where its members contradict each other.
    """
    if fields.label is not None:
        return _named_label(sample, fields.label, title)
    cls, json_name = _field(sample, "cls", title), _field(sample, "json", title)
    if cls is None and json_name is None:
        return None, _NO_LABEL.format(".cls or .json")
    if cls is None:
        return _json_label(sample, json_name or "", _JSON_LABELS, title)
    text = as_text(sample.labels[cls]).strip()
    if not text:
        return None, "its .cls member is empty, or far too large"
    if json_name is not None:
        other, _ = _json_label(sample, json_name, _JSON_LABELS, title)
        if other is not None and _differ(text, other):
            raise _contradiction(sample, f".cls says '{text}', .json '{other}'", title)
    return text, None


def _field(sample: KeyedSample, suffix: str, title: str) -> str | None:
    names = [name for name in sample.labels if name.rpartition(".")[2] == suffix]
    return _only(names, sample, "label", title)


def _named_label(sample: KeyedSample, label: str, title: str) -> tuple[str | None, str | None]:
    member, _, key = label.partition(".")
    if member.lower() == "json" and key:
        name = _field(sample, "json", title)
        if name is None:
            return None, _NO_LABEL.format(".json")
        return _json_label(sample, name, (key,), title)
    text = as_text(sample.labels.get(label.lower(), b"")).strip()
    return (text, None) if text else (None, _NO_LABEL.format(f".{label}"))


def _json_label(
    sample: KeyedSample, name: str, keys: Sequence[str], title: str
) -> tuple[str | None, str | None]:
    try:
        content = json.loads(sample.labels[name])
    except (ValueError, RecursionError) as error:
        return None, f"its .json member cannot be read: {error}"
    content = content if isinstance(content, dict) else {}
    values = {key: content[key] for key in keys if key in content}
    if not values:
        return None, f"its .json member has no text or number under {', '.join(keys)}"
    given = {key: value for key, value in values.items() if value is not None}
    first_key, first = next(iter(given.items()), ("", None))
    try:
        text = label_text(first, "its .json member")
    except PixsimError as error:
        return None, str(error)
    if text is None:
        return None, None
    for key, value in given.items():
        if _contradict(first, value):
            both = f".json says {first_key}={first!r} and {key}={value!r}"
            raise _contradiction(sample, both, title)
    # JSON may hold halves of characters, which no table can
    return as_text(text.encode("utf-8", "surrogatepass")), None


def _contradiction(sample: KeyedSample, both: str, title: str) -> SourceError:
    return SourceError(
        f"{title}: the labels of '{as_text(sample.key)}' contradict each other: {both}; say which "
        "one counts with columns.label=cls or columns.label=json.KEY"
    )


def _contradict(value: Any, other: Any) -> bool:
    """Tell whether two values of JSON are different labels; those of several types may go along."""
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (value, other)]
    return value != other and (all(numbers) or type(value) is type(other))


def _differ(text: str, other: str) -> bool:
    """Tell whether two labels contradict each other: a name may go with any code."""
    numbers = [int(value) for value in (text, other) if _NUMBER.fullmatch(value)]
    return text != other and len(numbers) != 1 and len(set(numbers)) != 1


def any_labelled(entries: Iterator[Entry]) -> bool | None:
    """Tell whether one of some samples has a label beside its image; None where there is none."""
    samples = samples_of(entries)
    first = next(samples, None)
    return None if first is None else any(map(is_labelled, chain([first], samples)))


def is_labelled(sample: KeyedSample) -> bool:
    """Tell whether a sample has an image and a label beside it."""

    def is_label(name: str) -> bool:
        suffix = name.rpartition(".")[2]
        labels = (_json_label(sample, name, (key,), "")[0] for key in _JSON_LABELS)
        return suffix == "cls" or (suffix == "json" and any(label is not None for label in labels))

    return bool(sample.images) and any(map(is_label, sample.labels))


class Samples:
    """Lists the samples of archives, and counts what is left out of them."""

    def __init__(self, fields: Fields, notes: Notes) -> None:
        self._fields, self._notes = fields, notes
        self._others: Counter[str] = Counter()
        self._imageless = 0
        self._first = ""

    def rows(self, members: Iterator[Member], archive: str) -> Iterator[Sample]:
        """Yield the samples of an archive that have an image; there may be very many keys."""
        with closing(sqlite3.connect("", isolation_level=None)) as keys:
            keys.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
            keys.execute("BEGIN")
            for sample in samples_of(self._entries(members), archive):
                try:
                    if sample.key:
                        keys.execute("INSERT INTO keys VALUES (?)", (sample.key,))
                except sqlite3.IntegrityError:
                    raise SourceError(
                        f"{archive}: members of the key '{as_text(sample.key)}' are not next to "
                        f"each other, or come twice; unpack it, and {_SORT}"
                    ) from None
                # without a key it stands for what is lost
                name = self._fields.image if sample.key else None
                name = name or _only(list(sample.images), sample, "image", archive)
                image = sample.images.get(name or "")
                if image is None:
                    self._leave_out(sample)
                else:
                    yield self._row(sample, image, archive)

    def _entries(self, members: Iterator[Member]) -> Iterator[Entry]:
        for member in members:
            if isinstance(member, Entry):
                yield member
            elif isinstance(member, bytes):
                self._notes.ignore(member)

    def _row(self, sample: KeyedSample, image: Entry, archive: str) -> Sample:
        if len(sample.images) > 1:
            self._others.update(n for n, other in sample.images.items() if other is not image)
        label, wrong = label_of(sample, self._fields, archive) if image.name else (None, None)
        row = image.sample(0, f"{archive}:{as_text(image.name)}", label)
        if wrong and row.status == OK:
            return row._replace(status=LABEL_UNKNOWN, detail=wrong)
        return row

    def _leave_out(self, sample: KeyedSample) -> None:
        for name in [*sample.labels, *sample.images]:
            self._notes.ignore(sample.key + b"." + name.encode("utf-8", "surrogateescape"))
        self._first = self._first or as_text(sample.key)
        self._imageless += 1

    def finish(self) -> None:
        """Note where labels come from, and what was left out."""
        label = self._fields.label
        self._notes.labels_from = ".cls or .json members" if label is None else f"'{label}'"
        if self._imageless:
            what = f"sample{'' if self._imageless == 1 else 's'} without an image"
            self._notes.remarks.append(f"{self._imageless:,} {what}, first '{self._first}'")
        self._notes.left_out += [f"{count:,} {name}" for name, count in self._others.items()]
