"""Samples as webdataset packs them into tar archives: members of one name up to the first dot.

Such as `000017.jpg` and `000017.cls`. A `.cls` member holds the label as text, a `.json` member
under one of a few keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.sources.layout import as_text, suffix_of
from pipeline.sources.tar_members import Entry

_JSON_LABELS = ("label", "cls", "class")


@dataclass
class Sample:
    """The members of one key."""

    key: bytes
    images: list[Entry] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


def _key(name: bytes) -> bytes:
    """Return the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def samples_of(entries: Iterator[Entry]) -> Iterator[Sample]:
    """Put together the neighbouring entries of one key."""
    sample: Sample | None = None
    for entry in entries:
        key = _key(entry.name)
        if sample is None or sample.key != key or not entry.name:
            if sample is not None:
                yield sample
            sample = Sample(key)
        if entry.content is None:
            sample.images.append(entry)
        else:
            sample.labels[suffix_of(entry.name)] = entry.content
    if sample is not None:
        yield sample


def label_of(sample: Sample) -> tuple[str | None, str | None]:
    """Return the label of a sample, or what is wrong with it."""
    if ".cls" in sample.labels:
        text = as_text(sample.labels[".cls"]).strip()
        return (text, None) if text else (None, "its .cls member is empty, or far too large")
    if ".json" not in sample.labels:
        return None, "has no label, expected a .cls or .json member of its name"
    try:
        content = json.loads(sample.labels[".json"])
    except (ValueError, RecursionError) as error:
        return None, f"its .json member cannot be read: {error}"
    found = content if isinstance(content, dict) else {}
    value = next((found[name] for name in _JSON_LABELS if name in found), None)
    if isinstance(value, str | int) and not isinstance(value, bool):
        # JSON may hold halves of characters, which no table can
        return as_text(str(value).encode("utf-8", "surrogatepass")), None
    return None, f"its .json member has no text or number under {', '.join(_JSON_LABELS)}"
