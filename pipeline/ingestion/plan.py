"""What an ingest will write: the store of a source, planned without reading a pixel."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.blocks import Source
from pipeline.core.errors import ConfigError, LabelError, ShapeError, SourceError
from pipeline.core.partitions import Layout, PartitionTable, choose_layout, image_bytes
from pipeline.execution.workers import Workers, require_room
from pipeline.storage import claims, image_store, manifest
from pipeline.storage.claims import Token
from pipeline.storage.sample_tables import SAMPLES

_RESERVED = (".", "__")
_SHOWN = 5


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest will write: pure metadata, for which no pixel is read.

    `settings` open the source again, in plain values; None where it is an object in memory.
    `remarks` are what was decided by the layout of the source, and what was left out.
    """

    source: Source
    templates: Mapping[str, image_store.SplitTemplate]
    settings: Mapping[str, Any] | None = None
    remarks: tuple[str, ...] = ()

    @cached_property
    def table(self) -> PartitionTable:
        """The partitions, one a task."""
        return PartitionTable(
            tuple((name, t.count, t.layout.shard) for name, t in self.templates.items())
        )

    @property
    def count(self) -> int:
        return sum(template.count for template in self.templates.values())

    @property
    def notes(self) -> list[str]:
        """Remarks for the user: classes whose names are easily taken for one."""
        by_folded: dict[str, list[str]] = {}
        for name in self.source.class_names:
            by_folded.setdefault(name.casefold(), []).append(name)
        alike = [" and ".join(map(repr, names)) for names in by_folded.values() if len(names) > 1]
        if not alike:
            return []
        more = "" if len(alike) <= _SHOWN else f", and {len(alike) - _SHOWN:,} more such names"
        shown = "; ".join(alike[:_SHOWN])
        return [f"classes {shown}{more} differ in case only; each stays a class of its own"]

    @property
    def encoding(self) -> dict[str, Any]:
        """CF `scale_factor` and `add_offset` of packed images, else nothing."""
        return dict(getattr(self.source, "encoding", {}))

    @property
    def header(self) -> dict[str, Any]:
        """What pixels and labels mean."""
        packed = {"encoding": self.encoding} if self.encoding else {}
        names = list(self.source.class_names)
        return {"class_names": names, "full_scale": self.source.full_scale} | packed

    @cached_property
    def content(self) -> dict[str, Any]:
        """What decides the store, in plain values; equal contents make equal stores."""
        splits = {name: template.describe() for name, template in self.templates.items()}
        return {"source": dict(self.source.provenance), **self.header, "splits": splits}

    @property
    def identity(self) -> str:
        return claims.identity(self.content)

    @property
    def attributes(self) -> dict[str, Any]:
        """Those of the store and of each group."""
        return {
            "class_names": list(self.source.class_names),
            "full_scale": self.source.full_scale,
            "provenance": dict(self.source.provenance),
        }


def plan_source(source: Source, path: Path, shard_samples: int | None = None) -> IngestPlan:
    """Plan the store of a source; see `check_names`.

    `SourceError` where there is no image, `ShapeError` where the pixels of one split are on another
    scale than those of another.
    """
    if shard_samples is not None and shard_samples < 1:
        raise ConfigError(f"{shard_samples} images per shard, expected 1 or more")
    splits = source.splits()
    check_names(source.class_names, splits, getattr(source, "unlabelled", False))
    templates = {}
    for name, info in splits.items():
        layout = choose_layout(info.count, image_bytes(info.shape, info.dtype), shard_samples)
        templates[name] = image_store.SplitTemplate(info.count, info.shape, info.dtype, layout)
    _check_depths(templates, source.full_scale)
    plan = IngestPlan(source, templates)
    if not plan.count:
        raise SourceError(f"{path}: the source holds no image, expected one at least")
    return plan


def stored_templates(content: Mapping[str, Any]) -> dict[str, image_store.SplitTemplate]:
    """Return what the splits of an image set hold, from its manifest."""
    return {
        name: image_store.SplitTemplate(
            split["count"], tuple(split["shape"]), split["dtype"],
            Layout(split["chunk"], split["shard"]),
        )
        for name, split in content["splits"].items()
    }  # fmt: skip


