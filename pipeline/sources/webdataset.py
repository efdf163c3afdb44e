"""Samples as webdataset packs them into tar archives: members of one name up to the first dot.

Such as `000017.jpg` and `000017.cls`: the key is the name up to the first dot of its last part,
what follows is the field. The image is the one field that is a suffix of images alone (`jpg`, not
`mask.png`), else the only image there is. The label is that of a `.cls` member, as text; else that
of a `.json` member, under the first of a few keys. What does not decide it is an error: two images
of a key, or labels that contradict each other, are never merged.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import ConfigError, PixsimError, SourceError
from pipeline.sources.file_names import as_text
from pipeline.sources.labels import label_text
from pipeline.sources.notes import Notes
from pipeline.sources.tar_members import LABEL_SUFFIXES, Entry

_JSON_LABELS = ("label", "cls", "class")
_MOST_MEMBERS = 1000
_KEYS_AT_ONCE = 4096
_SHOWN = 3
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SORT = "pack the shard again with its members sorted by name ('tar --sort=name')"


@dataclass
class KeyedSample:
    """The members of one key: its images, and the contents of the others, by field."""

    key: bytes
    images: dict[str, Entry] = field(default_factory=dict)
    labels: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Fields:
    """Which fields of samples matter.

    Attributes
    ----------
    image
        The field of the image, such as `input.png`; None: by rule.
    label
        That of the label: `cls`, `txt` or another; or `json.KEY`, a key of the `.json` member;
        None: by rule.
    """

    image: str | None = None
    label: str | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of members that are read as labels."""
        if self.label is None or self.label.partition(".")[0] == "json":
            return LABEL_SUFFIXES
        return (*LABEL_SUFFIXES, f".{self.label.rpartition('.')[2]}".lower())


def fields_of(columns: Mapping[str, str]) -> Fields:
    """Return the fields that a job names.

    Raises
    ------
    ConfigError
        Where it names others.
    """
    for role in columns:
        if role not in ("image", "label"):
            raise ConfigError(
                f"columns.{role}: members of tar archives have no {role}, expected image (such as "
                "input.png) or label (such as cls, txt or json.KEY)"
            )
    names = {role: name.lstrip(".") for role, name in columns.items()}
    label = names.get("label")
    return Fields(names.get("image", "").lower() or None, label or None)


def _split(name: bytes) -> tuple[bytes, str]:
    """Return key and field of a member: the name up to the first dot of its last part, the rest."""
    folder, slash, base = name.rpartition(b"/")
    stem, _, rest = base.partition(b".")
    return folder + slash + stem, as_text(rest).lower()


def samples_of(entries: Iterator[Entry], title: str | None = None) -> Iterator[KeyedSample]:
    """Put together the neighbouring entries of one key.

    Parameters
    ----------
    entries
        In the order of the archive.
    title
        Of the archive, for a message; None: to look at what may be no samples at all.

    Raises
    ------
    SourceError
        Where a key has a field twice, or very many.
    """
    sample: KeyedSample | None = None
    for entry in entries:
        key, name = _split(entry.name)
        if sample is None or sample.key != key or not entry.name:
            if sample is not None:
                yield sample
            sample = KeyedSample(key)
        if title and (name in sample.images or name in sample.labels):
            raise SourceError(
                f"{title}: has two members '{as_text(key)}.{name}', expected one; unpack it, where "
                f"the last one wins, and {_SORT}"
            )
        if entry.content is None:
            sample.images[name] = entry
        else:
            sample.labels[name] = entry.content
        if title and len(sample.images) + len(sample.labels) > _MOST_MEMBERS:
            raise _collision(sample, list(sample.images) or list(sample.labels), "member", title)
    if sample is not None:
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


def image_of(sample: KeyedSample, fields: Fields, title: str) -> Entry | None:
    """Return the image of a sample, if it has one.

    Raises
    ------
    SourceError
        Where it is not clear which one it is.
    """
    if fields.image is not None:
        return sample.images.get(fields.image)
    name = _only(list(sample.images), sample, "image", title)
    return None if name is None else sample.images[name]


