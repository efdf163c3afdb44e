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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError, SourceError
from pipeline.sources.layout import as_text
from pipeline.sources.tar_members import LABEL_SUFFIXES, Entry

_JSON_LABELS = ("label", "cls", "class")
_MOST_MEMBERS = 1000
_SHOWN = 3
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_SORT = "pack the shard again with its members sorted by name ('tar --sort=name')"


@dataclass
class Sample:
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


def samples_of(entries: Iterator[Entry], title: str | None = None) -> Iterator[Sample]:
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
    sample: Sample | None = None
    for entry in entries:
        key, name = _split(entry.name)
        if sample is None or sample.key != key or not entry.name:
            if sample is not None:
                yield sample
            sample = Sample(key)
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
            raise _collision(sample, list(sample.images) or list(sample.labels), "members", title)
    if sample is not None:
        yield sample


def _collision(sample: Sample, names: Sequence[str], what: str, title: str) -> SourceError:
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    column = f"say which one with columns.{what}, such as columns.{what}={names[0]}, or "
    return SourceError(
        f"{title}: the key '{as_text(sample.key)}' has {len(names):,} {what}s ({shown}), expected "
        "one: a key is the name of a member up to its first dot; "
        f"{column if what in ('image', 'label') else ''}rename the members so that their names "
        "differ before the first dot"
    )


def image_of(sample: Sample, fields: Fields, title: str) -> Entry | None:
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


def _only(names: list[str], sample: Sample, what: str, title: str) -> str | None:
    """Return the one field without a dot, else the only one; None where there is none."""
    plain = [name for name in names if "." not in name]
    candidates = plain or names
    if len(candidates) > 1:
        raise _collision(sample, candidates, what, title)
    return candidates[0] if candidates else None


def label_of(sample: Sample, fields: Fields, title: str) -> tuple[str | None, str | None]:
    """Return the label of a sample, or what is wrong with it.

    Raises
    ------
    SourceError
        Where its members contradict each other.
    """
    if fields.label is not None:
        return _label_named(sample, fields.label, title)
    found = {suffix: _field(sample, suffix, title) for suffix in ("cls", "json")}
    if found["cls"] is None and found["json"] is None:
        return None, "has no label, expected a .cls or .json member of its name"
    if found["cls"] is None:
        return _json_label(sample, found["json"] or "", _JSON_LABELS, title)
    text = as_text(sample.labels[found["cls"]]).strip()
    if not text:
        return None, "its .cls member is empty, or far too large"
    if found["json"] is not None:
        other, _ = _json_label(sample, found["json"], _JSON_LABELS, title)
        if other is not None and _differ(text, other):
            raise _contradiction(sample, f".cls says '{text}', .json '{other}'", title)
    return text, None


def _field(sample: Sample, suffix: str, title: str) -> str | None:
    names = [name for name in sample.labels if name.rpartition(".")[2] == suffix]
    return _only(names, sample, "label", title)


def _label_named(sample: Sample, label: str, title: str) -> tuple[str | None, str | None]:
    member, _, key = label.partition(".")
    if member.lower() == "json" and key:
        name = _field(sample, "json", title)
        if name is None:
            return None, "has no label, expected a .json member of its name"
        return _json_label(sample, name, (key,), title)
    text = as_text(sample.labels.get(label.lower(), b"")).strip()
    return (text, None) if text else (None, f"has no label, expected a .{label} member of its name")


def _json_label(
    sample: Sample, name: str, keys: Sequence[str], title: str
) -> tuple[str | None, str | None]:
    try:
        content = json.loads(sample.labels[name])
    except (ValueError, RecursionError) as error:
        return None, f"its .json member cannot be read: {error}"
    found = content if isinstance(content, dict) else {}
    values = {key: found[key] for key in keys if key in found}
    first = next(iter(values.values()), None)
    if not _is_label(first):
        return None, f"its .json member has no text or number under {', '.join(keys)}"
    for key, value in values.items():
        if type(value) is type(first) and value != first:
            first_key = next(iter(values))
            said = f".json says {first_key}={first!r} and {key}={value!r}"
            raise _contradiction(sample, said, title)
    # JSON may hold halves of characters, which no table can
    return as_text(str(first).encode("utf-8", "surrogatepass")), None


def _contradiction(sample: Sample, said: str, title: str) -> SourceError:
    return SourceError(
        f"{title}: the labels of '{as_text(sample.key)}' contradict each other: {said}; say which "
        "one counts with columns.label=cls or columns.label=json.KEY"
    )


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _differ(text: str, other: str) -> bool:
    """Tell whether two labels contradict each other: a name may go with any code."""
    numbers = [int(value) for value in (text, other) if _NUMBER.fullmatch(value)]
    return text != other and len(numbers) != 1 and len(set(numbers)) != 1


def is_labelled(sample: Sample) -> bool:
    """Tell whether a sample has an image and a label beside it."""
    if not sample.images:
        return False
    suffixes = {name: name.rpartition(".")[2] for name in sample.labels}
    return any(
        suffix == "cls"
        or any(_json_label(sample, name, (key,), "")[0] is not None for key in _JSON_LABELS)
        for name, suffix in suffixes.items()
        if suffix in ("cls", "json")
    )