def check_names(
    class_names: Sequence[str], splits: Iterable[str], unlabelled: bool = False
) -> None:
    """Raise where the names of classes or splits are ambiguous, or have none.

    Images of which none has a label, which are `unlabelled`, need no classes.

    Raises
    ------
    LabelError
        Where two classes have one name, or two spellings of one in Unicode, or there is none.
    SourceError
        Where no group of a store can have the name of a split, or two differ in case only: some
        file systems take them for one.
    """
    if not class_names and not unlabelled:
        raise LabelError("no class names, expected one name for each label code; name them")
    doubled = _alike(class_names, normal)
    if doubled is not None:
        first, second = doubled
        same = f"two classes named '{first}'"
        if first != second:
            same = f"classes {first!a} and {second!a} are one name, written in two ways in Unicode"
        raise LabelError(
            f"{same}, expected one name for each label code; name them apart, or write them alike"
        )
    names = list(splits)
    for name in names:
        _check_split(name)
    alike = _alike(names, lambda name: normal(name).casefold())
    if alike is not None:
        raise SourceError(
            f"splits {alike[0]!a} and {alike[1]!a} differ in case or in Unicode only, expected "
            "names that all file systems tell apart; write them alike in the source, or name them "
            "apart"
        )


def normal(name: str) -> str:
    """Return the one spelling of a name that Unicode has for all that look the same (NFC)."""
    return unicodedata.normalize("NFC", name)


def _alike(names: Iterable[str], key: Callable[[str], str]) -> tuple[str, str] | None:
    """Return the first two names of one key."""
    seen: dict[str, str] = {}
    for name in names:
        if key(name) in seen:
            return seen[key(name)], name
        seen[key(name)] = name
    return None


def _check_depths(templates: Mapping[str, image_store.SplitTemplate], full_scale: int) -> None:
    """Raise `ShapeError` where one split has 8 bits, and the scale is that of another's 16."""
    bits = {name: np.dtype(template.dtype).itemsize * 8 for name, template in templates.items()}
    if len(set(bits.values())) > 1 and full_scale >= 2 ** min(bits.values()):
        depths = ", ".join(f"'{name}' {count}" for name, count in bits.items())
        raise ShapeError(
            f"images of several depths: {depths} bits, expected one for all splits; depth: 8 or "
            "depth: 16 brings them together"
        )


def _check_split(name: str) -> None:
    """Raise `SourceError` where a split has a name that no group of a store can have."""
    wrong = name.startswith(_RESERVED) or "/" in name or "\\" in name or not name.isprintable()
    if wrong or name in ("", "zarr.json", manifest.MANIFEST, SAMPLES):
        raise SourceError(
            f"split {name!r} cannot be the name of a group of a store, expected one without "
            "slashes and control characters that does not begin with a dot; rename it"
        )


def expected_content(plan: IngestPlan, *, least: bool = False) -> dict[str, Any]:
    """Return what the manifest of a planned store will say, as far as it is known.

    Labels are not, but for splits without any: each class is given as many images as the split has,
    the most there can be; or, for what a job needs at `least`, one.
    """
    content = {**plan.content, "splits": {}}
    infos = plan.source.splits()
    for name, split in plan.content["splits"].items():
        labelled = infos[name].labelled
        count = (1 if least else split["count"]) * labelled
        unlabelled = 0 if labelled else split["count"]
        labels = {"labels": [count] * len(content["class_names"]), "unlabelled": unlabelled}
        content["splits"][name] = {**split, **labels}
    return content | {"digest": None, "provenance": plan.content["source"]}


def require_memory(plan: IngestPlan, workers: Workers, partitions: int | None = None) -> None:
    """Refuse an ingest of partitions, by default all, that does not fit; see `require_room`."""
    splits = {
        name: (min(template.count, template.layout.shard), template.sample_bytes)
        for name, template in plan.templates.items()
    }
    cure = "take smaller shards (shard of its images, or --shard; now {shard:,} images)"
    require_room(splits.values(), partitions or len(plan.table), workers, cure)


def ingest_token(path: Path, identity: str) -> Token:
    """Return what lets the partitions of a plan be written."""
    return Token(path / manifest.WORK, identity, "ingest")