def _only(names: list[str], sample: KeyedSample, what: str, title: str) -> str | None:
    """Return the one field without a dot, else the only one; None where there is none."""
    plain = [name for name in names if "." not in name]
    candidates = plain or names
    if len(candidates) > 1:
        raise _collision(sample, candidates, what, title)
    return candidates[0] if candidates else None


def label_of(sample: KeyedSample, fields: Fields, title: str) -> tuple[str | None, str | None]:
    """Return the label of a sample, or what is wrong with it.

    Raises
    ------
    SourceError
        Where its members contradict each other.
    """
    if fields.label is not None:
        return _label_named(sample, fields.label, title)
    cls, json_name = _field(sample, "cls", title), _field(sample, "json", title)
    if cls is None and json_name is None:
        return None, "has no label, expected a .cls or .json member of its name"
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


def _label_named(sample: KeyedSample, label: str, title: str) -> tuple[str | None, str | None]:
    member, _, key = label.partition(".")
    if member.lower() == "json" and key:
        name = _field(sample, "json", title)
        if name is None:
            return None, "has no label, expected a .json member of its name"
        return _json_label(sample, name, (key,), title)
    text = as_text(sample.labels.get(label.lower(), b"")).strip()
    return (text, None) if text else (None, f"has no label, expected a .{label} member of its name")


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


def is_labelled(sample: KeyedSample) -> bool:
    """Tell whether a sample has an image and a label beside it."""
    if not sample.images:
        return False
    for name in sample.labels:
        suffix = name.rpartition(".")[2]
        if suffix == "cls" or (
            suffix == "json"
            and any(_json_label(sample, name, (key,), "")[0] is not None for key in _JSON_LABELS)
        ):
            return True
    return False


class LeftOut:
    """Counts what is left out of the samples of webdataset."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self.others: Counter[str] = Counter()
        self._imageless = 0
        self._first = ""

    def entries(self, members: Iterator[Entry | bytes]) -> Iterator[Entry]:
        """Yield images and labels; note the others."""
        for member in members:
            if isinstance(member, Entry):
                yield member
            else:
                self._notes.ignore(member)

    def without_image(self, sample: KeyedSample) -> None:
        for name in [*sample.labels, *sample.images]:
            self._notes.ignore(sample.key + b"." + name.encode("utf-8", "surrogateescape"))
        self._first = self._first or as_text(sample.key)
        self._imageless += 1

    def finish(self, fields: Fields) -> None:
        """Say where labels come from, and what was left out."""
        named = None if fields.label is None else f"'{fields.label}'"
        self._notes.labels_from = named or ".cls or .json members"
        if self._imageless:
            what = f"sample{'' if self._imageless == 1 else 's'} without an image"
            self._notes.remarks.append(f"{self._imageless:,} {what}, first '{self._first}'")
        self._notes.left_out += [f"{count:,} {name}" for name, count in self.others.items()]


class Keys:
    """Checks that no key of an archive comes twice, in an SQLite database: there may be many.

    Members of one key that are not next to each other would be two samples, each in part.
    """

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("BEGIN")
        self._waiting: list[tuple[bytes]] = []

    def add(self, key: bytes) -> None:
        self._waiting += [(key,)] if key else []
        if len(self._waiting) >= _KEYS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        for key in self._waiting:
            try:
                self._database.execute("INSERT INTO keys VALUES (?)", key)
            except sqlite3.IntegrityError:
                raise SourceError(
                    f"{self._archive}: members of the key '{as_text(key[0])}' are not next to each "
                    "other, or come twice; unpack it, and pack it again with its members sorted by "
                    "name ('tar --sort=name')"
                ) from None
        self._waiting = []

    def close(self) -> None:
        self._flush()
        self._database.close()
